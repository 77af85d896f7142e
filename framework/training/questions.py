"""Documents with questions, as people write them, made into rows that teach reading.

One JSON object a line:

    {"id": "...", "kind": "...", "title": "...", "text": "...",
     "questions": [{"q": "...", "short": "...", "full": "..."?, "evidence": "..."?}],
     "unanswerable": ["..."],
     "follow_ups": [{"after": 0, "q": "...", "standalone": "...", "short": "...", "full": "..."?}]}

`short` stands in `text` letter by letter, or is "yes" or "no" with the sentence that says so as `evidence`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from framework.messages import assistant
from framework.prompts.reading import UNANSWERABLE, Style, reading_messages
from framework.training.datasets import ChatRow, PairRow, Provenance, read_models

Text = Annotated[str, Field(min_length=1)]
WORD = re.compile(r"\w{4,}")
YES_NO = ("yes", "no")


class Question(BaseModel):
    """A question that the text answers: `short` in its own words, `full` as a sentence."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    q: Text
    short: Text
    full: str | None = None
    evidence: str | None = None


class FollowUp(Question):
    """A question that is understood only after the one with index `after`; `standalone` is understood alone."""

    after: int
    standalone: Text


class QuestionedDocument(BaseModel):
    """A text and what can be asked about it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: Text
    text: Text
    kind: str = ""
    title: str = ""
    questions: tuple[Question, ...] = ()
    unanswerable: tuple[Text, ...] = ()
    follow_ups: tuple[FollowUp, ...] = ()
    licence: str = "NOASSERTION"
    synthetic: bool = False

    @model_validator(mode="after")
    def _answers_stand_in_the_text(self) -> QuestionedDocument:
        for question in (*self.questions, *self.follow_ups):
            proof = question.evidence if question.short.lower() in YES_NO else question.short
            if proof is None or proof not in self.text:
                raise ValueError(f"{question.q!r}: {proof or question.short!r} does not stand in the text")
            if question.evidence is not None and question.evidence not in self.text:
                raise ValueError(f"{question.q!r}: {question.evidence!r} does not stand in the text")
        for follow_up in self.follow_ups:
            if not 0 <= follow_up.after < len(self.questions):
                raise ValueError(f"{follow_up.q!r} comes after question {follow_up.after}, which there is not")
        return self


def read_documents(path: Path) -> list[QuestionedDocument]:
    """All documents of a file.

    Raises:
        CallerError: naming file, line and what is wrong.
    """
    return read_models(path, QuestionedDocument)


def is_questioned(value: dict[str, Any]) -> bool:
    """Whether a line of a file is such a document."""
    return "text" in value and ("questions" in value or "unanswerable" in value)


def reading_rows(documents: Sequence[QuestionedDocument], unrelated: int = 3, seed: int = 0) -> list[ChatRow]:
    """A row for each question and each way to answer it.

    Args:
        unrelated: how many questions of other documents each is asked besides, half of them about similar things; it
            does not answer them. A reader is asked about passages that only look right.
    """
    neighbours = _Neighbours(documents)
    rows = []
    for document in documents:
        dice = random.Random(f"{seed} {document.id}")
        heading = document.title if dice.random() < 0.75 else ""  # not every passage comes with one
        for before, question, answer, style in _asked(document):
            rows.append(_row(document, question, answer, style, heading, before))
        strange = neighbours.questions(document, unrelated, dice)
        rows += [_row(document, question, UNANSWERABLE, _either(dice), heading) for question in strange]
    return rows


def pair_rows(documents: Iterable[QuestionedDocument]) -> list[PairRow]:
    """A row for each question that can be understood alone: the text answers it."""
    rows = []
    for document in documents:
        provenance = Provenance(document.kind or "documents", document.licence, document.synthetic)
        asked = [question.q for question in document.questions] + [f.standalone for f in document.follow_ups]
        rows += [PairRow(question, document.text, document.id, provenance) for question in asked]
    return rows


def _asked(
    document: QuestionedDocument,
) -> Iterator[tuple[tuple[str, str] | None, str, str, Style]]:
    """What came before, question, answer, style."""
    dice = random.Random(document.id)
    for question in document.questions:
        yield None, question.q, question.short, Style.BRIEF
        if question.full:
            yield None, question.q, question.full, Style.SENTENCE
    for text in document.unanswerable:
        yield None, text, UNANSWERABLE, _either(dice)
    for follow_up in document.follow_ups:
        first = document.questions[follow_up.after]
        yield (first.q, first.short), follow_up.q, follow_up.short, Style.BRIEF
        if follow_up.full:
            yield (first.q, first.full or first.short), follow_up.q, follow_up.full, Style.SENTENCE


def _either(dice: random.Random) -> Style:
    return Style.SENTENCE if dice.random() < 0.3 else Style.BRIEF


def _row(
    document: QuestionedDocument,
    question: str,
    answer: str,
    style: Style,
    heading: str,
    before: tuple[str, str] | None = None,
) -> ChatRow:
    asked = reading_messages(question, document.text, heading, style, before)
    provenance = Provenance(document.kind or "documents", document.licence, document.synthetic)
    return ChatRow((*asked, assistant(answer)), document.id, provenance)


class _Neighbours:
    """Questions of other documents, those of similar ones first."""

    def __init__(self, documents: Iterable[QuestionedDocument]) -> None:
        self.documents = list(documents)
        self._words = [_words(d.text + " " + d.title) for d in self.documents]
        self._questions = [(place, q.q) for place, d in enumerate(self.documents) for q in d.questions]
        self._asked = [_words(text) for _, text in self._questions]

    def questions(self, document: QuestionedDocument, count: int, dice: random.Random) -> list[str]:
        own = next(place for place, other in enumerate(self.documents) if other is document)
        others = [n for n, (place, _) in enumerate(self._questions) if place != own]
        count = min(count, len(others))
        if not count:
            return []
        tried = dice.sample(others, min(len(others), 400))
        words = self._words[own]
        close = sorted(tried, key=lambda n: -len(self._asked[n] & words) / (1 + len(self._asked[n])))[
            : (count + 1) // 2
        ]
        chosen = [*close, *dice.sample([n for n in tried if n not in close], count - len(close))]
        return [self._questions[n][1] for n in chosen]


def _words(text: str) -> set[str]:
    return set(WORD.findall(text.lower()))
