"""One process at a time for a directory, with the holder's name for whoever comes second."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import IO

from framework.errors import StoreLocked


class DirectoryLock:
    """An exclusive lock on a directory, held through an open file: it ends with the process, however that ends.

    The file tells who holds it (process id, start, command); what a dead process left there is overwritten.
    POSIX only.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "store.lock"
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock; does nothing when this object holds it.

        Raises:
            StoreLocked: another process holds it, or another object in this one. Nothing is waited for.
        """
        if self._file is not None:
            return
        import fcntl

        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = _describe(file.read())
            file.close()
            raise StoreLocked(
                f"The store {self.path.parent} is in use by {holder}.",
                hint="Wait until it has ended, or go through its server: commands do so while `lectern serve` runs.",
            ) from None
        file.truncate(0)
        json.dump({"pid": os.getpid(), "started": time.time(), "command": _command()}, file)
        file.flush()
        self._file = file

    def release(self) -> None:
        """Give the lock back; does nothing when it is not held."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None


def _command() -> str:
    return " ".join([Path(sys.argv[0]).name or "python", *sys.argv[1:]])[:200]


def _describe(text: str) -> str:
    try:
        record = json.loads(text)
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["started"]))
        who = "this process itself" if record["pid"] == os.getpid() else f"process {record['pid']}"
        return f"{who} ({record['command']}, since {started})"
    except (ValueError, KeyError, TypeError):
        return "another process"
