"""What goes into an evaluation and what comes out: one question with what is known of it, one output of a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from evals.calls import Called, Expected
from framework.messages import Message, ToolSpec


@dataclass(frozen=True, slots=True)
class Sample:
    """One question.

    Attributes:
        relevant: judged document ids with their grades; a grade of 0 or less is "judged, not relevant".
        answers: accepted answers; any one of them is right.
        answerable: False where the documents don't hold the answer, so that declining is right.
        excluded: document ids that are dropped from a ranking before it is scored.
        language: ISO 639-1; decides how answers are normalised.
        messages: the conversation that ends with the question, where that is not all of it.
        tools: what may be called.
        calls: what has to be called; with tools and no calls, calling anything is wrong.
    """

    id: str
    question: str
    relevant: Mapping[str, int] = field(default_factory=dict)
    answers: tuple[str, ...] = ()
    answerable: bool = True
    excluded: frozenset[str] = frozenset()
    language: str = "en"
    messages: tuple[Message, ...] = ()
    tools: tuple[ToolSpec, ...] = ()
    calls: tuple[Expected, ...] = ()


@dataclass(frozen=True, slots=True)
class Cited:
    """A citation as far as metrics look at it."""

    document_id: str
    quote: str


@dataclass(frozen=True, slots=True)
class Output:
    """What a target gave for one sample.

    Attributes:
        ranking: document ids, best first, each once.
        text: the answer without citation markers.
        seconds: wall time of this sample; set by the runner.
        notices: what the target reported as cut, short or skipped.
        calls: the tool calls that it made.
    """

    ranking: tuple[str, ...] = ()
    text: str = ""
    citations: tuple[Cited, ...] = ()
    declined: bool = False
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    notices: tuple[str, ...] = ()
    calls: tuple[Called, ...] = ()
