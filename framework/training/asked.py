"""Questions that were made about a passage, the rules that they have to pass, and the rows they become."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from framework.messages import Message, ToolSpec, assistant
from framework.prompts.reading import UNANSWERABLE, Style, reading_messages
from framework.training.passages import Passage
from framework.training.row_parts import normal, numbers, words
from framework.training.rows import ChatRow, PairRow, Provenance

ItemKind: TypeAlias = Literal["answer", "unanswerable", "wrong passage", "follow_up", "cloze", "heading"]
QUESTION_WORDS = 3, 40
ANSWER_WORDS = 25
COPIED = 9  # words of the passage in a row, from which a question is a copy
SAME = 0.6  # F1 of the words of two answers that say the same
POINTS = re.compile(
    r"\b(passage|text|paragraph|excerpt|article|author|document|section) ?(above|below|says|states)?\b", re.I
)
# A conversation with search calls, from the question, the passages found, the place of the right one and the answer.
Trace: TypeAlias = Callable[[str, Sequence[Passage], int | None, str], tuple[tuple[Message, ...], tuple[ToolSpec, ...]]]


@dataclass(frozen=True, slots=True)
class Item:
    """A question and its answer.

    Attributes:
        short: the answer in the passage's own words, at `start`; empty where the passage has none.
        full: the same as a sentence; may be empty.
        before: question and answer that this one follows.
        standalone: a follow-up as it would be asked alone.
    """

    kind: ItemKind
    question: str
    short: str = ""
    start: int = -1
    full: str = ""
    before: tuple[str, str] | None = None
    standalone: str = ""


def find_span(passage: str, answer: str) -> tuple[str, int] | None:
    """The answer as the passage writes it, and where; case and white space may differ."""
    parts = [re.escape(part) for part in answer.strip().rstrip(".").split()]
    if not parts:
        return None
    found = re.search(r"(?<!\w)" + r"\s+".join(parts) + r"(?!\w)", passage) or re.search(
        r"(?<!\w)" + r"\s+".join(parts) + r"(?!\w)", passage, re.IGNORECASE
    )
    return (found[0], found.start()) if found else None


def fault(question: str, short: str, passage: Passage) -> str:
    """Why a question is not taken; empty where nothing speaks against it."""
    asked, read = words(question), normal(passage.text)
    if not QUESTION_WORDS[0] <= len(asked) <= QUESTION_WORDS[1]:
        return "question too short or too long"
    if any(" ".join(asked[n : n + COPIED]) in read for n in range(len(asked) - COPIED + 1)):
        return "question copies the passage"
    if POINTS.search(question) and not POINTS.search(passage.text):
        return "question speaks of the passage"
    if not short:
        return ""
    if len(words(short)) > ANSWER_WORDS:
        return "answer too long"
    if f" {normal(short)} " in f" {' '.join(asked)} ":
        return "question gives the answer away"
    return ""


def same_answer(a: str, b: str) -> bool:
    """Whether two short answers say the same: equal numbers, and most words in common."""
    first, second = words(a), words(b)
    if numbers(first) != numbers(second):
        return False
    shared = sum((Counter(first) & Counter(second)).values())
    return bool(shared) and 2 * shared / (len(first) + len(second)) >= SAME


def declined(answer: str) -> bool:
    return UNANSWERABLE in answer.casefold()


def chat_rows(item: Item, passage: Passage, provenance: Provenance) -> list[ChatRow]:
    """The rows that teach to read: a brief answer, a sentence where there is one, or to decline."""
    answers = [(item.short or UNANSWERABLE, Style.BRIEF)] if item.kind != "heading" else []
    if item.full:
        answers.append((item.full, Style.SENTENCE))
    rows = []
    for answer, style in answers:
        asked = reading_messages(item.question, passage.text, passage.heading, style, item.before)
        rows.append(ChatRow((*asked, assistant(answer)), passage.document, _with(provenance, item, passage)))
    return rows


def trace_row(
    item: Item, passage: Passage, others: Sequence[Passage], provenance: Provenance, trace: Trace
) -> ChatRow | None:
    """The item as an agent that searches would answer it; None for one that is no question of a user's."""
    if item.kind not in ("answer", "unanswerable", "follow_up") or (item.kind == "unanswerable") != (not item.full):
        return None
    found = [*others[:1], passage, *others[1:]]
    right = None if item.kind == "unanswerable" else found.index(passage)
    messages, tools = trace(item.standalone or item.question, found, right, item.full)
    return ChatRow(messages, passage.document, _with(provenance, item, passage, form="trace"), tools)


def pair_row(item: Item, passage: Passage, provenance: Provenance) -> PairRow | None:
    """The question and its passage; None for one that the passage does not answer."""
    if item.kind not in ("answer", "follow_up"):
        return None
    return PairRow(item.standalone or item.question, passage.text, passage.document, _with(provenance, item, passage))


def _with(provenance: Provenance, item: Item, passage: Passage, form: str = "") -> Provenance:
    """With what the row is, and where its answer stands in the document."""
    details = {**provenance.details, "kind": item.kind}
    if form:
        details["form"] = form
    if item.start >= 0:
        start = passage.start + item.start
        details |= {"start": start, "end": start + len(item.short)}
    return Provenance(provenance.source, provenance.licence, provenance.synthetic, details)
