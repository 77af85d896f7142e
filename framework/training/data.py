"""A run's data: files read as what they hold, split by document, made into rows, rendered for the base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.errors import CallerError
from framework.training.cleaning import split_of
from framework.training.config import DataConfig, Recipe
from framework.training.contrast import preference_rows
from framework.training.datasets import ChatRow, Kind, PreferenceRow, Row, detect_kind, kind_of, read_objects, read_rows
from framework.training.questions import QuestionedDocument, is_questioned, pair_rows, read_documents, reading_rows
from framework.training.tool_requests import Toolbox, calling_rows, is_toolbox, read_toolboxes

if TYPE_CHECKING:
    from framework.models.catalog import Resolved
    from framework.training.rendering import Example, ExamplePair

KINDS: dict[Recipe, Kind] = {
    "sft": "chat",
    "dpo": "preference",
    "reward": "preference",
    "grpo": "chat",
    "embedding": "pair",
    "reranker": "pair",
}


@dataclass(frozen=True, slots=True)
class Data:
    """The rows to train on and those that the loss is measured on; no document has rows in both."""

    train: tuple[Row, ...]
    validation: tuple[Row, ...]

    def examples(self, base: Resolved) -> list[Example]:
        """The training rows, rendered."""
        return list(_rendered(self.train, base))

    def validation_examples(self, base: Resolved) -> list[Example]:
        """The validation rows, rendered."""
        return list(_rendered(self.validation, base))


def pairs_of(rows: Sequence[Row], base: Resolved, length: int) -> list[ExamplePair]:
    """Preference rows, rendered.

    Raises:
        TooLarge: one has an answer that ends after `length` tokens.
    """
    from framework.models.chat_text import shared_text
    from framework.training.rendering import Renderer, check_length

    renderer = Renderer(shared_text(base.path, base.card.name))
    pairs = []
    for row in rows:
        if not isinstance(row, PreferenceRow):
            raise CallerError(f"This recipe learns from preferences, and {row.document!r} is a {kind_of(row)} row.")
        pair = renderer.pair(row)
        check_length(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)), length, row.document)
        pairs.append(pair)
    return pairs


def _rendered(rows: Sequence[Row], base: Resolved) -> Iterator[Example]:
    from framework.models.chat_text import shared_text
    from framework.training.rendering import Renderer

    renderer = Renderer(shared_text(base.path, base.card.name))
    for row in rows:
        if not isinstance(row, ChatRow):
            raise CallerError(f"This recipe learns from chat rows, and {row.document!r} is a {kind_of(row)} row.")
        yield from renderer.examples(row)


@dataclass(frozen=True, slots=True)
class Material:
    """What files hold, before it is made into rows.

    Documents with questions and toolboxes of all files are made into rows together, since each learns from what does
    not belong to it too; so they are split before, or a held-out question would be asked about a training document.
    """

    kind: Kind
    documents: tuple[QuestionedDocument, ...] = ()
    boxes: tuple[Toolbox, ...] = ()
    ready: tuple[Row, ...] = ()

    @classmethod
    def read(cls, paths: Sequence[Path], kind: Kind) -> Material:
        """Read each file as what its first line says it is.

        Raises:
            CallerError: a file can't be read, or holds something else; two documents have one id.
        """
        documents: list[QuestionedDocument] = []
        boxes: list[Toolbox] = []
        ready: list[Row] = []
        for path in paths:
            first: dict[str, Any] = next((value for _, value in read_objects(path)), {})
            if is_toolbox(first) and kind != "pair":
                boxes += read_toolboxes(path)
            elif is_questioned(first):
                documents += read_documents(path)
            else:
                ready += _rows(path, kind)
        _refuse_doubles([*(document.id for document in documents), *(box.id for box in boxes)])
        return cls(kind, tuple(documents), tuple(boxes), tuple(ready))

    def split(self, share: float, seed: int) -> tuple[Material, Material]:
        """What is trained on, and a share kept back, by document."""

        def held(name: str) -> bool:
            return split_of(name, {"validation": share}, seed) == "validation"

        def part(wanted: bool) -> Material:
            return Material(
                self.kind,
                tuple(d for d in self.documents if held(d.id) is wanted),
                tuple(b for b in self.boxes if held(b.id) is wanted),
                tuple(r for r in self.ready if held(r.document) is wanted),
            )

        return part(False), part(True)

    def rows(self, options: DataConfig, seed: int) -> list[Row]:
        """All of it as rows."""
        if self.kind == "pair":
            return [*pair_rows(self.documents), *self.ready]
        made = [
            *reading_rows(self.documents, options.unrelated, seed),
            *calling_rows(self.boxes, options.unrelated, seed),
        ]
        if self.kind == "chat":
            return [*made, *self.ready]
        made += [row for row in self.ready if isinstance(row, ChatRow)]
        return [*preference_rows(made, seed), *(row for row in self.ready if not isinstance(row, ChatRow))]


def read_any(path: Path) -> list[Row]:
    """A file's rows, whatever their kind; documents with questions and toolboxes as the chat rows that they become.

    Raises:
        CallerError: the file can't be read, or a line does not fit.
    """
    first: dict[str, Any] = next((value for _, value in read_objects(path)), {})
    if is_questioned(first) or is_toolbox(first):
        return Material.read([path], "chat").rows(DataConfig(unrelated=0), 0)
    rows: list[Row] = []
    rows += read_rows(path, detect_kind(path))
    return rows


def _rows(path: Path, kind: Kind) -> Sequence[Row]:
    found = detect_kind(path)
    if found == "chat" and kind == "preference":
        return read_rows(path, "chat")  # worse answers are made by rule
    if found != kind:
        raise CallerError(f"{path} has {found} rows, and this recipe learns from {kind} rows.", field="data.train")
    return read_rows(path, kind)


def _refuse_doubles(ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise CallerError(f"Two documents have the id {name!r}.", hint="Each needs an id of its own.")
        seen.add(name)
