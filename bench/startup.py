"""How long a command takes from a cold start, and its peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from bench.corpus import write_pages
from bench.harness import Figure, Spread

LECTERN = str(Path(sys.executable).parent / "lectern")
GOALS = {"lectern --help": 0.3, "lectern search": 1.5}


def measure(command: list[str], cwd: Path, environment: Mapping[str, str]) -> tuple[float, float]:
    """Seconds and peak resident memory in MiB of one process."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    took = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{' '.join(command)} failed:\n{errors}"
    return took, usage.ru_maxrss / 1024


def run(quick: bool) -> list[Figure]:
    figures = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "LECTERN_LECTERN__HOME": str(folder / "home")}
        write_pages(folder / "pages", 20)
        index = [LECTERN, "index", "pages", "-c", "pages"]
        subprocess.run(index, cwd=folder, env=environment, check=True, capture_output=True)
        for shown, command in {
            "lectern --help": [LECTERN, "--help"],
            "lectern search": [LECTERN, "search", "collector configuration", "-c", "pages"],
        }.items():
            taken = [measure(command, folder, environment) for _ in range(4 if quick else 11)][
                1:
            ]  # the first warms files
            times, memory = Spread(tuple(t for t, _ in taken)), Spread(tuple(m for _, m in taken))
            figures.append(Figure(shown, times, "s", goal=GOALS[shown], below=True))
            figures.append(Figure(f"{shown}, peak memory", memory, "MiB"))
    return figures
