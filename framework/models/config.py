"""Section `[models]`: which models answer and embed unless a caller names others, and where remote ones are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

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


Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16", "int8"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Section `[models.engine]`: how chat models on this machine are run.

    Attributes:
        device: "cpu", "cuda" or "cuda:N"; None: CUDA where there is one.
        dtype: what weights are computed in; "auto": what suits the device.
        kv_dtype: what keys and values are kept in.
        kv_memory_mb: memory for them; None: a quarter of what is free (half on CUDA), on a CPU at most 1024, but one
            whole context where half of what is free can hold it, and never more than `max_sequences` contexts.
        block_size: tokens whose keys and values are kept together.
        max_sequences: requests that run at once.
        max_tokens_per_step: tokens of all of them that one step computes, at least one each; long prompts take
            several steps.
        max_waiting: further requests that may wait, beyond max_sequences; one more is refused.
        adapter_slots: adapters that are resident at once; 0: none can be used.
        adapter_memory_mb: host memory for adapters that are kept ready beside the resident ones.
        prefix_cache: keep keys and values of what was computed, for prompts that begin alike.
        deterministic: a request's tokens are the same whatever else is computed with it, sampled ones included.
        kernels: use the compiled decoder for CPUs where it can be had.
        buffer: events of an answer that may wait for its reader, before the answer is paused.
    """

    device: str | None = None
    dtype: Dtype = "auto"
    kv_dtype: Dtype = "auto"
    kv_memory_mb: int | None = None
    block_size: int = 16
    max_sequences: int = 64
    max_tokens_per_step: int = 512
    max_waiting: int = 256
    adapter_slots: int = 64
    adapter_memory_mb: int = 1024
    prefix_cache: bool = True
    deterministic: bool = False
    kernels: bool = True
    buffer: int = 64

    def __post_init__(self) -> None:
        least = {"block_size": 1, "max_sequences": 1, "max_waiting": 1, "adapter_slots": 0}
        for name, lowest in {**least, "adapter_memory_mb": 1, "buffer": 2}.items():
            value = getattr(self, name)
            _require(value >= lowest, f"engine.{name}", value, f"{lowest} or more")
        enough = self.max_tokens_per_step >= self.max_sequences
        _require(enough, "engine.max_tokens_per_step", self.max_tokens_per_step, f"{self.max_sequences} or more")
        _require(
            self.kv_memory_mb is None or self.kv_memory_mb >= 1, "engine.kv_memory_mb", self.kv_memory_mb, "1 or more"
        )


@dataclass(frozen=True, slots=True)
class ModelsConfig:
    """Section `[models]`.

    Attributes:
        chat: name of the chat model: an endpoint's, or one that the catalog resolves.
        embedder: name of the embedding model.
        reranker: name of the model that reranks, where `[search]` asks for it.
        threads: threads that a local model computes with; None: torch's own choice, one a core.
        endpoints: models behind servers, by the name they are asked for.
        engine: how chat models on this machine are run.
    """

    chat: str = "smollm2-135m-instruct"
    embedder: str = "all-minilm-l6-v2"
    reranker: str = "minilm-reranker"
    threads: int | None = None
    endpoints: Mapping[str, EndpointConfig] = field(default_factory=dict)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        _require(self.threads is None or self.threads >= 1, "threads", self.threads, "1 or more")


def _require(valid: bool, name: str, value: object, expected: str) -> None:
    if not valid:
        raise ConfigError(f"models: {name} must be {expected}, got {value!r}.", field=name)


DEFAULTS = ModelsConfig()
