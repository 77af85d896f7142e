"""What a training run tells while it goes: a line on the terminal, a line in the run's log."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from framework.errors import CallerError
from framework.training.run import RunFolder

Say = Callable[[str], None]
# Figures of TRL's trainers that the log keeps, beside those with a "/" in their name.
MEASURED = frozenset(("accuracy", "margin", "mean_reward", "reward", "reward_std", "kl", "kl_coefficient", "entropy"))


@dataclass(frozen=True, slots=True)
class Report:
    """One report. `loss` is the mean since the last one, `left` the seconds that the rest will take."""

    step: int
    steps: int
    loss: float | None
    rate: float | None
    left: float
    validation: bool = False

    def __str__(self) -> str:
        what = "validation loss" if self.validation else "loss"
        loss = "" if self.loss is None else f", {what} {self.loss:.4f}"
        if not self.step:
            return f"Before training{loss}"
        return f"step {self.step} of {self.steps}{loss}, {duration(self.left)} left"


def _is_measured(key: str) -> bool:
    """Whether it belongs into the log: figures of the recipes, such as "rewards/margins" or "kl"."""
    return "/" in key or key.removeprefix("eval_") in MEASURED


def duration(seconds: float) -> str:
    """As people read it: "2 h 5 min", "40 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def on_terminal(text: str) -> None:
    """To standard error: standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def diverged(step: int, what: str) -> CallerError:
    """What a run ends with that goes nowhere."""
    return CallerError(
        f"The training diverged at update {step}: {what}.",
        hint="Lower optimizer.learning_rate, and begin anew with --restart.",
        field="optimizer.learning_rate",
    )


def callback(run: RunFolder, say: Say) -> Any:
    """A callback for transformers' trainers that writes the log and tells the progress.

    It ends a run whose loss is no number with a CallerError.
    """
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def __init__(self) -> None:
            self.began = time.monotonic()
            self.first = 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began, self.first = time.monotonic(), state.global_step

        def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            logs: dict[str, Any] = given["logs"]
            loss = logs.get("loss", logs.get("eval_loss"))
            if loss is None:
                return
            if not math.isfinite(loss):
                raise diverged(state.global_step, f"its loss is {loss}")
            done = state.global_step - self.first
            spent = time.monotonic() - self.began
            left = spent / done * (state.max_steps - state.global_step) if done else 0.0
            validation = "eval_loss" in logs
            report = Report(state.global_step, state.max_steps, loss, logs.get("learning_rate"), left, validation)
            extra = {key: value for key, value in logs.items() if isinstance(value, int | float) and _is_measured(key)}
            kind = {"validation_loss": loss} if validation else {"loss": loss, "learning_rate": report.rate}
            run.log({"step": report.step, "seconds": round(spent, 2), **kind, **extra})
            say(str(report))

    return Progress()
