"""From a name to a chat model, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from framework.errors import CallerError
from framework.models.base import ChatModel, ModelCard
from framework.models.config import DEFAULTS, ModelsConfig
from framework.models.progress import Report, silent
from framework.registry import Registry

# What a plugin registers for names such as "scripted:FILE": called with what follows the colon.
Provider: TypeAlias = Callable[[str], ChatModel]
PROVIDERS: Registry[Provider] = Registry("chat model provider", "lectern.chat_models")


def load_chat(name: str | None = None, config: ModelsConfig = DEFAULTS, progress: Report = silent) -> ChatModel:
    """The chat model of that name, or the configured one.

    A name is, in this order: an endpoint of the configuration; "PROVIDER:REST" with a provider that is registered; what
    the catalog resolves. Weights are loaded, and servers asked, when the first request comes.

    Args:
        progress: told how far a download or a conversion is.

    Raises:
        NotFound: no such model.
        CallerError: it is no chat model.
        ModelUnavailable: it is known, but its files can't be had.
    """
    wanted = name or config.chat
    if wanted in config.endpoints:
        from framework.models.openai_compatible import OpenAICompatible

        return OpenAICompatible(config.endpoints[wanted], wanted)
    provider, separator, rest = wanted.partition(":")
    if separator and provider in PROVIDERS:
        return PROVIDERS.get(provider)(rest)
    from framework.models.catalog import Catalog
    from framework.models.local_chat import LocalChat

    resolved = Catalog(config).resolve(wanted, progress=progress)
    _require_chat(resolved.card)
    return LocalChat(resolved.path, resolved.card.name, threads=config.threads, guided=resolved.card.guided)


def check_chat(name: str, config: ModelsConfig = DEFAULTS) -> None:
    """Refuse a name that `load_chat` would refuse, as far as that can be told without loading or fetching anything.

    Raises:
        NotFound: no such model.
        CallerError: it is no chat model.
    """
    if name in config.endpoints or name.partition(":")[0] in PROVIDERS:
        return
    from framework.models.catalog import Catalog

    _require_chat(Catalog(config).card(name))


def _require_chat(card: ModelCard) -> None:
    if card.kind != "chat":
        raise CallerError(
            f"{card.name!r} is of the kind {card.kind!r}, not a chat model.",
            hint="`lectern models list` shows the kinds.",
            field="model",
        )
