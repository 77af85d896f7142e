from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from framework.errors import StoreLocked
from framework.retrieval.lock import DirectoryLock

HOLD = """
import sys
from pathlib import Path
from framework.retrieval.lock import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def holder(directory: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(directory)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_process_is_told_at_once_who_holds_the_directory(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        started = time.perf_counter()
        with pytest.raises(StoreLocked) as error:
            DirectoryLock(tmp_path).acquire()
        assert time.perf_counter() - started < 0.1
        assert f"process {process.pid} (-c {tmp_path}" in error.value.message
        process.kill()


def test_what_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
    record = json.loads((tmp_path / "store.lock").read_text())
    assert record["pid"] == process.pid
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    assert json.loads(lock.path.read_text())["pid"] == os.getpid()
    lock.release()


def test_a_second_holder_in_one_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    first, second = DirectoryLock(tmp_path), DirectoryLock(tmp_path)
    first.acquire()
    first.acquire()
    with pytest.raises(StoreLocked, match="this process itself"):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    second.release()


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"pid": 1}', '{"pid": 1, "started": "x", "command": ""}'])
def test_an_unreadable_record_still_gives_a_clear_error(tmp_path: Path, text: str) -> None:
    first = DirectoryLock(tmp_path)
    first.acquire()
    first.path.write_text(text)
    with pytest.raises(StoreLocked, match="another process"):
        DirectoryLock(tmp_path).acquire()
    first.release()
