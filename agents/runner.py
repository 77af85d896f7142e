"""Runs the graph for one question, as one stream of events; a run that is collected is the same stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from agents.deps import Deps
from agents.events import Answer, AnswerDelta, Event, RunFinished, RunStarted
from agents.seen import Frame, Seen
from agents.state import Json, Run, State, dump, load, messages
from agents.threads import Threads, exists, forget_steps, missing
from framework.errors import CallerError
from framework.messages import Message

if TYPE_CHECKING:
    from agents.react import Graph


SYSTEM_LEFT = "A system message in the history was left out: an agent has its own instructions."


@dataclass(frozen=True, slots=True)
class Runner:
    """One agent's way of answering; `threads` is where conversations are stored."""

    deps: Deps
    threads: Threads

    async def once(self, question: str, history: Sequence[Message] = ()) -> AsyncGenerator[Event, None]:
        """Answer without storing anything; `history` holds the turns before, which the caller keeps."""
        from agents.react import react

        kept = [dump(message) for message in history if message.role != "system"]
        notices = () if len(kept) == len(history) else (SYSTEM_LEFT,)
        async with aclosing(self._events(react(), _fresh(question, kept, notices), {}, "")) as events:
            async for event in events:
                yield event

    async def in_thread(self, question: str, thread_id: str) -> AsyncGenerator[Event, None]:
        """Answer as the thread's next turn. The question of a run that was cut short continues that run."""
        async with self.threads.open(self.deps.tenant, thread_id) as (name, saver):
            graph, config = _stored(name, saver)
            run, unfinished = await _last(graph, config)
            if unfinished and run is not None and run.question == question:
                start: State | None = None
            else:
                start, run = _fresh(question), None
            async with aclosing(self._events(graph, start, config, thread_id, run)) as events:
                async for event in events:
                    if isinstance(event, RunFinished):
                        await forget_steps(saver, name)
                    yield event

    async def resume(self, thread_id: str) -> AsyncGenerator[Event, None]:
        """Go on where the thread's last run was cut short; a run that had ended gives its answer again.

        Raises:
            NotFound: there is no such thread, or none of this tenant.
        """
        async with self.threads.open(self.deps.tenant, thread_id) as (name, saver):
            graph, config = _stored(name, saver)
            run, unfinished = await _last(graph, config)
            if run is None:
                raise missing(thread_id)
            if not unfinished and run.answer is not None:
                yield RunStarted(run.id, thread_id, self.deps.name)
                yield AnswerDelta(run.answer.text)
                yield RunFinished(run.answer)
                return
            async with aclosing(self._events(graph, None, config, thread_id, run)) as events:
                async for event in events:
                    if isinstance(event, RunFinished):
                        await forget_steps(saver, name)
                    yield event

    async def history(self, thread_id: str) -> list[Message]:
        """The thread's turns so far.

        Raises:
            NotFound: there is no such thread, or none of this tenant.
        """
        async with self.threads.open(self.deps.tenant, thread_id) as (name, saver):
            graph, config = _stored(name, saver)
            snapshot = await graph.aget_state(cast(Any, config))
            if not snapshot.values:
                raise missing(thread_id)
            return messages(snapshot.values.get("turns", []))

    async def forget(self, thread_id: str) -> None:
        """Delete a thread.

        Raises:
            NotFound: there is no such thread, or none of this tenant.
        """
        async with self.threads.open(self.deps.tenant, thread_id) as (name, saver):
            if not await exists(saver, name):
                raise missing(thread_id)
            await saver.adelete_thread(name)

    async def _events(
        self, graph: Graph, start: State | None, config: Json, thread_id: str, resumed: Run | None = None
    ) -> AsyncGenerator[Event, None]:
        """The run's events. What a resumed run had said already comes first, so that the pieces add up."""
        run = resumed or load(Run, cast(State, start)["run"])
        deadline = time.monotonic() + self.deps.budget.seconds
        deps = replace(self.deps, thread_id=thread_id, deadline=deadline)
        yield RunStarted(run.id, thread_id, deps.name)
        if resumed is not None and resumed.text:
            yield AnswerDelta(resumed.text)
        finished: RunFinished | None = None
        options: Any = {"durability": "sync"} if thread_id else {}
        stream = graph.astream(
            start,
            cast(Any, {**config, "recursion_limit": deps.budget.recursion_limit}),
            context=deps,
            stream_mode="custom",
            **options,
        )
        async with aclosing(cast(Any, stream)) as events:
            async for event in events:
                if isinstance(event, RunFinished):
                    finished = event  # told when the graph has ended, and so when it is stored
                else:
                    yield event
        assert finished is not None, "the graph ended without an answer"
        yield finished


async def last_seen(threads: Threads, tenant: str, thread_id: str) -> Seen | None:
    """A thread's last run as it ended; None where it did not end, or was stored without its frame.

    Raises:
        NotFound: there is no such thread, or none of this tenant.
    """
    async with threads.open(tenant, thread_id) as (name, saver):
        graph, config = _stored(name, saver)
        values = (await graph.aget_state(cast(Any, config))).values
    if not values:
        raise missing(thread_id)
    run = load(Run, values["run"])
    if run.answer is None or "frame" not in values:
        return None
    return Seen(run, load(Frame, values["frame"]))


async def collected(events: AsyncIterator[Event]) -> Answer:
    """A stream's answer: the unstreamed run."""
    answer = None
    async for event in events:
        if isinstance(event, RunFinished):
            answer = event.answer
    assert answer is not None
    return answer


def _fresh(question: str, turns: list[Json] | None = None, notices: tuple[str, ...] = ()) -> State:
    """The state that a new question starts from; without `turns` the thread's stay as they are.

    Raises:
        CallerError: the question is empty.
    """
    if not question.strip():
        raise CallerError("The question is empty.", field="question")
    state: State = {"run": dump(Run(uuid.uuid4().hex, question, notices=notices)), "results": cast(Any, None)}
    return state if turns is None else {**state, "turns": turns}


def _stored(name: str, saver: Any) -> tuple[Graph, Json]:
    from agents.react import react

    return react().copy({"checkpointer": saver}), {"configurable": {"thread_id": name}}


async def _last(graph: Graph, config: Json) -> tuple[Run | None, bool]:
    """The thread's last run, and whether it was cut short."""
    snapshot = await graph.aget_state(cast(Any, config))
    data = snapshot.values.get("run") if snapshot.values else None
    return (load(Run, data) if data is not None else None), bool(snapshot.next)
