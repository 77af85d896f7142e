"""A run that was killed goes on to the same losses, to the last bit: a CPU computes in the same order each time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from framework.training.run import RunFolder

from .conftest import Bench

Rows: TypeAlias = Callable[[int], list[dict[str, Any]]]
TRAIN = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from framework.config import Settings
from framework.training.start import run_file
folder, stop = Path(sys.argv[2]), sys.argv[3]
if stop == "saving":  # the updates are made, and their last state is written
    import os, signal
    from framework.training.job import Job
    Job.train = lambda job, trainer, train=Job.train: (train(job, trainer), os.kill(os.getpid(), signal.SIGKILL))
settings = Settings({"lectern": {"home": str(folder)}}, base=folder)
run_file(Path(sys.argv[1]), settings, say=lambda text: print(text, flush=True))
"""
REWARD = "def short(row, answer):\n    return -len(answer.content)\n"


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def kill_at(config: Path, home: Path, stop: str) -> None:
    """Train in a process of its own, which is killed when it says a line that begins so, or before "saving"."""
    command = [sys.executable, "-c", TRAIN, str(config), str(home), stop]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    for said in process.stdout:
        if said.startswith(stop):
            os.kill(process.pid, signal.SIGKILL)
            break
    errors = process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL, errors[-2000:]


def losses(run: RunFolder) -> list[dict[str, Any]]:
    """All reports without what a clock says."""
    return [{k: v for k, v in report.items() if k not in ("seconds", "step_time")} for report in run.reports()]


RECIPES = [
    "sft",
    pytest.param("dpo", marks=pytest.mark.slow),
    pytest.param("reward", marks=pytest.mark.slow),
    pytest.param("grpo", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("stop", "state"), [("step 6 of 11", "checkpoint-4"), ("saving", "checkpoint-11")])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_killed_run_that_is_taken_up_ends_as_one_that_ran_through(
    bench: Bench, questions: Rows, preferences: Rows, recipe: str, stop: str, state: str
) -> None:
    bench.rows((questions if recipe in ("sft", "grpo") else preferences)(24))
    (bench.folder / "reward.py").write_text(REWARD, encoding="utf-8")
    sections: dict[str, Any] = {
        # No whole number of epochs, a falling learning rate, dropout: all of it has to be taken up.
        "optimizer": {"steps": 11, "sequences": 4, "schedule": "cosine", "learning_rate": 0.01},
        "data": {"max_length": 80},
        "checkpoints": {"every": 4},
        "preference": {"rewards": ["reward.py:short"], "generations": 2, "max_new_tokens": 4, "kl_bound": 0.001},
        "adapter": {"rank": 4, "dropout": 0.1, "weights": "float32"},
    }
    killed = bench.config(recipe, "killed", **sections)
    kill_at(killed, bench.folder / "home", stop)
    assert RunFolder(bench.folder / "killed").read()["state"] == "running"
    taken_up = bench.train(killed)
    assert any(said.startswith(f"Taking up {state}") for said in bench.said)
    whole = bench.train(bench.config(recipe, "whole", **sections))
    assert losses(taken_up) == losses(whole)
    assert taken_up.read()["state"] == "finished"
    results = [(run.adapter / "adapter_model.safetensors").read_bytes() for run in (taken_up, whole)]
    assert results[0] == results[1]
