"""Judgements of answers: up, down, a corrected answer, a comment; stored with what the agent saw, by tenant."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from agents.seen import KEPT_RUNS, RECENT, Seen
from agents.state import dump, load
from framework.config import make_home
from framework.documents import is_text
from framework.errors import CallerError, Conflict, NotFound, OperatorError

Verdict: TypeAlias = Literal["up", "down"]
FILE_NAME = "feedback.sqlite"
MAX_TEXT = 20_000
BUSY_SECONDS = 30.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS feedback (
    tenant TEXT NOT NULL, run_id TEXT NOT NULL, given REAL NOT NULL, verdict TEXT NOT NULL,
    correction TEXT NOT NULL, comment TEXT NOT NULL, seen TEXT NOT NULL,
    PRIMARY KEY (tenant, run_id)
)
"""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What somebody said of an answer. `correction` is what it should have said; `given` is Unix time."""

    verdict: Verdict
    seen: Seen
    correction: str = ""
    comment: str = ""
    given: float = 0.0

    @property
    def run_id(self) -> str:
        return self.seen.run.id


@dataclass(frozen=True, slots=True)
class Feedback:
    """The judgements of one home directory."""

    home: Path

    def judge(
        self, tenant: str, run_id: str, verdict: str | None = None, *, correction: str = "", comment: str = ""
    ) -> Judgement:
        """Judge a run of this process, or change what was said of any; the last word counts.

        Args:
            verdict: "up" or "down"; a correction alone means "down".

        Raises:
            CallerError: neither verdict nor correction, a correction of an answer that is "up", a blank correction, a
                text too long.
            NotFound: no such run of this tenant is known here.
        """
        seen = RECENT.get(tenant, run_id) or self._stored(tenant, run_id)
        if seen is None:
            raise NotFound(
                f"There is no run {run_id[:80]!r} that can be judged.",
                hint=f"A process remembers at most its last {KEPT_RUNS} runs, a thread its last one.",
                field="run_id",
            )
        return self.store(tenant, seen, verdict, correction=correction, comment=comment)

    def judge_thread(
        self, tenant: str, thread_id: str, verdict: str | None = None, *, correction: str = "", comment: str = ""
    ) -> Judgement:
        """Judge the last answer of a thread.

        Raises:
            CallerError: as `judge` does.
            NotFound: there is no such thread.
            Conflict: its last run has not ended, or was stored before answers could be judged.
        """
        from agents.runner import last_seen
        from agents.threads import Threads
        from framework.bridge import run_sync

        seen = run_sync(last_seen(Threads(self.home), tenant, thread_id))
        if seen is None:
            raise Conflict(
                f"The last answer of the thread {thread_id!r} can't be judged: it is unfinished or too old.",
                hint="Ask again, then judge that answer.",
                field="thread_id",
            )
        return self.store(tenant, seen, verdict, correction=correction, comment=comment)

    async def ajudge(self, tenant: str, run_id: str, verdict: str | None, correction: str, comment: str) -> Judgement:
        """`judge` for asynchronous callers."""
        return await asyncio.to_thread(self.judge, tenant, run_id, verdict, correction=correction, comment=comment)

    def store(
        self, tenant: str, seen: Seen, verdict: str | None, *, correction: str = "", comment: str = ""
    ) -> Judgement:
        """Store a judgement of a run that was seen; one that was there is replaced.

        Raises:
            CallerError: as `judge` does.
        """
        judgement = Judgement(
            _verdict(verdict, correction),
            seen,
            _text(correction, "correction"),
            _text(comment, "comment"),
            time.time(),
        )
        row = (judgement.given, judgement.verdict, judgement.correction, judgement.comment)
        with self._open() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO feedback VALUES (?, ?, ?, ?, ?, ?, ?)",
                (tenant, seen.run.id, *row, json.dumps(dump(seen), ensure_ascii=False)),
            )
        return judgement

    def all(self, tenant: str) -> list[Judgement]:
        """A tenant's judgements, oldest first."""
        if not (self.home / FILE_NAME).exists():
            return []
        with self._open() as connection:
            rows = connection.execute(
                "SELECT verdict, seen, correction, comment, given FROM feedback WHERE tenant = ?"
                " ORDER BY given, run_id",
                (tenant,),
            ).fetchall()
        return [Judgement(row[0], load(Seen, json.loads(row[1])), *row[2:]) for row in rows]

    def remove(self, tenant: str, run_id: str) -> None:
        """Delete a judgement with all that was stored of its run.

        Raises:
            NotFound: there is none.
        """
        with self._open() as connection:
            gone = connection.execute("DELETE FROM feedback WHERE tenant = ? AND run_id = ?", (tenant, run_id))
        if not gone.rowcount:
            raise NotFound(f"There is no feedback on the run {run_id[:80]!r}.", field="run_id")

    def _stored(self, tenant: str, run_id: str) -> Seen | None:
        if not (self.home / FILE_NAME).exists():
            return None
        with self._open() as connection:
            row = connection.execute(
                "SELECT seen FROM feedback WHERE tenant = ? AND run_id = ?", (tenant, run_id)
            ).fetchone()
        return load(Seen, json.loads(row[0])) if row else None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        make_home(self.home)
        path = self.home / FILE_NAME
        try:
            connection = sqlite3.connect(path, timeout=BUSY_SECONDS)
            try:
                connection.execute("PRAGMA secure_delete = ON")
                with connection:
                    connection.execute(SCHEMA)
                    yield connection
            finally:
                connection.close()
        except sqlite3.DatabaseError as error:
            raise OperatorError(f"The feedback in {path} can't be read or written: {error}.") from error


def _verdict(verdict: str | None, correction: str) -> Verdict:
    if correction and not correction.strip():
        raise CallerError("The correction is blank.", hint="Say what is right, or leave it out.", field="correction")
    if verdict is None and correction:
        return "down"
    if verdict == "up" and not correction:
        return "up"
    if verdict == "down":
        return "down"
    if verdict == "up":
        raise CallerError("An answer that is right needs no correction.", hint='Say "down".', field="correction")
    raise CallerError(f'verdict must be "up" or "down", got {verdict!r}.', field="verdict")


def _text(text: str, name: str) -> str:
    if len(text) > MAX_TEXT:
        raise CallerError(f"{name} has {len(text)} characters, at most {MAX_TEXT} are taken.", field=name)
    if not is_text(text):
        raise CallerError(f"{name} holds half a character (a lone surrogate).", field=name)
    return text.strip()
