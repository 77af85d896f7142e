"""Section `[models]`: which models answer and embed unless a caller names others, and where remote ones are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from framework.errors import ConfigError


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """Section `[models.endpoints.NAME]`: a model behind an OpenAI-compatible server.

    Attributes:
        base_url: address up to and including the version, such as "http://127.0.0.1:8080/v1".
        model: the server's name for it.
        api_key_env: environment variable that holds the key; empty: no key is sent. Keys never stand in the file.
        context_length: tokens in all; 0: unknown, the server decides.
        timeout: seconds without a byte after which a request fails.
        max_retries: further tries after a connection error, a 429 or a 5xx, before the first token.
    """

    base_url: str
    model: str
    api_key_env: str = ""
    context_length: int = 0
    timeout: float = 60.0
    max_retries: int = 2

    def __post_init__(self) -> None:
        _require(
            self.base_url.startswith(("http://", "https://")), "base_url", self.base_url, "an http:// or https:// URL"
        )
        _require(bool(self.model), "model", self.model, "the server's name for a model")
        _require(self.context_length >= 0, "context_length", self.context_length, "0 or more")
        _require(self.timeout > 0, "timeout", self.timeout, "more than 0 seconds")
        _require(0 <= self.max_retries <= 10, "max_retries", self.max_retries, "between 0 and 10")


@dataclass(frozen=True, slots=True)
class ModelsConfig:
    """Section `[models]`.

    Attributes:
        chat: name of the chat model: an endpoint's, or one that the catalog resolves.
        embedder: name of the embedding model.
        threads: threads that a local model computes with; None: torch's own choice, one a core.
        endpoints: models behind servers, by the name they are asked for.
    """

    chat: str = "smollm2-135m-instruct"
    embedder: str = "all-minilm-l6-v2"
    threads: int | None = None
    endpoints: Mapping[str, EndpointConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(self.threads is None or self.threads >= 1, "threads", self.threads, "1 or more")


def _require(valid: bool, name: str, value: object, expected: str) -> None:
    if not valid:
        raise ConfigError(f"models: {name} must be {expected}, got {value!r}.", field=name)


DEFAULTS = ModelsConfig()
