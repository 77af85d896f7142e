"""Judged answers as rows to train on: what was right is learned, and preferred to what was wrong.

Each answer gives rows in two forms: as the agent was asked (instructions, earlier turns, calls and their results), and
as a reader is asked, with the passage that holds the answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from agents.citations import MARKER, without_markers
from agents.feedback import Judgement
from agents.state import Passage
from framework.documents import Citation
from framework.errors import CallerError
from framework.messages import Message, assistant, user
from framework.prompts.reading import UNANSWERABLE, Style, reading_messages
from framework.training.row_parsing import parse_row
from framework.training.row_parts import normal, words
from framework.training.rows import ChatRow, PreferenceRow, Provenance, Row, kind_of

Form: TypeAlias = Literal["agent", "reading"]
FORMS: tuple[Form, ...] = ("agent", "reading")
HELD = 0.6  # share of an answer's words that the passage it came from has
BRIEF = 6  # words
NO_HOLDER = "no passage of the run holds the answer (no reading row)"
NO_SOURCE = "a citation names no passage of the run (no agent row)"


@dataclass(frozen=True, slots=True)
class FeedbackRows:
    """The rows, and how many judgements gave none, by reason."""

    chat: tuple[ChatRow, ...]
    preference: tuple[PreferenceRow, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """How a question is asked in one form, and the right answer in that form."""

    messages: tuple[Message, ...]
    right: str
    document: str


def rows_from(judgements: Iterable[Judgement], licence: str, forms: Sequence[Form] = FORMS) -> FeedbackRows:
    """Chat rows of answers that were right or corrected; preference rows of these against the wrong ones.

    A wrong answer without a correction is set against the newest right one to the same question.

    Args:
        licence: an SPDX expression for what users and agents have written.
    """
    chat: list[ChatRow] = []
    preference: list[PreferenceRow] = []
    skipped: Counter[str] = Counter()
    given = list(judgements)
    good = {_question(j): j for j in given if j.verdict == "up" or j.correction}
    for judgement in given:
        source = judgement if judgement.verdict == "up" or judgement.correction else good.get(_question(judgement))
        if source is None:
            skipped["wrong, and nobody said what is right"] += 1
            continue
        for form in forms:
            prompt = _agent(source) if form == "agent" else _reading(source)
            if prompt is None:
                skipped[NO_SOURCE if form == "agent" else NO_HOLDER] += 1
                continue
            provenance = _provenance(source, licence, form)
            tools = source.seen.frame.tools if form == "agent" else ()
            if source is judgement:
                row = ChatRow((*prompt.messages, assistant(prompt.right)), prompt.document, provenance, tools)
                _take(row, chat, skipped)
            if judgement.verdict == "down":
                said = _said(judgement, form, source.seen.run.passages)
                if said is None:
                    skipped[NO_SOURCE] += 1
                    continue
                answers = assistant(prompt.right), assistant(said)
                pair = PreferenceRow(prompt.messages, *answers, prompt.document, provenance, tools)
                _take(pair, preference, skipped)
    return FeedbackRows(tuple(chat), tuple(preference), dict(skipped))


def _take(row: Row, rows: list[ChatRow] | list[PreferenceRow], skipped: Counter[str]) -> None:
    """Add a row that can be read back."""
    try:
        parse_row(row.to_json(), kind_of(row), "feedback")
    except CallerError as error:
        skipped[f"row would not be valid: {error.message}"] += 1
    else:
        rows.append(row)  # type: ignore[arg-type]  # the caller's list is of the row's kind


def _agent(judgement: Judgement) -> _Prompt | None:
    """As the agent was asked; a correction gets the number of the passage that holds it.

    None where a marker of the right answer can't be led back to a passage.
    """
    seen = judgement.seen
    messages = (seen.frame.head, *seen.frame.before, user(seen.run.question), *seen.run.messages)
    right, passage = _said(judgement, "agent", seen.run.passages), None
    if judgement.correction:
        right = _numbered(judgement.correction, _citations(judgement), seen.run.passages)
        passage = _holder(judgement, judgement.correction)
    if right is None:
        return None
    if passage is not None and f"[{passage.number}]" not in right:
        right = f"{right} [{passage.number}]"
    return _Prompt(messages, right, _document(judgement, passage or _holder(judgement, right)))


def _reading(judgement: Judgement) -> _Prompt | None:
    """As a reader is asked; None where no passage of the run holds the answer."""
    seen, right = judgement.seen, _right(judgement)
    if right == UNANSWERABLE:
        passage = seen.run.passages[0] if seen.run.passages else None
    else:
        passage = _holder(judgement, right)
    if passage is None:
        return None
    chunk = passage.hit.chunk
    heading = " > ".join(dict.fromkeys(part for part in (passage.hit.title, *chunk.heading_path) if part))
    turns = [turn.content for turn in seen.frame.before if turn.role in ("user", "assistant") and turn.content]
    before = (turns[-2], turns[-1]) if len(turns) >= 2 else None
    style = Style.BRIEF if len(words(right)) <= BRIEF else Style.SENTENCE
    messages = reading_messages(seen.run.question, chunk.text, heading, style, before)
    return _Prompt(tuple(messages), right, chunk.document_id)


def _right(judgement: Judgement) -> str:
    """The right answer as a reader says it."""
    answer = judgement.seen.run.answer
    assert answer is not None, "a run is judged when it has ended"
    if judgement.correction:
        return without_markers(judgement.correction)
    return UNANSWERABLE if answer.stop == "declined" else without_markers(answer.text)


def _said(judgement: Judgement, form: Form, passages: Sequence[Passage]) -> str | None:
    """What the agent answered, in a form's own words; None where it cites what is none of these passages."""
    answer = judgement.seen.run.answer
    assert answer is not None, "a run is judged when it has ended"
    if form == "agent":
        return _numbered(answer.text, answer.citations, passages) if answer.citations else answer.text
    return UNANSWERABLE if answer.stop == "declined" else without_markers(answer.text)


