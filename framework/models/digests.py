"""SHA-256 of model files, remembered, so that a 90 MB file is read once and not at every start."""

from __future__ import annotations

import json
from contextlib import suppress
from hashlib import file_digest as hash_file
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile


def file_digest(path: Path, cache: Path) -> str:
    """SHA-256 of a file's content in hexadecimal.

    It is remembered in `cache`/digests by the file's resolved path, size, inode and time of change: what a tool such as
    make trusts too. A cache that can't be written is no error, it only costs the time again.
    """
    path = path.resolve()
    status = path.stat()
    stamp = [str(path), status.st_size, status.st_ino, status.st_mtime_ns]
    record = cache / "digests" / f"{sha256(str(path).encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(record.read_text(encoding="utf-8"))
        if known["stamp"] == stamp and len(known["sha256"]) == 64:
            return str(known["sha256"])
    with path.open("rb") as file:
        digest = hash_file(file, "sha256").hexdigest()
    with suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=record.parent, delete=False, encoding="utf-8") as draft:
            json.dump({"stamp": stamp, "sha256": digest}, draft)
        Path(draft.name).replace(record)
    return digest
