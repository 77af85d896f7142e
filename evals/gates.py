"""Thresholds: a mean, or an end of its interval, that must be reached."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from evals.report import Estimate
from framework.errors import ConfigError

_GATE = re.compile(r"\s*([\w@-]+?)(?:\.(low|high))?\s*(>=|<=|>|<)\s*([0-9]*\.?[0-9]+)\s*")
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
ERRORS = "errors"
Part: TypeAlias = Literal["mean", "low", "high"]


@dataclass(frozen=True, slots=True)
class Gate:
    """`metric` is a metric of the task, or "errors", the number of samples that failed."""

    text: str
    metric: str
    part: Part
    sign: str
    bound: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a gate. `value` is None where the metric applied to no sample, which fails."""

    gate: str
    value: float | None
    passed: bool


def parse_gate(text: str, metrics: Sequence[str]) -> Gate:
    """Read "ndcg@10 >= 0.70" or "ndcg@10.low >= 0.65".

    Raises:
        ConfigError: it is neither, or names a metric that the task does not compute.
    """
    match = _GATE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is no threshold.", hint='Write "ndcg@10 >= 0.70".', field="task.thresholds")
    name, part, sign, bound = match.groups()
    if name not in (*metrics, ERRORS):
        known = ", ".join((*metrics, ERRORS))
        raise ConfigError(
            f"The threshold {text!r} names {name!r}, which is not computed.",
            hint=f"Computed: {known}.",
            field="task.thresholds",
        )
    return Gate(text.strip(), name, cast(Part, part or "mean"), sign, float(bound))


def judge(gates: Sequence[Gate], estimates: Mapping[str, Estimate], errors: int) -> list[Verdict]:
    """Each gate against what was measured."""
    verdicts = []
    for gate in gates:
        estimate = estimates.get(gate.metric)
        value = float(errors) if gate.metric == ERRORS else getattr(estimate, gate.part) if estimate else None
        verdicts.append(Verdict(gate.text, value, value is not None and _COMPARE[gate.sign](value, gate.bound)))
    return verdicts
