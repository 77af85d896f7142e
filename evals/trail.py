"""The audit trail of promotions: one JSON object a line, appended and never changed.

A switch is announced before it is made, with everything that led to it, and confirmed afterwards:

    {"id": ..., "event": "decided", "action": "promote", "name": "answers", ...}      everything that is known
    {"id": ..., "event": "done"}                                                      the name has the new content

A process that is killed in between leaves an announcement without an end. Whoever comes next looks at the name: it
carries the id of the promotion that changed it last, so the end can be written for certain.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from framework.config import make_home
from framework.documents import content_hash
from framework.errors import Conflict, OperatorError, StoreCorrupt

Action: TypeAlias = Literal["promote", "rollback"]
Event: TypeAlias = Literal["decided", "refused", "judged", "done", "abandoned"]
OUTCOMES: Mapping[str, str] = {"done": "done", "refused": "refused", "abandoned": "abandoned", "judged": "judged"}
LOCK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A promotion, a refusal or a rollback, with its end.

    Attributes:
        outcome: "done", "refused", "judged" (nothing to switch), "abandoned", or "open" where the end is missing.
        facts: everything that was written of it.
    """

    id: str
    action: Action
    outcome: str
    facts: Mapping[str, Any]


class Trail:
    """The trail of a state directory."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "promotions"
        self.path = self.folder / "trail.jsonl"

    def append(self, identity: str, event: Event, **facts: Any) -> None:
        """Write a line; once this returns, neither a kill nor a power cut loses it.

        Raises:
            OperatorError: it can't be written.
        """
        values = {"id": identity, "at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts}
        line = json.dumps(values, ensure_ascii=False, allow_nan=False, default=str).encode() + b"\n"
        with self._locked("lock", LOCK_SECONDS), self.path.open("a+b") as file:
            _drop_torn_line(file)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def entries(self, tenant: str, name: str | None = None) -> list[Entry]:
        """A tenant's, oldest first.

        Raises:
            StoreCorrupt: a line of the trail, not the last, is damaged.
        """
        found: dict[str, Entry] = {}
        for line in self._lines():
            identity, event = line["id"], line["event"]
            known = found.get(identity)
            if known is None:
                outcome = OUTCOMES.get(event, "open")
                found[identity] = Entry(identity, line.get("action", "promote"), outcome, line)
            else:
                more = {key: value for key, value in line.items() if key not in ("id", "at", "event")}
                facts = {**known.facts, **more, "ended": line["at"]}
                found[identity] = Entry(identity, known.action, OUTCOMES.get(event, known.outcome), facts)
        mine = (entry for entry in found.values() if entry.facts.get("tenant") == tenant)
        return [entry for entry in mine if name in (None, entry.facts.get("name"))]

    @contextmanager
    def alone(self, tenant: str, name: str) -> Iterator[None]:
        """Nobody else promotes or rolls back this name meanwhile.

        Raises:
            Conflict: somebody does.
        """
        with self._locked(f"{content_hash(tenant, name)[:16]}.lock", 0, name):
            yield

    def _lines(self) -> Iterator[dict[str, Any]]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
            try:
                values = json.loads(line)
                _ = values["id"], values["event"], values["at"]
            except (ValueError, TypeError, KeyError) as error:
                raise StoreCorrupt(f"{self.path}:{number} is damaged.", hint="Put back a copy.") from error
            yield values

    @contextmanager
    def _locked(self, file: str, timeout: float, name: str = "") -> Iterator[None]:
        from filelock import FileLock, Timeout

        make_home(self.home)
        try:
            self.folder.mkdir(exist_ok=True)
            lock = FileLock(self.folder / file, timeout=timeout)
            lock.acquire()
        except Timeout:
            if name:
                raise Conflict(
                    f"{name!r} is being promoted or rolled back by another process.", hint="Wait until it has ended."
                ) from None
            raise OperatorError(f"{self.folder} has been locked for {timeout:g} seconds.") from None
        except OSError as error:
            raise OperatorError(f"{self.folder} can't be written: {error.strerror}.") from error
        try:
            yield
        finally:
            lock.release()


def _drop_torn_line(file: Any) -> None:
    """What a process that was killed has written of a line was never acknowledged."""
    file.seek(0)
    data = file.read()
    keep = data.rfind(b"\n") + 1
    if keep != len(data):
        file.truncate(keep)
