"""SIGTERM: running answers finish, or end with an error event; nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

SCRIPT = Path(__file__).with_name("slow_server.py")
BODY = {"model": "slow", "messages": [{"role": "user", "content": "Hello"}]}
ENVIRONMENT = {**os.environ, "LECTERN_LOG": "error"}


@contextmanager
def started(home: Path, grace: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, str(SCRIPT), str(home), str(grace)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=ENVIRONMENT, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def events(lines: Iterator[str]) -> Iterator[str]:
    return (line for line in lines if line)


def lets_nobody_in(url: str) -> bool:
    """Whether the server comes to refuse connections; it closes its socket within a tenth of a second or so."""
    try:
        for _ in range(10_000):
            httpx.get(f"{url}/health")
    except httpx.TransportError:
        return True
    return False


def test_a_running_answer_is_finished_before_the_server_ends(tmp_path: Path) -> None:
    with started(tmp_path, 30) as (process, url):
        assert (tmp_path / "server.json").exists()
        with httpx.stream("POST", f"{url}/v1/chat/completions", json={**BODY, "stream": True}, timeout=30) as answer:
            lines = events(answer.iter_lines())
            assert "One" in next(lines)
            process.send_signal(signal.SIGTERM)
            assert lets_nobody_in(url)
            process.stdin.write("\n")
            process.stdin.flush()
            rest = list(lines)
        assert '"content":" two"' in rest[0]
        assert rest[-1] == "data: [DONE]"
        assert process.wait(20) == 0
        assert not (tmp_path / "server.json").exists()


def test_an_answer_that_takes_too_long_ends_with_an_error_event(tmp_path: Path) -> None:
    with started(tmp_path, 1) as (process, url):
        with httpx.stream("POST", f"{url}/v1/chat/completions", json={**BODY, "stream": True}, timeout=30) as answer:
            lines = events(answer.iter_lines())
            assert "One" in next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert rest[0] == "event: error"
        error = json.loads(rest[1].removeprefix("data: "))["error"]
        assert error["code"] == "server_stopping"
        assert rest[2] == "data: [DONE]"
        process.stdin.close()
        assert process.wait(20) == 0
        assert not (tmp_path / "server.json").exists()
