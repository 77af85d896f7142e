"""What an agent saw of a question and said to it, kept for a while so that the answer can be judged.

Runs without a thread are kept in memory only, the newest ones; a thread stores its last run's. Nothing else of a run is
stored until somebody judges it.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from agents.deps import Deps
from agents.prompting import by_turn, instructions
from agents.state import Run, dump, load
from framework.messages import Message, ToolSpec

KEPT_RUNS = 1000
KEPT_BYTES = 64 * 2**20
RUN_SHARE = 1 / 8  # of these bytes, for one run
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
    """The newest finished runs of this process, by tenant and run id, as JSON.

    Where they become too many or too large, the tenant that takes most gives up its oldest: one tenant's load never
    takes another's few away. A run that would take more than its share alone is not kept.
    """

    def __init__(self, most: int = KEPT_RUNS, most_bytes: int = KEPT_BYTES) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._runs: dict[str, OrderedDict[str, bytes]] = {}
        self._lock = threading.Lock()

    def keep(self, tenant: str, seen: Seen) -> None:
        kept = json.dumps(dump(seen), ensure_ascii=False).encode("utf-8", "surrogatepass")
        with self._lock:
            runs = self._runs.setdefault(tenant, OrderedDict())
            runs.pop(seen.run.id, None)
            if len(kept) <= self._most_bytes * RUN_SHARE:
                runs[seen.run.id] = kept
            while sum(map(len, self._runs.values())) > self._most:
                self._drop(max(self._runs, key=lambda name: len(self._runs[name])))
            while sum(map(self._bytes, self._runs)) > self._most_bytes:
                self._drop(max(self._runs, key=self._bytes))
            if not runs:
                self._runs.pop(tenant, None)

    def get(self, tenant: str, run_id: str) -> Seen | None:
        with self._lock:
            kept = self._runs.get(tenant, OrderedDict()).get(run_id)
        return None if kept is None else load(Seen, json.loads(kept.decode("utf-8", "surrogatepass")))

    def clear(self) -> None:
        """Forget all, as a new process has."""
        with self._lock:
            self._runs.clear()

    def _bytes(self, tenant: str) -> int:
        return sum(map(len, self._runs[tenant].values()))

    def _drop(self, tenant: str) -> None:
        """Forget a tenant's oldest run."""
        self._runs[tenant].popitem(last=False)
        if not self._runs[tenant]:
            del self._runs[tenant]


RECENT = Recent()


async def frame_of(run: Run, turns: Sequence[Message], deps: Deps) -> Frame:
    """The frame of a run that ends now; `turns` are the conversation's before it."""
    model = (await deps.writer(run)).name if run.usage.completion_tokens else ""
    head = instructions("write" if deps.shelves else "plain", deps.name, deps.instructions)
    kept = [message for turn in by_turn(turns)[-KEPT_TURNS:] for message in turn]
    return Frame(deps.name, model, head, tuple(deps.executor.toolset.specs), tuple(kept))
