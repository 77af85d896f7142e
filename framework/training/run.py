"""The run folder: everything that a training run read, did and made.

    run.json          configuration, hashes of data and base, versions, counts, state, scores; replaced as a whole
    log.jsonl         one line for each report of the training: step, loss, learning rate, seconds
    curves.png        the same as a picture
    checkpoints/      states to resume from
    adapter/          the result, as PEFT saves it, with its model card; for full tuning `model/`

A run that was killed is taken up again by the same command: same configuration and data, same losses.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import SEEK_END
from itertools import count
from pathlib import Path
from typing import IO, Any, Final

from framework.errors import Conflict, OperatorError

RUNNING, FINISHED = "running", "finished"
PACKAGES: Final = ("torch", "transformers", "peft", "trl", "sentence-transformers", "accelerate", "datasets")


class RunFolder:
    """A run's folder.

    Args:
        path: it; made by `begin`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.adapter = path / "adapter"
        self.model = path / "model"
        self.checkpoints = path / "checkpoints"
        self.log_file = path / "log.jsonl"
        self.card = path / "adapter" / "README.md"

    def begin(self, facts: Mapping[str, Any], restart: bool = False) -> bool:
        """Take up a run, or start it; returns whether it is finished already.

        Args:
            facts: what makes it this run: configuration, data, base. JSON values.
            restart: throw away what an earlier run left here.

        Raises:
            Conflict: the folder holds a run of other facts, or something else.
        """
        if self.path.exists() and any(self.path.iterdir()) and not self._is_ours():
            raise Conflict(
                f"{self.path} holds something that is no run of `lectern train`.",
                hint="Choose another `out`.",
                field="out",
            )
        if restart and self.record.exists():
            shutil.rmtree(self.path)
        identity = json.loads(json.dumps(facts, default=str))
        if self.record.exists():
            known = self.read()
            changed = sorted(key for key in identity if known["facts"].get(key) != identity[key])
            if changed and not self.log_file.exists() and self.last_checkpoint() is None:
                shutil.rmtree(self.path)  # it never began: what stopped it has been mended
            elif changed:
                raise Conflict(
                    f"{self.path} holds a run with other {', '.join(changed)}.",
                    hint="Give --restart to throw it away, or choose another `out`.",
                    field="out",
                )
            else:
                return bool(known["state"] == FINISHED)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OperatorError(f"The run folder {self.path} can't be made: {error.strerror}.", field="out") from error
        self._write({"state": RUNNING, "started": time.time(), "facts": identity, "versions": versions()})
        return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out of the run.

        Raises:
            Conflict: another one trains here.
            OperatorError: the folder around it can't be made or written.
        """
        from filelock import FileLock, Timeout

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Beside the folder: in it, it would go with --restart.
            lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=0)
            lock.acquire()
        except Timeout:
            holder = self.read().get("process", "another") if self._is_ours() else "another"
            raise Conflict(
                f"Process {holder} trains in {self.path}.", hint="Wait for it, or choose another `out`.", field="out"
            ) from None
        except OSError as error:
            raise OperatorError(f"The run folder {self.path} can't be made: {error.strerror}.", field="out") from error
        try:
            yield
        finally:
            lock.release()

    def _is_ours(self) -> bool:
        """Whether run.json is a training run's; evaluations have one too."""
        try:
            values = self.read()
        except (OSError, ValueError):
            return False
        return isinstance(values, dict) and {"state", "facts"} <= values.keys()

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    def read(self) -> dict[str, Any]:
        """What run.json holds."""
        values: dict[str, Any] = json.loads(self.record.read_text(encoding="utf-8"))
        return values

    def note(self, **values: Any) -> None:
        """Add to run.json."""
        self._write({**self.read(), **values})

    def last_checkpoint(self) -> Path | None:
        """The newest state that was written whole."""
        found = [
            path
            for path in self.checkpoints.glob("checkpoint-*")
            if path.name.removeprefix("checkpoint-").isdigit() and _is_whole(path / "trainer_state.json")
        ]
        return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)

    def log(self, values: Mapping[str, Any]) -> None:
        """Append a report."""
        with self.log_file.open("a+b") as file:
            if file.tell() and not _ends_a_line(file):  # a kill has cut the last report off
                file.write(b"\n")
            file.write(json.dumps(values).encode("utf-8") + b"\n")

    def reports(self) -> list[dict[str, Any]]:
        """The training's reports by step; where a part was done again after a kill, the later ones."""
        if not self.log_file.exists():
            return []
        lines = list(_objects(self.log_file.read_text(encoding="utf-8")))
        latest = {(line["step"], "validation_loss" in line): line for line in lines}
        return [latest[key] for key in sorted(latest)]

    def _write(self, values: Mapping[str, Any]) -> None:
        draft = self.record.with_suffix(".draft")
        draft.write_text(json.dumps(values, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
        draft.replace(self.record)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_hash(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 by file name, with as much of the path before it as tells the files apart."""
    found = list(dict.fromkeys(paths))
    parts = next(n for n in count(1) if len({_tail(path, n) for path in found}) == len(found))
    return {_tail(path, parts): file_hash(path) for path in found}


def _tail(path: Path, count: int) -> str:
    return "/".join(path.parts[-count:])


def _is_whole(path: Path) -> bool:
    """Whether a file holds JSON to its end."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The lines that are whole."""
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _ends_a_line(file: IO[bytes]) -> bool:
    file.seek(-1, SEEK_END)
    return file.read(1) == b"\n"


def versions() -> dict[str, str]:
    """Versions of what computes."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("lectern", *PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
