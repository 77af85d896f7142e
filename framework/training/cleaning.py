"""Rows without repetitions, split by document, and without what an evaluation is going to ask."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from framework.errors import CallerError
from framework.messages import Message
from framework.training.leaks import HeldOut, Leak, find_leaks, read_held_out
from framework.training.row_parts import normal, numbers, parts_of, take_apart, words
from framework.training.rows import ChatRow, PreferenceRow, Row
from framework.training.shingles import NearIndex

__all__ = [
    "NEAR",
    "Clean",
    "HeldOut",
    "Leak",
    "Repetition",
    "deduplicate",
    "find_leaks",
    "read_held_out",
    "split_of",
    "split_rows",
]
NEAR = 0.8
SHORT = 6  # words of an answer that counts as a whole
R = TypeVar("R", bound=Row)


@dataclass(frozen=True, slots=True)
class Repetition:
    """A row that says what an earlier one says; both are places in the sequence that was given."""

    place: int
    of: int
    reason: Literal["equal", "near"]


@dataclass(frozen=True, slots=True)
class Clean(Generic[R]):
    """The rows that stay, in their order, and those that left."""

    rows: tuple[R, ...]
    repetitions: tuple[Repetition, ...]


def deduplicate(rows: Sequence[R], near: float | None = NEAR) -> Clean[R]:
    """The first of every group of equal or nearly equal rows.

    Equal: every text is the same but for case, spaces and punctuation. Nearly equal: questions and answers are together
    at least `near` similar (words and pairs of words, Jaccard), have the same numbers in them, and so are the passages
    read for them; answers of up to 6 words have to be equal. None: equal ones only.

    Raises:
        CallerError: `near` is out of range.
    """
    if near is not None and not 0.5 <= near <= 1:
        raise CallerError(f"near must be from 0.5 to 1, got {near}.", field="near")
    exact: dict[Hashable, int] = {}
    passages, index = (NearIndex(near), NearIndex(near)) if near is not None else (None, None)
    groups: dict[str, int] = {}
    kept, dropped = [], []
    for place, row in enumerate(rows):
        identity = _identity(row)
        before = exact.setdefault(identity, place)
        if before != place:
            dropped.append(Repetition(place, before, "equal"))
            continue
        if passages is not None and index is not None:
            twin = _near(row, place, passages, index, groups)
            if twin is not None:
                exact[identity] = twin
                dropped.append(Repetition(place, twin, "near"))
                continue
        kept.append(row)
    return Clean(tuple(kept), tuple(dropped))


def split_of(document: str, shares: Mapping[str, float], seed: int = 0) -> str:
    """The split that a document falls into: decided by its name and the seed alone, whatever other documents there are.

    `shares` are taken in their order; what they leave of 1 belongs to "train".
    """
    digest = hashlib.sha256(f"{seed}\0{document}".encode("utf-8", "surrogatepass")).digest()
    point, reach = int.from_bytes(digest[:8], "big") / 2**64, 0.0
    for name, share in shares.items():
        reach += share
        if point < reach:
            return name
    return "train"


def split_rows(rows: Iterable[R], shares: Mapping[str, float], seed: int = 0) -> dict[str, list[R]]:
    """Rows by split, those of one document together: `{"train": [...], "validation": [...]}`.

    Adding documents moves no other row. A split may be empty where there are few documents.

    Raises:
        CallerError: the shares are not between 0 and 1, or leave nothing to "train".
    """
    if "train" in shares or not all(0 <= share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        raise CallerError(
            f"The shares {dict(shares)} must be from 0 and add up to less than 1.",
            hint='What they leave is "train".',
            field="shares",
        )
    splits: dict[str, list[R]] = {"train": [], **{name: [] for name in shares}}
    for row in rows:
        splits[split_of(row.document, shares, seed)].append(row)
    return splits


def _identity(row: Row) -> Hashable:
    """Equal for rows whose texts are the same; order and role count, a tool's description does not."""
    if isinstance(row, ChatRow | PreferenceRow):
        said = row.messages if isinstance(row, ChatRow) else (*row.prompt, row.chosen, row.rejected)
        texts = [text for message in said for text in _said(message)]
        return _digest([*texts, *sorted(tool.name for tool in row.tools)])
    return _digest([_exact(row.query), _exact(row.positive), *map(_exact, row.negatives)])


def _said(message: Message) -> Iterator[str]:
    yield message.role
    for part in take_apart(message.content) if message.role == "user" else (message.content,):
        yield _exact(part)
    for call in message.tool_calls:
        yield f"{call.name}({call.arguments})"


def _exact(text: str) -> str:
    return normal(text) or " ".join(text.split())  # a text of signs alone has no words


def _digest(texts: Sequence[str]) -> bytes:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).digest()


def _near(row: Row, place: int, passages: NearIndex, index: NearIndex, groups: dict[str, int]) -> int | None:
    """The place of an earlier row that is nearly the same; otherwise the row is remembered."""
    parts = parts_of(row)
    passage = "\n".join(parts.read)
    if passage not in groups:
        found = words(passage)
        twin = passages.keep(found, len(groups), numbers(found))
        groups[passage] = len(groups) if twin is None else twin
    asked, answered = (words("\n".join(texts)) for texts in (parts.asked, parts.answered))
    # A short answer says something else when it differs at all: yes, no.
    short, said = (answered, asked) if len(answered) <= SHORT else ((), (*asked, *answered))
    return index.keep(said, place, (type(row), groups[passage], short, numbers(said)))
