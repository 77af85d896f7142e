"""Threads: conversations stored in one SQLite file, by tenant.

A stored state is JSON with a signature, and nothing else: langgraph's own serializer can import classes that a file
names. The key lies beside the file, readable by its owner only, so that a state which was changed, or moved to another
thread, by someone who has only the file is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.config import make_home
from framework.documents import is_text
from framework.errors import CallerError, Conflict, NotFound, OperatorError, StoreCorrupt
from framework.messages import canonical_json

if TYPE_CHECKING:
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    from agents.saver import WholeWrites

FILE_NAME = "threads.sqlite"
KEY_NAME = "threads.key"
KEY_BYTES = 32
MAX_NAME = 200
BUSY_SECONDS = 30.0
DIGEST = hashlib.sha256
SIGNATURE = DIGEST().digest_size
_SEND = "__send__"


class StrictJson:
    """langgraph's serializer protocol over signed JSON. Reads nothing but what it wrote for the same thread.

    Besides JSON, langgraph stores `Send` (a node's name and its JSON argument) and errors, kept as their type's name.
    """

    def __init__(self, key: bytes, thread: str) -> None:
        self._key = key
        self._thread = thread.encode()

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Type name and signed bytes."""
        data = json.dumps(obj, default=_plain, separators=(",", ":")).encode()
        return "json", self._sign(data) + data

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """The value.

        Raises:
            StoreCorrupt: another type, another signature, or no JSON.
        """
        kind, signed = data
        if kind != "json" or not isinstance(signed, bytes):
            raise _refused(f"has a state of type {kind!r}, which is never read")
        if not hmac.compare_digest(signed[:SIGNATURE], self._sign(signed[SIGNATURE:])):
            raise _refused("has a state that Lectern did not write")
        return json.loads(signed[SIGNATURE:], object_hook=_restored)

    def _sign(self, data: bytes) -> bytes:
        return hmac.digest(self._key, self._thread + b"\0" + data, DIGEST)


def _plain(value: object) -> object:
    from langgraph.types import Send

    if isinstance(value, Send):
        return {_SEND: [value.node, value.arg]}
    if isinstance(value, BaseException):
        return type(value).__name__
    raise TypeError(f"A state holds a {type(value).__name__}, which is not JSON.")


def _restored(value: dict[str, Any]) -> object:
    if value.keys() != {_SEND}:
        return value
    from langgraph.types import Send

    return Send(*value[_SEND])


def _refused(what: str) -> StoreCorrupt:
    return StoreCorrupt(f"The stored thread {what}.", hint=f"Start a new thread, or restore {FILE_NAME} from a backup.")


@dataclass(frozen=True, slots=True)
class Threads:
    """The threads of one home directory."""

    home: Path

    @asynccontextmanager
    async def open(self, tenant: str, thread_id: str) -> AsyncIterator[tuple[str, AsyncSqliteSaver]]:
        """The key of a thread and a checkpointer for it, while no other run of this process works on it.

        Raises:
            CallerError: the id is empty, too long or no text.
            Conflict: the thread is busy.
            OperatorError: the file is no database, or its key is damaged.
        """
        import aiosqlite

        from agents.saver import WholeWrites

        if not thread_id or len(thread_id) > MAX_NAME:
            raise CallerError(f"A thread id has 1 to {MAX_NAME} characters, got {len(thread_id)}.", field="thread_id")
        if not is_text(thread_id):
            raise CallerError("A thread id must not hold half a character (a lone surrogate).", field="thread_id")
        name = canonical_json([tenant, thread_id])
        with _alone(f"{self.home} {name}", thread_id):
            serde = StrictJson(self._key(), name)
            async with aiosqlite.connect(self.home / FILE_NAME, timeout=BUSY_SECONDS) as connection:
                saver = WholeWrites(connection, serde=serde)
                try:
                    await _set_up(saver)
                except sqlite3.DatabaseError as error:
                    raise OperatorError(f"The threads in {self.home / FILE_NAME} can't be read: {error}.") from error
                try:
                    yield name, saver
                finally:
                    await saver.settle()

    def _key(self) -> bytes:
        """The signing key, made when first needed; of two processes making it at once, one wins."""
        path = self.home / KEY_NAME
        if not path.exists():
            make_home(self.home)
            own = self.home / f"{KEY_NAME}.{os.getpid()}.{secrets.token_hex(4)}"
            descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
            try:
                os.link(own, path)
            except FileExistsError:
                pass
            finally:
                own.unlink()
        key = path.read_bytes()
        if len(key) != KEY_BYTES:
            raise StoreCorrupt(
                f"{path} is no key of {KEY_BYTES} bytes.", hint=f"Restore it, or remove it and {FILE_NAME} with it."
            )
        return key


async def forget_steps(saver: AsyncSqliteSaver, name: str) -> None:
    """Drop what a finished run no longer needs: all but the thread's last state."""
    newest = "(SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = ?)"
    async with saver.lock:
        await saver.conn.execute(
            f"DELETE FROM checkpoints WHERE thread_id = ? AND checkpoint_id < {newest}",
            (name, name),
        )
        await saver.conn.execute("DELETE FROM writes WHERE thread_id = ?", (name,))
        await saver.conn.commit()


async def exists(saver: AsyncSqliteSaver, name: str) -> bool:
    """Whether anything is stored of a thread, readable or not."""
    async with saver.lock, saver.conn.execute("SELECT 1 FROM checkpoints WHERE thread_id = ?", (name,)) as found:
        return await found.fetchone() is not None


_BUSY: set[str] = set()
_BUSY_LOCK = threading.Lock()


async def _set_up(saver: WholeWrites) -> None:
    """Make the tables. SQLite lets nobody wait for its switch to the write-ahead log: who comes second tries again."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return await saver.setup()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.02)


@contextmanager
def _alone(key: str, thread_id: str) -> Iterator[None]:
    with _BUSY_LOCK:
        if key in _BUSY:
            raise Conflict(f"The thread {thread_id!r} is answering another question.", hint="Wait for it to end.")
        _BUSY.add(key)
    try:
        yield
    finally:
        with _BUSY_LOCK:
            _BUSY.discard(key)


def missing(thread_id: str) -> NotFound:
    """The same words for a thread that does not exist and for another tenant's."""
    return NotFound(f"There is no thread {thread_id!r}.", field="thread_id")
