"""`server.json` in the state directory: how this machine's commands find the server that holds the store."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from framework.config import make_home
from framework.errors import StoreLocked
from indexers.loopback import FILE_NAME, find_server


@contextmanager
def announced(home: Path, url: str, token: str) -> Iterator[None]:
    """While inside, the file names this process. Readable by its user alone, since it holds the token.

    Raises:
        StoreLocked: a server that is alive has announced itself there.
    """
    path = home / FILE_NAME
    refuse_second(home)
    make_home(home)
    temporary = home / f".{FILE_NAME}.{secrets.token_hex(4)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"pid": os.getpid(), "url": url, "token": token}, file)
    temporary.replace(path)
    try:
        yield
    finally:
        _withdraw(path, token)


def refuse_second(home: Path) -> None:
    """Refuse to serve a home that a live server has announced itself in; a dead one's file does not count.

    Raises:
        StoreLocked: there is one; the message names it.
    """
    other = find_server(home)
    if other is not None:
        raise StoreLocked(
            f"A server already holds {home}: process {other.pid} at {other.url}.",
            hint="Stop it, or give this one another home.",
        )


def _withdraw(path: Path, token: str) -> None:
    """Remove the file if it is still ours: a server that was taken for dead leaves its successor's alone."""
    try:
        ours = json.loads(path.read_text(encoding="utf-8"))["token"] == token
    except (OSError, ValueError, KeyError, TypeError):
        return
    if ours:
        path.unlink(missing_ok=True)
