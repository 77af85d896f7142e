"""Runs a task: every sample once, several at a time, each written to the log as it ends."""

from __future__ import annotations

import asyncio
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from evals.dataset import Dataset, load_dataset
from evals.gates import Verdict, judge
from evals.metrics import Metric
from evals.report import Estimate, summarise
from evals.run_log import Record, RunLog
from evals.sample import Output, Sample
from evals.targets import Progress, Target, open_target
from evals.task import RunConfig, Task
from framework.config import Settings
from framework.documents import content_hash
from framework.messages import canonical_json

PACKAGES = ("lectern", "numpy", "torch", "transformers", "qdrant-edge-py", "tokenizers", "ir-measures", "langgraph")


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        reused: samples that an earlier, interrupted or finished, run had done already.
        errors: samples that failed.
    """

    task: Task
    folder: Path
    estimates: Mapping[str, Estimate]
    verdicts: Sequence[Verdict]
    samples: int
    reused: int
    errors: int
    first_error: str
    notices: Mapping[str, int]
    earlier: Mapping[str, Any]
    seconds: float

    @property
    def passed(self) -> bool:
        """Every gate holds, and not every sample failed."""
        return all(verdict.passed for verdict in self.verdicts) and self.errors < self.samples


async def run_task(
    task: Task,
    settings: Settings,
    *,
    limit: int | None = None,
    folder: Path | None = None,
    fresh: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Run:
    """Load the data, open the target, run what the log does not have yet, and sum up.

    Args:
        limit: only the first so many samples.
        folder: of the log; None: below the settings' home, named after the task and its configuration.
        fresh: run samples again that were done before.
        progress: told (what, done, total) as the work goes on.

    Raises:
        ConfigError: the task or its data is wrong.
        Conflict: the folder holds another configuration's run.
    """
    started = time.perf_counter()
    dataset = (await asyncio.to_thread(load_dataset, task.dataset)).first(limit)
    user = task.settings(settings)
    async with open_target(task, dataset, user, progress) as target:
        prepared = time.perf_counter() - started
        fingerprint = _fingerprint(task, dataset, target)
        place = folder or settings.home / "evals" / f"{task.name}-{fingerprint[:8]}"
        with RunLog(place, fingerprint, fresh=fresh) as log:
            about = _about(task, dataset, target)
            kept = {s.id for s in dataset.samples} & log.done
            if len(kept) == len(dataset.samples):
                about = {
                    **about,
                    **{key: log.before[key] for key in ("versions", "git", "started") if key in log.before},
                }
            log.write_run({**about, "status": "running"})
            todo = [sample for sample in dataset.samples if sample.id not in kept]
            await _run_samples(todo, target, task, log, progress, len(dataset.samples))
            seconds = time.perf_counter() - started
            run = _sum_up(task, log, dataset, len(kept), seconds)
            log.write_run({**about, **_outcome(run, prepared)})
            return run


async def _run_samples(
    samples: Sequence[Sample], target: Target, task: Task, log: RunLog, progress: Progress, total: int
) -> None:
    """Workers that take the next sample as they get free: at most `run.concurrency` are under way."""
    queue = iter(samples)
    done = total - len(samples)
    progress("questions", done, total)

    async def worker(queue: Iterator[Sample]) -> None:
        nonlocal done
        for sample in queue:
            log.append(await run_sample(sample, target, task.metrics, task.run))
            done += 1
            progress("questions", done, total)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(task.run.concurrency, len(samples))):
            group.create_task(worker(queue))


async def run_sample(sample: Sample, target: Target, metrics: Sequence[Metric], config: RunConfig) -> Record:
    """One sample's record. Whatever the target raises is an outcome of the measurement, and ends in the record."""
    started = time.perf_counter()
    output: Output | None = None
    error: str | None = None
    limit = asyncio.timeout(config.timeout)
    try:
        async with limit:
            output = await target.answer(sample)
        output = replace(output, seconds=time.perf_counter() - started)
        scores = {metric.name: metric.score(sample, output) for metric in metrics}
    except Exception as failure:  # noqa: BLE001  # the target is what is being measured, and may be anybody's code
        error = f"no answer within {config.timeout:g} s" if limit.expired() else f"{type(failure).__name__}: {failure}"
        scores = {metric.name: metric.failed(sample) for metric in metrics}
    return Record(
        sample.id,
        _input(sample),
        asdict(output) if output else None,
        {name: score for name, score in scores.items() if score is not None},
        error,
        time.perf_counter() - started,
    )


def _input(sample: Sample) -> dict[str, Any]:
    return {
        "question": sample.question,
        "relevant": dict(sample.relevant),
        "answers": list(sample.answers),
        "answerable": sample.answerable,
    }


def _sum_up(task: Task, log: RunLog, dataset: Dataset, reused: int, seconds: float) -> Run:
    records = [log.records[sample.id] for sample in dataset.samples]
    failed = [record for record in records if record.error is not None]
    config = task.run
    names = [metric.name for metric in task.metrics]
    estimates = summarise(records, names, errors=config.errors, seed=config.seed, resamples=config.resamples)
    notices: dict[str, int] = {}
    for notice in (notice for record in records for notice in (record.output or {}).get("notices", ())):
        notices[notice] = notices.get(notice, 0) + 1
    verdicts = judge(task.gates, estimates, len(failed))
    first = f"{failed[0].id}: {failed[0].error}" if failed else ""
    earlier = log.before if reused else {}
    return Run(
        task, log.folder, estimates, verdicts, len(records), reused, len(failed), first, notices, earlier, seconds
    )


def _fingerprint(task: Task, dataset: Dataset, target: Target) -> str:
    """Of what decides outputs and scores: not of thresholds, descriptions, concurrency, or where the data lies."""
    about = {
        "lectern": _versions().get("lectern", ""),
        "data": dataset.hash,
        "dataset": {key: value for key, value in asdict(task.dataset).items() if key not in ("path", "passages")},
        "target": dict(target.about),
        "metrics": sorted(metric.name for metric in task.metrics),
        "samples": content_hash(*(sample.id for sample in dataset.samples)),
        "timeout": task.run.timeout,
    }
    return content_hash(canonical_json(about))


def _about(task: Task, dataset: Dataset, target: Target) -> dict[str, Any]:
    return {
        "task": task.config.name,
        "variant": task.variant,
        "config": dict(task.values),
        "data": {"hash": dataset.hash, "samples": len(dataset.samples)},
        "target": dict(target.about),
        "versions": {"python": platform.python_version(), **_versions()},
        "git": git_commit(),
        "seed": task.run.seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _outcome(run: Run, prepared: float) -> dict[str, Any]:
    return {
        "status": "finished",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "timings": {"prepare_seconds": round(prepared, 3), "total_seconds": round(run.seconds, 3)},
        **outcome_values(run),
    }


def outcome_values(run: Run) -> dict[str, Any]:
    """What came out, as JSON: for run.json and for `--json`."""
    return {
        "samples": run.samples,
        "reused": run.reused,
        "errors": run.errors,
        "first_error": run.first_error,
        "notices": dict(run.notices),
        "metrics": {name: asdict(estimate) for name, estimate in run.estimates.items()},
        "gates": [asdict(verdict) for verdict in run.verdicts],
        "passed": run.passed,
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_commit(folder: Path | None = None) -> dict[str, Any] | None:
    """The commit that the working directory is at, and whether files differ from it; None outside a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None
