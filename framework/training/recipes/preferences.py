"""What training on preferences has in common: pairs rendered as served, and what is measured on held-out ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from framework.training.data import pairs_of
from framework.training.job import Job
from framework.training.pair_accuracy import record
from framework.training.rendering import ExamplePair


def pairs(job: Job) -> tuple[list[ExamplePair], list[ExamplePair]]:
    """The pairs of training and validation.

    Raises:
        CallerError: the rows are no preferences.
        TooLarge: one is longer than `data.max_length`.
    """
    length = job.config.data.max_length
    train, validation = (pairs_of(rows, job.base, length) for rows in (job.data.train, job.data.validation))
    return train, validation


def dataset(examples: Sequence[ExamplePair], with_prompt: bool) -> Any:
    """As TRL has it after its own rendering, which is left out; None where there are no pairs.

    Args:
        with_prompt: the prompt stands in front of both answers and not in a column of its own.
    """
    from datasets import Dataset

    if not examples:
        return None
    if with_prompt:
        columns = {
            "chosen_ids": [[*pair.prompt, *pair.chosen] for pair in examples],
            "rejected_ids": [[*pair.prompt, *pair.rejected] for pair in examples],
        }
    else:
        columns = {
            "prompt_ids": [list(pair.prompt) for pair in examples],
            "chosen_ids": [list(pair.chosen) for pair in examples],
            "rejected_ids": [list(pair.rejected) for pair in examples],
        }
    return Dataset.from_dict(columns)


@cache
def measuring(kind: Any, key: str) -> Any:
    """A trainer of TRL's that takes pairs of token ids as they are and keeps the margins of the last evaluation.

    Args:
        key: TRL's name of the margin. Batches of an evaluation hold one pair, so it has one figure for each.
    """

    class Measuring(kind):  # type: ignore[misc]
        margins: Sequence[float] = ()

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if not self.model.training and self._metrics["eval"].get(key):
                self.margins = tuple(self._metrics["eval"][key])
            super().log(logs, start_time)

    return Measuring


def fit(job: Job, trainer: Any, validation: Sequence[ExamplePair]) -> None:
    """Train, save, and measure on the held-out pairs."""
    job.fit(trainer)
    if not validation:
        return
    if len(trainer.margins) != len(validation):  # a run that was killed after its last evaluation
        trainer.evaluate()
    found = record(job.run, trainer.margins, [pair.document for pair in validation])
    job.say(
        f"Of {found.n} held-out pairs the better answer is scored higher in {found.mean:.1%}"
        f" [{found.low:.1%}, {found.high:.1%}]."
    )
