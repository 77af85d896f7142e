"""What a run knows, as frozen dataclasses inside the nodes and as plain JSON between them.

langgraph stores the JSON form after every step; reading it back checks every field, so that a state which
something else wrote is refused instead of believed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeAlias, TypedDict, TypeVar

from pydantic import TypeAdapter, ValidationError

from agents.events import Answer, StopReason
from framework.documents import Citation, Hit
from framework.errors import StoreCorrupt
from framework.messages import Message, ToolCall, Usage

Json: TypeAlias = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that the model asked for in the present step. One with a `refusal` is answered by that text, not made."""

    call: ToolCall
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Passage:
    """A numbered hit that can be cited in this run; `tool` is the search that found it."""

    number: int
    tool: str
    hit: Hit


@dataclass(frozen=True, slots=True)
class Returned:
    """What one call of the present step gave back; `place` is its position among the calls."""

    place: int
    content: str
    hits: tuple[Hit, ...] = ()
    error: bool = False
    truncated: int = 0
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """One question on its way to an answer.

    Attributes:
        query: what is searched for: the question, put together with the one before where it continues it.
        messages: this run's own messages after the question.
        asked: calls of the present step that have no result yet.
        seen: `limits.identity` of every call made.
        text: what was streamed as answer so far.
        findings: results of tools other than searches: what a quoting agent answers with when no passage does.
        failure: what a search that failed said.
        chosen: the tool that a quoting agent turned to when no passage answered.
        calling: no passage answered, and the model calls the other tools by itself.
        barred: the limit that refused a call; the model has one turn left, without tools.
        stop: set when the run is to end.
    """

    id: str
    question: str
    query: str = ""
    messages: tuple[Message, ...] = ()
    asked: tuple[Asked, ...] = ()
    seen: tuple[str, ...] = ()
    passages: tuple[Passage, ...] = ()
    steps: int = 0
    tool_calls: int = 0
    usage: Usage = Usage()  # noqa: RUF009  frozen
    text: str = ""
    citations: tuple[Citation, ...] = ()
    findings: tuple[str, ...] = ()
    failure: str = ""
    chosen: str = ""
    calling: bool = False
    barred: StopReason | None = None
    stop: StopReason | None = None
    notices: tuple[str, ...] = ()
    answer: Answer | None = None

    def noting(self, *notices: str) -> Run:
        """With these notices added, each once."""
        new = [notice for notice in dict.fromkeys(notices) if notice and notice not in self.notices]
        return replace(self, notices=(*self.notices, *new))


def gather(before: list[Json], added: list[Json] | None) -> list[Json]:
    """Results of calls that run side by side add up; None clears them for the next step."""
    return [] if added is None else [*before, *added]


class State(TypedDict, total=False):
    """The graph's channels, all JSON.

    `turns`: earlier messages of the thread; `results`: of the present step; `frame`: `seen.Frame` of a run that ended.
    """

    turns: list[Json]
    run: Json
    frame: Json
    results: Annotated[list[Json], gather]


class Job(TypedDict):
    """What one task of the act node gets: a call, its place in the step, and the run that it belongs to."""

    call: Json
    place: int
    step: int
    run_id: str


_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    """Made once a type: building one takes a millisecond."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def dump(value: object) -> Json:
    """A dataclass of this module as JSON."""
    data: Json = _adapter(type(value)).dump_python(value, mode="json")
    return data


def load(kind: type[T], data: object) -> T:
    """The dataclass that `dump` wrote.

    Raises:
        StoreCorrupt: a field is missing or of the wrong type.
    """
    try:
        value: T = _adapter(kind).validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StoreCorrupt(
            f"A stored thread holds no valid {kind.__name__}: {place}: {first['msg']}.",
            hint="Start a new thread; this one can't be continued.",
        ) from error
    return value


def messages(wire: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Stored turns as messages."""
    return [load(Message, dict(turn)) for turn in wire]
