"""B15: a server from its start to its first token, and its peak memory, beside `transformers serve`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from bench.harness import Figure, Spread
from bench.models import NAME, folder

PATIENCE = 180.0


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the command to a healthy server and to the first token; most memory in MiB that it held."""

    ready: float
    first_token: float
    memory: float


def run(quick: bool) -> list[Figure]:
    scripts = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "LECTERN_LECTERN__HOME": home}
        ours, peers = [], []
        for _ in range(2 if quick else 5):
            port = free_port()
            ours.append(
                start([str(scripts / "lectern"), "serve", "--port", str(port)], port, NAME, "/health", environment)
            )
            port = free_port()
            model = str(folder())
            command = [
                str(scripts / "transformers"),
                "serve",
                model,
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--device",
                "cpu",
            ]
            peers.append(start(command, port, model, "/health", environment))
    goals = {"ready": None, "first_token": 0.5, "memory": 0.5}
    titles = {"ready": "server ready", "first_token": "first token", "memory": "peak memory"}
    units = {"ready": "s", "first_token": "s", "memory": "MiB"}
    return [
        Figure(
            f"B15 {titles[name]}",
            Spread(tuple(getattr(one, name) for one in ours)),
            units[name],
            Spread(tuple(getattr(one, name) for one in peers)),
            "transformers serve",
            goal=goal,
            below=True,
        )
        for name, goal in goals.items()
    ]


def start(command: list[str], port: int, model: str, health: str, environment: dict[str, str]) -> Start:
    """Run a server until it has streamed its first token, and end it."""
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        while not healthy(address + health):
            assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
            assert time.perf_counter() - started < PATIENCE, f"{command[0]} is not ready"
            time.sleep(0.02)
        ready = time.perf_counter() - started
        body = {"model": model, "stream": True, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=PATIENCE) as answer:
            assert answer.status_code == 200, answer.read()
            first = 0.0
            for line in answer.iter_lines():
                plain = line.replace(" ", "")
                if not first and '"content":"' in plain and '"content":""' not in plain:
                    first = time.perf_counter() - started
            assert first, "no token came"
        return Start(ready, first, peak_memory(process.pid))
    finally:
        process.terminate()
        process.wait(timeout=60)


def healthy(address: str) -> bool:
    try:
        return httpx.get(address, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def peak_memory(pid: int) -> float:
    """MiB, most that was resident of the process and those that it started."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    lines = [line for one in family for line in Path(f"/proc/{one.pid}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
