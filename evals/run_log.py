"""A run's folder: `samples.jsonl`, one line a sample as it finishes, and `run.json`, what was run and what came out.

A run that was killed is continued: its complete lines stay, a torn last line is dropped, failed samples are tried
again. A later line of the same sample goes before an earlier one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from framework.errors import Conflict, NotFound, StoreCorrupt

SAMPLES, RUN = "samples.jsonl", "run.json"


@dataclass(frozen=True, slots=True)
class Record:
    """One sample, run. `scores` has the metrics that apply to it; `error` says how it failed."""

    id: str
    input: Mapping[str, Any]
    output: Mapping[str, Any] | None
    scores: Mapping[str, float]
    error: str | None
    seconds: float


class RunLog:
    """The log of one run, open for appending.

    Args:
        folder: made if it is not there.
        fingerprint: of everything that decides the outputs; a folder is only ever continued with the same.
        fresh: drop what an earlier run left.

    Raises:
        Conflict: the folder holds a run of another configuration.
        StoreCorrupt: a line of the log, not the last, is damaged.
    """

    def __init__(self, folder: Path, fingerprint: str, *, fresh: bool = False) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.before: Mapping[str, Any] = {}
        self.records: dict[str, Record] = {}
        self._stream: TextIO | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            (folder / RUN).unlink(missing_ok=True)
            (folder / SAMPLES).unlink(missing_ok=True)
        elif (folder / RUN).is_file():
            self.before = read_run(folder)
            self._continue()
        elif (folder / SAMPLES).exists():
            raise Conflict(f"{folder} holds a {SAMPLES} but no {RUN}.", hint="Choose another --out, or --fresh.")

    def _continue(self) -> None:
        if self.before.get("fingerprint") != self.fingerprint:
            raise Conflict(
                f"{self.folder} holds a run of another configuration.",
                hint="Choose another --out, or replace it with --fresh.",
                field="--out",
            )
        path = self.folder / SAMPLES
        if path.exists():
            keep = _whole_lines(path)
            with path.open("r+b") as stream:
                stream.truncate(keep)
            self.records = _read_records(path)

    @property
    def done(self) -> set[str]:
        """Ids of the samples that were run without an error."""
        return {key for key, record in self.records.items() if record.error is None}

    def append(self, record: Record) -> None:
        """Write one record; once this returns, killing the process does not lose it."""
        assert self._stream is not None, "use the log as a context manager"
        self._stream.write(json.dumps(asdict(record), ensure_ascii=False, allow_nan=False) + "\n")
        self._stream.flush()
        self.records[record.id] = record

    def write_run(self, values: Mapping[str, Any]) -> None:
        """Replace run.json, whole or not at all."""
        text = json.dumps({"fingerprint": self.fingerprint, **values}, indent=2, ensure_ascii=False, allow_nan=False)
        partial = self.folder / f"{RUN}.partial"
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(self.folder / RUN)

    def __enter__(self) -> Self:
        self._stream = (self.folder / SAMPLES).open("a", encoding="utf-8", errors="backslashreplace")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stream is not None
        self._stream.close()
        self._stream = None


def read_run(folder: Path) -> dict[str, Any]:
    """run.json of a folder.

    Raises:
        NotFound: the folder holds no run.
        StoreCorrupt: run.json is damaged.
    """
    path = folder / RUN
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{folder} holds no run: there is no {RUN}.") from None
    except ValueError as error:
        raise StoreCorrupt(f"{path} is damaged: {error}.", hint="Run again with --fresh.") from error
    if not isinstance(values, dict):
        raise StoreCorrupt(f"{path} is damaged: no JSON object.", hint="Run again with --fresh.")
    return values


def read_records(folder: Path) -> dict[str, Record]:
    """The records of a folder by sample id, the last of each."""
    read_run(folder)
    path = folder / SAMPLES
    return _read_records(path) if path.exists() else {}


def _whole_lines(path: Path) -> int:
    """Bytes up to the end of the last line that was written whole."""
    data = path.read_bytes()
    return data.rfind(b"\n") + 1


def _read_records(path: Path) -> dict[str, Record]:
    records = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line:
            continue
        try:
            record = Record(**json.loads(line))
        except (ValueError, TypeError) as error:
            hint = "Run again with --fresh."
            raise StoreCorrupt(f"{path}:{number} is no record of a sample: {error}.", hint=hint) from error
        records[record.id] = record
    return records
