"""A dataset's card: what is in a file, under which licences, from where, and how much of it a model made.

`answers.jsonl` has `answers.card.md` beside it: a YAML block for programs and a short text for people, both made from
the rows alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from framework.errors import CallerError
from framework.training.rows import ChatRow, PairRow, Row, kind_of

SHOWN = 20  # sources of a card; the others are counted
SCHEMAS: Mapping[str, str] = {
    "chat": '`{"messages": [...], "tools": [...]?, "document", "provenance"}`: the assistant\'s turns are learned',
    "preference": '`{"prompt": [...], "chosen", "rejected", "tools": [...]?, "document", "provenance"}`',
    "pair": '`{"query", "positive", "negatives": [...]?, "document", "provenance"}`',
}


@dataclass(frozen=True, slots=True)
class Card:
    """What a file of rows holds.

    Attributes:
        sha256: of the file's bytes, as `sha256sum` shows it.
        synthetic: share of the rows that a model or a rule made.
        licences, sources, makers: number of rows by SPDX expression, by source, and by the model that made them.
        characters: of all texts that are learned from.
    """

    file: str
    kind: str
    rows: int
    documents: int
    characters: int
    synthetic: float
    licences: Mapping[str, int]
    sources: Mapping[str, int]
    makers: Mapping[str, int]
    sha256: str


def make_card(path: Path, rows: Iterable[Row]) -> Card:
    """The card of a file and the rows in it."""
    kept = list(rows)
    licences = Counter(row.provenance.licence for row in kept)
    sources = Counter(row.provenance.source for row in kept)
    makers = Counter(str(row.provenance.details["model"]) for row in kept if "model" in row.provenance.details)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Card(
        file=path.name,
        kind=kind_of(kept[0]) if kept else "chat",
        rows=len(kept),
        documents=len({row.document for row in kept}),
        characters=sum(len(text) for row in kept for text in texts_of(row)),
        synthetic=round(sum(row.provenance.synthetic for row in kept) / max(1, len(kept)), 4),
        licences=dict(licences.most_common()),
        sources=_first(sources),
        makers=dict(makers.most_common()),
        sha256=digest,
    )


def texts_of(row: Row) -> list[str]:
    """Every text of a row that a model reads or learns."""
    if isinstance(row, PairRow):
        return [row.query, row.positive, *row.negatives]
    messages = row.messages if isinstance(row, ChatRow) else (*row.prompt, row.chosen, row.rejected)
    return [part for m in messages for part in (m.content, *(call.arguments for call in m.tool_calls)) if part]


def card_path(path: Path) -> Path:
    """`answers.card.md` for `answers.jsonl` and `answers.jsonl.gz`."""
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return path.with_name(f"{name}.card.md")


def write_card(path: Path, card: Card) -> Path:
    """Write the card of the file at `path` beside it."""
    target = card_path(path)
    target.write_text(render(card), encoding="utf-8")
    return target


def read_card(path: Path) -> dict[str, Any] | None:
    """The YAML block of a file's card; None where there is no card.

    Raises:
        CallerError: the card can't be read.
    """
    import yaml  # type: ignore[import-untyped]  # ships no types

    target = card_path(path)
    if not target.is_file():
        return None
    try:
        parts = target.read_text(encoding="utf-8").split("---\n", 2)
        values = yaml.safe_load(parts[1]) if len(parts) == 3 else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CallerError(f"The card {target} can't be read: {error}.") from error
    if not isinstance(values, dict):
        raise CallerError(f"{target} is no dataset card.", hint="`lectern dataset card FILE --write` writes it anew.")
    return values


def render(card: Card) -> str:
    """The card as Markdown below its YAML block."""
    import yaml

    head = yaml.safe_dump(asdict(card), sort_keys=False, allow_unicode=True, width=1000)
    lines = [
        f"---\n{head}---\n",
        f"# {card.file}\n",
        f"{card.rows} {card.kind} rows from {card.documents} documents; {card.synthetic:.1%} are synthetic.\n",
        f"Schema, one JSON object a line: {SCHEMAS[card.kind]}\n",
        "| licence | rows |\n|---|---:|",
        *(f"| {_cell(name)} | {count} |" for name, count in card.licences.items()),
        "\n| source | rows |\n|---|---:|",
        *(f"| {_cell(name)} | {count} |" for name, count in card.sources.items()),
    ]
    if card.makers:
        lines += ["\n| made by | rows |\n|---|---:|", *(f"| {_cell(n)} | {c} |" for n, c in card.makers.items())]
    return "\n".join(lines) + "\n"


def _first(counts: Counter[str]) -> dict[str, int]:
    shown = dict(counts.most_common(SHOWN))
    rest = counts.total() - sum(shown.values())
    return {**shown, f"({len(counts) - SHOWN} more)": rest} if rest else shown


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
