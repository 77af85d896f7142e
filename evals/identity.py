"""Which models answer: what tells a name's answers from those of another time, with other files or settings."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from framework.config import Settings, cache_dir
from framework.documents import content_hash
from framework.errors import Conflict, LecternError, NotFound
from framework.models.base import ModelCard
from framework.models.config import ModelsConfig


def adapter_base(base: str, settings: Settings) -> str | None:
    """What adapters call this chat model, however it is spelled here; None: it is none that could have any."""
    from framework.models.adapters import AdapterStore, base_id
    from framework.models.catalog import Catalog
    from framework.models.chat import PROVIDERS

    models = settings.section("models", ModelsConfig)
    if base in models.endpoints or base.partition(":")[0] in PROVIDERS:
        return None
    try:
        card = Catalog(models).card(base)
    except LecternError:  # not at hand, or no model at all
        known = {adapter.base for adapter in AdapterStore.open(settings).list(settings.core.tenant)}
        return base if base in known else None
    return base_id(card) if card.kind == "chat" else None


def chat_identity(model: str, settings: Settings) -> dict[str, Any]:
    """Of a chat model, without its adapters: the endpoint, or the engine's settings and the files.

    Raises:
        NotFound: no such model.
        ModelUnavailable: a local folder that can't be used.
    """
    from framework.models.adapters import split_name
    from framework.models.catalog import Catalog
    from framework.models.chat import PROVIDERS

    models = settings.section("models", ModelsConfig)
    if model in models.endpoints:
        endpoint = models.endpoints[model]
        return {"endpoint": {"base_url": endpoint.base_url, "model": endpoint.model}}
    if model.partition(":")[0] in PROVIDERS:
        return {}
    return {"engine": asdict(models.engine), "files": _files(Catalog(models).card(split_name(model)[0]))}


def reranker_identity(models: ModelsConfig) -> dict[str, str]:
    """Of the configured reranker.

    Raises:
        NotFound: no such model.
        ModelUnavailable: its files can't be had.
    """
    from framework.models.catalog import Catalog

    return {"reranker": models.reranker, "reranker_files": _files(Catalog(models).resolve(models.reranker).card)}


def _files(card: ModelCard) -> str:
    """Digest of a model's files, or the revision of one from the hub, whose files never change."""
    from framework.models.digests import file_digest

    if card.origin == "hub":
        return card.revision or ""
    source = Path(card.source)
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    return content_hash(*(f"{path.relative_to(source)} {file_digest(path, cache_dir())}" for path in files))


def adapter_of(model: str, settings: Settings) -> dict[str, str]:
    """The content that an adapter's name has now, so that a run with other content is another run.

    Of a model without one: the contents of the adapters that take a role for it.

    Raises:
        NotFound: a model that could have adapters has none of this name.
        Conflict: it can't be used.
    """
    from framework.models.adapters import AdapterStore, split_name
    from framework.models.presets import preset_for

    base, name = split_name(model)
    id = adapter_base(base, settings)
    if id is None:
        return {}
    store, tenant = AdapterStore.open(settings), settings.core.tenant
    if name:
        return {"adapter": store.get(name, tenant, id).digest}
    known, found = preset_for(id), {}
    for role, adapter in known[1].roles.items() if known else ():
        with suppress(NotFound, Conflict):
            found[str(role)] = store.get(adapter, tenant, id).digest
    return found


def chat_about(model: str | None, settings: Settings) -> dict[str, Any]:
    """All that tells the answers of this name, or of the configured model, from those of another time."""
    name = model or settings.section("models", ModelsConfig).chat
    return {**chat_identity(name, settings), **adapter_of(name, settings)}
