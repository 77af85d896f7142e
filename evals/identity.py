"""What stands behind a model's name now: its files, its engine or its server, and what adapters call it.

A run that was made with something else behind the same name is another run.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from framework.config import Settings, cache_dir
from framework.documents import content_hash
from framework.errors import LecternError
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
