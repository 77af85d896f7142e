"""Champion and challenger on the same questions: the paired difference of each metric that counts, and the decision.

The metrics that count are those that the suite's thresholds name. The challenger wins if it meets the thresholds
itself, fails on no more questions than the champion, and for each of these metrics the whole 95% interval of the
paired difference lies above -margin: it is shown to be at most that much worse. With `better`, one interval at least
must lie above 0 too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from agents.config import AgentConfig
from evals.gates import ERRORS
from evals.metrics import Metric
from evals.report import Difference, Estimate, estimate, paired, shared_scores
from evals.run_log import read_records, read_run
from evals.runner import Run, run_task
from evals.targets import Progress, overlaid
from evals.task import RunConfig, Task
from framework.config import Settings
from framework.documents import content_hash
from framework.errors import ConfigError
from framework.messages import canonical_json

LEAST = 20  # questions for an interval that means something
MARGIN = 0.02
Outcome: TypeAlias = Literal["better", "not worse", "worse", "not shown", "too few", "first"]
HELD_UP: tuple[Outcome, ...] = ("better", "not worse", "first")


@dataclass(frozen=True, slots=True)
class Rule:
    """What a challenger has to show.

    Attributes:
        margin: how much worse it may be at most, in each metric's own unit.
        margins: the same for single metrics.
        better: it must be shown to be better at something.
        least: questions that each metric must have applied to.
    """

    margin: float = MARGIN
    margins: Mapping[str, float] = field(default_factory=dict)
    better: bool = False
    least: int = LEAST

    def of(self, metric: str) -> float:
        return self.margins.get(metric, self.margin)


@dataclass(frozen=True, slots=True)
class Compared:
    """One metric. `difference` is challenger - champion; without a champion it and `champion` are None."""

    metric: str
    challenger: Estimate
    champion: Estimate | None
    difference: Estimate | None
    margin: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Contest:
    """A contest that was held.

    Attributes:
        suite, data: digests of the task without the model, and of the questions.
        runs: folders of the runs, of "champion" where there is one, and of "challenger".
        limit: only so many questions were asked; None: all.
        promote: the challenger won.
        reason: why, or why not.
    """

    suite: str
    data: str
    runs: Mapping[str, str]
    limit: int | None
    compared: tuple[Compared, ...]
    promote: bool
    reason: str


async def hold(
    task: Task,
    champion: str | None,
    challenger: str,
    settings: Settings,
    rule: Rule,
    *,
    limit: int | None = None,
    fresh: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Contest:
    """Run both on the task's questions, one after the other, and decide. What was run before is not run again.

    Args:
        champion: its model name; None: there is none yet, so that the thresholds alone decide.

    Raises:
        ConfigError: the task names no threshold, its target asks no chat model, or the rule has a margin for a metric
            that does not count.
    """
    metrics = counted(task)
    unknown = rule.margins.keys() - {metric.name for metric in metrics}
    if unknown:
        raise ConfigError(
            f"--margin names {min(unknown)!r}, which no threshold names.",
            hint=f"They name {', '.join(metric.name for metric in metrics)}.",
            field="--margin",
        )
    before = None
    if champion is not None:
        before = await run_task(
            with_model(task, champion, settings), settings, limit=limit, fresh=fresh, progress=progress
        )
    after = await run_task(
        with_model(task, challenger, settings), settings, limit=limit, fresh=fresh, progress=progress
    )
    compared = tuple(_compared(metric, before, after, rule, task.run) for metric in metrics)
    reason = _against(before, after, compared, rule)
    return Contest(
        suite_digest(task),
        str(read_run(after.folder)["data"]["hash"]),
        {**({"champion": str(before.folder)} if before else {}), "challenger": str(after.folder)},
        limit,
        compared,
        not reason,
        reason or _in_favour(compared),
    )


def counted(task: Task) -> list[Metric]:
    """The metrics that the thresholds name.

    Raises:
        ConfigError: they name none.
    """
    named = {gate.metric for gate in task.gates if gate.metric != ERRORS}
    if not named:
        raise ConfigError(
            f"{task.path} says of no metric what it must reach, so nothing decides.",
            hint='Add thresholds = ["f1 >= 0.4"] to [task], or --set \'task.thresholds=["f1 >= 0.4"]\'.',
            field="task.thresholds",
        )
    return [metric for metric in task.metrics if metric.name in named]


def with_model(task: Task, model: str, settings: Settings) -> Task:
    """The task, answered by this model. An agent that is told no mode reads: BASE:NAME has no roles, so it would quote.

    Raises:
        ConfigError: its target asks no chat model, so that every model would answer the same.
    """
    kind, more = task.target.get("kind"), {"model": model}
    if kind == "retriever":
        raise ConfigError("A retriever answers without a chat model.", field="target.kind")
    if kind == "agent":
        _, config = overlaid(task, task.settings(settings), "agent", AgentConfig)
        if config.mode == "quote" and not config.quoting.choice:
            raise ConfigError(
                "An agent that quotes asks no chat model, so nothing would be compared.",
                hint='Set mode = "read" or "write" in [target], or --set target.mode=read.',
                field="target.mode",
            )
        more |= {"mode": "read"} if config.mode == "auto" else {}
    target = {**task.target, **more}
    return replace(task, target=target, values={**task.values, "target": target})


def suite_digest(task: Task) -> str:
    """Of everything that the task says, but for the model."""
    target = {key: value for key, value in task.target.items() if key != "model"}
    return content_hash(canonical_json(_plain({**task.values, "target": target, "variant": task.variant})))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _compared(metric: Metric, before: Run | None, after: Run, rule: Rule, run: RunConfig) -> Compared:
    name, margin = metric.name, rule.of(metric.name)
    empty = Estimate(0.0, 0.0, 0.0, 0)
    new = after.estimates.get(name, empty)
    if before is None:
        return Compared(name, new, None, None, margin, "first" if new.n >= rule.least else "too few")
    a, b = read_records(before.folder), read_records(after.folder)
    found = paired(a, b, name, errors=run.errors, seed=run.seed)
    if found is None:
        return Compared(name, new, before.estimates.get(name, empty), None, margin, "too few")
    outcome = _outcome(found, metric.higher_is_better, margin, rule.least)
    old, new = (estimate(scores, seed=run.seed) for scores in shared_scores(a, b, name, errors=run.errors))
    return Compared(name, new, old, found.estimate, margin, outcome)


def _outcome(found: Difference, higher: bool, margin: float, least: int) -> Outcome:
    low, high = found.estimate.low, found.estimate.high
    if not higher:
        low, high = -high, -low
    if found.estimate.n < least:
        return "too few"
    if low > 0:
        return "better"
    if low >= -margin:
        return "not worse"
    return "worse" if high < 0 else "not shown"


def _against(before: Run | None, after: Run, compared: tuple[Compared, ...], rule: Rule) -> str:
    """The first thing that speaks against the challenger; empty where nothing does."""
    failed = before.errors if before else 0
    if after.errors > failed:
        return f"it fails on {after.errors} questions, the champion on {failed}; first {after.first_error}"
    for one in compared:
        if one.outcome == "too few":
            n = one.difference.n if one.difference else one.challenger.n if one.champion is None else 0
            return f"{one.metric} applies to {n} questions, which is too few for an interval: {rule.least} are needed"
    for verdict in after.verdicts:
        if not verdict.passed:
            value = "nothing" if verdict.value is None else f"{verdict.value:.4f}"
            return f"it misses the threshold {verdict.gate}: measured {value}"
    for one in compared:
        if one.outcome in ("worse", "not shown"):
            what = "is worse" if one.outcome == "worse" else f"is not shown to lose at most {one.margin:g}"
            return f"{one.metric} {what}: {_shown(one)}"
    if rule.better and before is not None and all(one.outcome != "better" for one in compared):
        return "it is not shown to be better at anything: " + "; ".join(f"{c.metric} {_shown(c)}" for c in compared)
    return ""


def _in_favour(compared: tuple[Compared, ...]) -> str:
    if compared[0].difference is None:
        return "there was no champion, and it meets the thresholds"
    better = [f"{one.metric} {_shown(one)}" for one in compared if one.outcome == "better"]
    return f"better: {'; '.join(better)}" if better else "not worse by more than the margin at anything"


def _shown(one: Compared) -> str:
    assert one.difference is not None
    d = one.difference
    return f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}], n = {d.n}"
