"""What a long run has done, entry by entry, so that it goes on where it was killed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Any, Self

from framework.errors import CallerError, OperatorError


class Journal:
    """Entries by key in a file of JSON lines; each is on the disk when `add` returns. A context manager.

    A line that was cut off by a kill is dropped. The file's first line names what the run is; another run's is refused.

    Raises:
        CallerError: the file belongs to a run of another identity, or is no journal.
        OperatorError: it can't be written.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.identity = identity
        self.entries: dict[str, dict[str, Any]] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            whole = self._read()
            self._file = self.path.open("ab")
            self._file.truncate(whole)
            if whole == 0:
                self._write({"journal": self.identity})
        except OSError as error:
            raise OperatorError(f"The journal {self.path} can't be written: {error.strerror}.") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, key: str, entry: dict[str, Any]) -> None:
        """Store an entry."""
        try:
            self._write({"key": key, "entry": entry})
        except OSError as error:
            raise OperatorError(f"The journal {self.path} can't be written: {error.strerror}.") from error
        self.entries[key] = entry

    def _write(self, value: dict[str, Any]) -> None:
        assert self._file is not None, "a journal is open within its context"
        self._file.write(json.dumps(value, ensure_ascii=False).encode("utf-8") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self) -> int:
        """Take in the whole lines; how many bytes they are."""
        if not self.path.exists():
            return 0
        whole = 0
        for number, line in enumerate(self.path.read_bytes().splitlines(keepends=True)):
            if not line.endswith(b"\n"):
                break
            try:
                value = json.loads(line)
                if number == 0:
                    self._check(value["journal"])
                else:
                    self.entries[value["key"]] = value["entry"]
            except (ValueError, KeyError, TypeError) as error:
                raise CallerError(f"{self.path}:{number + 1} is no line of a journal.") from error
            whole += len(line)
        return whole

    def _check(self, identity: str) -> None:
        if identity != self.identity:
            raise CallerError(
                f"{self.path} was begun with another model or other settings.",
                hint="Finish it with those, or remove it to start anew.",
            )
