"""Files are read by a child process, which a hostile file can slow, fill or crash without harm to the indexing run.

The child is started when first needed, kept between files, and replaced after it was killed. It gets a path and answers
with JSON: nothing is unpickled. It runs with the user's own rights: it bounds time and memory, it is no sandbox.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from framework.documents import Section
from framework.errors import LecternError
from indexers.loaders import formats
from indexers.loaders.extracted import Extracted, Limits, Unreadable

HEADER = struct.Struct(">Q")
READ_SIZE = 1 << 20


class LoaderProcess:
    """Reads files one at a time in a child process. For one thread; a context manager."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LoaderProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr]  # both are pipes, as _start made them
            self._child = None

    def load(self, path: Path) -> tuple[Extracted, str]:
        """The file's text, and the SHA-256 of its bytes.

        Raises:
            Unreadable: with the reason; the child was replaced if it hung, died or grew too large.
        """
        child = self._child or self._start()
        deadline = time.monotonic() + self.limits.seconds
        try:
            _write(child.stdin, {"path": str(path), "limits": asdict(self.limits)})
            answer = self._answer(child, deadline)
        except TimeoutError:
            self.close()
            raise Unreadable(f"Reading it took longer than {self.limits.seconds:g} s.") from None
        except (EOFError, BrokenPipeError):
            status = child.wait()
            self.close()
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            raise Unreadable(f"The process that read it died ({how}), perhaps for want of memory.") from None
        if "unreadable" in answer:
            raise Unreadable(answer["unreadable"])
        found = answer["extracted"]
        sections = tuple(Section(tuple(path), start, end) for path, start, end in found["sections"])
        return Extracted(**{**found, "sections": sections, "page_starts": tuple(found["page_starts"])}), answer["hash"]

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "indexers.loaders.process", str(self.limits.memory_mb)]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        return self._child

    def _answer(self, child: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
        assert child.stdout is not None
        (size,) = HEADER.unpack(_read(child.stdout.fileno(), HEADER.size, deadline))
        if size > 16 * self.limits.bytes + READ_SIZE:
            self.close()
            raise Unreadable(f"It extracts to {size} bytes, out of all proportion.")
        answer: dict[str, Any] = json.loads(_read(child.stdout.fileno(), size, deadline))
        return answer


def _read(pipe: int, size: int, deadline: float) -> bytes:
    parts: list[bytes] = []
    while size:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        part = os.read(pipe, min(size, READ_SIZE))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(pipe: IO[bytes] | None, value: dict[str, Any]) -> None:
    assert pipe is not None
    data = json.dumps(value).encode("ascii")
    pipe.write(HEADER.pack(len(data)) + data)
    pipe.flush()


def serve(memory_mb: int) -> None:
    """The child: answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get into the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests = sys.stdin.buffer
    while header := requests.read(HEADER.size):
        request = json.loads(requests.read(HEADER.unpack(header)[0]))
        _write(answers, _attempt(Path(request["path"]), Limits(**request["limits"])))


def _attempt(path: Path, limits: Limits) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(limits.bytes + 1)
        if len(data) > limits.bytes:
            raise Unreadable(f"It is larger than {limits.bytes / 2**20:g} MB.")
        found = formats.load(data, path.name, limits)
        if len(found.text) > 4 * limits.bytes:
            raise Unreadable(f"It extracts to {len(found.text)} characters, out of all proportion.")
        sections = [(s.path, s.start, s.end) for s in found.sections]
        extracted = {name: getattr(found, name) for name in ("text", "media_type", "title", "page_starts")}
        extracted |= {"metadata": dict(found.metadata), "sections": sections}
        return {"extracted": extracted, "hash": hashlib.sha256(data).hexdigest()}
    except Unreadable as error:
        return {"unreadable": str(error)}
    except MemoryError:
        return {"unreadable": f"Reading it takes more than {limits.memory_mb} MB of memory."}
    except OSError as error:
        return {"unreadable": f"It can't be opened: {error.strerror or error}."}
    except LecternError as error:
        return {"unreadable": str(error)}
    except Exception as error:  # noqa: BLE001  a hostile file may raise anything in a parser; the reason is kept
        return {"unreadable": f"The parser failed: {type(error).__name__}: {error}"[:300]}


if __name__ == "__main__":
    serve(int(sys.argv[1]))
