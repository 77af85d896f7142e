"""From a name to a chat model, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from framework.config import Settings
from framework.engine.adapter import Adapter
from framework.errors import CallerError
from framework.models.base import ChatModel, ModelCard, Role
from framework.models.config import DEFAULTS, ModelsConfig
from framework.models.progress import Report, silent
from framework.registry import Registry

# What a plugin registers for names such as "scripted:FILE": called with what follows the colon.
Provider: TypeAlias = Callable[[str], ChatModel]
PROVIDERS: Registry[Provider] = Registry("chat model provider", "lectern.chat_models")


def load_chat(
    name: str | None = None,
    config: ModelsConfig = DEFAULTS,
    progress: Report = silent,
    *,
    settings: Settings | None = None,
    tenant: str | None = None,
) -> ChatModel:
    """The chat model of that name, or the configured one.

    A name is, in this order: an endpoint of the configuration; "PROVIDER:REST" with a provider that is registered; what
    the catalog resolves; "BASE:ADAPTER" with the name of an adapter that was added to such a model. Weights are loaded,
    and servers asked, when the first request comes. An adapter is looked up anew for each request.

    Args:
        progress: told how far a download or a conversion is.
        settings: whose state directory has the adapters; None reads lectern.toml and the environment.
        tenant: whose adapters; None: the settings' own.

    Raises:
        NotFound: no such model or adapter.
        CallerError: it is no chat model.
        Conflict: the adapter is deactivated.
        ModelUnavailable: it is known, but its files can't be had.
    """
    wanted = name or config.chat
    if wanted in config.endpoints:
        from framework.models.openai_compatible import OpenAICompatible

        return OpenAICompatible(config.endpoints[wanted], wanted)
    provider, separator, rest = wanted.partition(":")
    if separator and provider in PROVIDERS:
        return PROVIDERS.get(provider)(rest)
    from framework.models.adapters import split_name
    from framework.models.catalog import Catalog
    from framework.models.local_chat import LocalChat

    base, adapter_name = split_name(wanted)
    resolved = Catalog(config).resolve(base, progress=progress)
    _require_chat(resolved.card)
    adapter = _adapter(adapter_name, resolved.card, settings, tenant) if adapter_name else None
    roles = {} if adapter else _roles(resolved.card, settings, tenant)
    return LocalChat(
        resolved.path,
        f"{resolved.card.name}:{adapter_name}" if adapter_name else resolved.card.name,
        config=config.engine,
        threads=config.threads,
        guided=resolved.card.guided,
        adapter=adapter,
        roles=roles,
    )


def check_chat(
    name: str, config: ModelsConfig = DEFAULTS, *, settings: Settings | None = None, tenant: str | None = None
) -> None:
    """Refuse a name that `load_chat` would refuse, as far as that can be told without loading or fetching anything.

    Raises:
        NotFound: no such model or adapter.
        CallerError: it is no chat model.
        Conflict: the adapter is deactivated.
    """
    if name in config.endpoints or name.partition(":")[0] in PROVIDERS:
        return
    from framework.models.adapters import split_name
    from framework.models.catalog import Catalog

    base, adapter_name = split_name(name)
    card = Catalog(config).card(base)
    _require_chat(card)
    if adapter_name:
        _adapter(adapter_name, card, settings, tenant)


def _adapter(name: str, base: ModelCard, settings: Settings | None, tenant: str | None) -> Callable[[], Adapter]:
    """What gives the adapter as it is at each request; it is there and active now."""
    get = _getter(name, base, settings or Settings.load(), tenant)
    get()
    return get


def _roles(
    card: ModelCard, settings: Settings | None, tenant: str | None
) -> dict[Role, tuple[str, Callable[[], Adapter]]]:
    """The adapters that take a role for a model, looked up when they are asked for: they may come and go."""
    if not card.roles:
        return {}
    settings = settings or Settings.load()
    return {role: (name, _getter(name, card, settings, tenant)) for role, name in card.roles.items()}


def _getter(name: str, base: ModelCard, settings: Settings, tenant: str | None) -> Callable[[], Adapter]:
    from framework.models.adapters import AdapterStore, base_id

    return partial(AdapterStore.open(settings).get, name, tenant or settings.core.tenant, base_id(base))


def _require_chat(card: ModelCard) -> None:
    if card.kind != "chat":
        raise CallerError(
            f"{card.name!r} is of the kind {card.kind!r}, not a chat model.",
            hint="`lectern models list` shows the kinds.",
            field="model",
        )