def _numbered(text: str, citations: Sequence[Citation], passages: Sequence[Passage]) -> str | None:
    """The text with the passages' own numbers in its markers, which are those that the search's result has.

    An agent that reads or quotes numbers its citations from 1. None where a marker can't be led back to a passage.
    """
    by_number = {citation.number: _origin(citation, passages) for citation in citations}
    pieces, end = [], 0
    for match in MARKER.finditer(text):
        found = [by_number.get(int(number)) for number in re.findall(r"\d+", match[1])]
        numbers = [passage.number for passage in found if passage is not None]
        if len(numbers) < len(found):
            return None
        space = match[0][: match[0].index("[")]
        pieces += [text[end : match.start()], space, *(f"[{number}]" for number in numbers)]
        end = match.end()
    return "".join([*pieces, text[end:]])


def _origin(citation: Citation, passages: Sequence[Passage]) -> Passage | None:
    """The passage that a quotation was taken from: the one of its number, if that holds it, or else the first."""
    holding = [
        passage
        for passage in passages
        if (passage.hit.chunk.document_id, passage.hit.version) == (citation.document_id, citation.version)
        and passage.hit.chunk.start <= citation.start
        and citation.end <= passage.hit.chunk.end
    ]
    return min(holding, key=lambda passage: (passage.number != citation.number, passage.number), default=None)


def _citations(judgement: Judgement) -> tuple[Citation, ...]:
    answer = judgement.seen.run.answer
    return answer.citations if answer else ()


def _holder(judgement: Judgement, text: str) -> Passage | None:
    """The passage that has most of the text's words, if it has enough of them."""
    said = set(words(without_markers(text)))
    shares = [
        (len(said & set(words(passage.hit.chunk.text))) / len(said), -passage.number, passage)
        for passage in judgement.seen.run.passages
        if said
    ]
    share, _, passage = max(shares, default=(0.0, 0, None), key=lambda item: item[:2])
    return passage if share >= HELD else None


def _document(judgement: Judgement, passage: Passage | None) -> str:
    """What a split keeps together: the answer's document, or the conversation."""
    if passage is not None:
        return passage.hit.chunk.document_id
    answer = judgement.seen.run.answer
    return f"thread {answer.thread_id}" if answer and answer.thread_id else f"run {judgement.run_id}"


def _question(judgement: Judgement) -> tuple[str, str]:
    """The same for the same question after the same one."""
    before = next((turn.content for turn in reversed(judgement.seen.frame.before) if turn.role == "user"), "")
    return normal(judgement.seen.run.question), normal(before)


def _provenance(judgement: Judgement, licence: str, form: Form) -> Provenance:
    frame = judgement.seen.frame
    details = {"run": judgement.run_id, "agent": frame.agent, "form": form, "verdict": judgement.verdict}
    if frame.model and not judgement.correction:
        details["model"] = frame.model
    return Provenance("feedback", licence, not judgement.correction, details)
