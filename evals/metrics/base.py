"""Metrics by name: a small function each, with the samples it applies to and the direction that is better."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from evals.sample import Output, Sample
from framework.errors import ConfigError
from framework.registry import Registry

Applies: TypeAlias = Callable[[Sample], bool]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric ready to score, its cutoff bound: `name` is as written in the task ("ndcg@10")."""

    name: str
    kind: MetricKind
    k: int | None = None

    @property
    def higher_is_better(self) -> bool:
        return self.kind.higher_is_better

    def score(self, sample: Sample, output: Output) -> float | None:
        """The score, always finite; None where the metric says nothing about this sample or output.

        Raises:
            ValueError: the metric's function returned NaN or infinity.
        """
        if not self.kind.applies(sample):
            return None
        value = self.kind.function(sample, output, self.k)
        if value is not None and not math.isfinite(value):
            raise ValueError(f"The metric {self.name} returned {value}.")
        return value

    def failed(self, sample: Sample) -> float | None:
        """The score of a sample that failed: 0 where higher is better, None otherwise: failing fast is no merit."""
        return 0.0 if self.higher_is_better and self.kind.applies(sample) else None


@dataclass(frozen=True, slots=True)
class MetricKind:
    """A metric's definition. `function(sample, output, k)` is called only for samples that it applies to.

    Attributes:
        cutoff: whether the name carries one, as in "recall@100": "required", "optional" or "none".
    """

    name: str
    summary: str
    function: Callable[[Sample, Output, int | None], float | None]
    applies: Applies
    higher_is_better: bool = True
    cutoff: str = "none"


METRICS: Registry[MetricKind] = Registry("metric", "lectern.metrics")


def everything(sample: Sample) -> bool:
    return True


def metric(
    name: str, *, applies: Applies = everything, higher_is_better: bool = True, cutoff: str = "none"
) -> Callable[[Callable[[Sample, Output, int | None], float | None]], MetricKind]:
    """Register a function as the metric `name`; its docstring's first line is the summary."""

    def register(function: Callable[[Sample, Output, int | None], float | None]) -> MetricKind:
        summary = (function.__doc__ or "").strip().splitlines()[0].rstrip(".")
        return METRICS.register(name, MetricKind(name, summary, function, applies, higher_is_better, cutoff))

    return register


def parse_metric(text: str) -> Metric:
    """The metric that a task names: "ndcg@10", "map", "exact_match".

    Raises:
        ConfigError: a cutoff where none belongs, none where one is needed, or one that is no positive number.
        NotFound: no such metric.
    """
    name, at, cutoff = text.partition("@")
    kind = METRICS.get(name)
    if not at:
        if kind.cutoff == "required":
            raise ConfigError(f"The metric {name!r} needs a cutoff.", hint=f"Write {name}@10.", field="task.metrics")
        return Metric(text, kind)
    if kind.cutoff == "none":
        raise ConfigError(f"The metric {name!r} takes no cutoff, got {text!r}.", field="task.metrics")
    if not (cutoff.isascii() and cutoff.isdigit() and int(cutoff) > 0):
        raise ConfigError(f"A cutoff is a positive number, got {text!r}.", field="task.metrics")
    return Metric(text, kind, int(cutoff))
