"""What an agent saw of a question and said to it, kept for a while so that the answer can be judged.

Runs without a thread are kept in memory only, the newest ones; a thread stores its last run's. Nothing else of a run is
stored until somebody judges it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from agents.deps import Deps
from agents.prompting import by_turn, instructions
from agents.state import Run
from framework.messages import Message, ToolSpec

KEPT_RUNS = 1000
KEPT_TURNS = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """What stood around a run: system message, the turns before it, tools, and the model that answered, if one did."""

    agent: str
    model: str
    head: Message
    tools: tuple[ToolSpec, ...]
    before: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """A finished run in its frame; `run.answer` is set."""

    run: Run
    frame: Frame


class Recent:
    """The newest finished runs of this process, by tenant and run id."""

    def __init__(self, most: int = KEPT_RUNS) -> None:
        self._most = most
        self._runs: OrderedDict[tuple[str, str], Seen] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, tenant: str, seen: Seen) -> None:
        with self._lock:
            self._runs[tenant, seen.run.id] = seen
            while len(self._runs) > self._most:
                self._runs.popitem(last=False)

    def get(self, tenant: str, run_id: str) -> Seen | None:
        with self._lock:
            return self._runs.get((tenant, run_id))


RECENT = Recent()


async def frame_of(run: Run, turns: Sequence[Message], deps: Deps) -> Frame:
    """The frame of a run that ends now; `turns` are the conversation's before it."""
    model = (await deps.writer(run)).name if run.usage.completion_tokens else ""
    head = instructions("write" if deps.shelves else "plain", deps.name, deps.instructions)
    kept = [message for turn in by_turn(turns)[-KEPT_TURNS:] for message in turn]
    return Frame(deps.name, model, head, tuple(deps.executor.toolset.specs), tuple(kept))
