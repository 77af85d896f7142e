"""Scores before and after: the evaluations that a run names, by `lectern eval` in processes of their own.

Evaluation lies above training, so it is called as a user calls it; its memory is free again afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from framework.config import Settings
from framework.errors import CallerError
from framework.models.adapters import AdapterStore
from framework.models.catalog import Resolved
from framework.training.config import TrainConfig
from framework.training.progress import Say
from framework.training.run import RunFolder

Moment = Literal["before", "after"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is evaluated, in the words of `lectern eval`: keys that are set, variables of its process."""

    keys: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)


def measure(
    run: RunFolder, config: TrainConfig, base: Resolved, folder: Path, moment: Moment, settings: Settings, say: Say
) -> None:
    """Run what `[evaluate]` names on the base or on the result, and note the scores; what is noted is not run again.

    Raises:
        CallerError: an evaluation failed; the message ends with what it said.
    """
    named = (*config.evaluate.target, *config.evaluate.general)
    files = [folder / place if (folder / place).is_file() else place for place in named]  # a suite goes by its name
    known: dict[str, Any] = run.read().get("scores", {}).get(moment, {})
    todo = [file for file in files if not any(name.partition(":")[0] == file.stem for name in known)]
    if not todo:
        return
    subject = _base(config) if moment == "before" else _result(run, config, base, settings)
    if config.recipe not in ("embedding", "reranker"):
        subject = replace(subject, environ={**_reading(settings), **subject.environ})
    for file in todo:
        say(f"Evaluating {file.stem} {moment} training.")
        out = run.path / "evaluations" / moment / file.stem
        _evaluate(file, out, subject, config.evaluate.limit)
        known |= _scores(file.stem, out)
        run.note(scores={**run.read().get("scores", {}), moment: known})


def _scores(name: str, out: Path) -> dict[str, Any]:
    """The metrics of an evaluation, or of each of its variants as NAME:VARIANT."""
    logs = {log.parent.name: json.loads(log.read_text(encoding="utf-8")) for log in sorted(out.rglob("run.json"))}
    return {f"{name}:{place}" if log["variant"] else name: log["metrics"] for place, log in logs.items()}


def _base(config: TrainConfig) -> Subject:
    if config.recipe == "reranker":
        return Subject(("search.rerank=false",))
    return Subject((_key("embedder" if config.recipe == "embedding" else "chat", config.base),))


def _result(run: RunFolder, config: TrainConfig, base: Resolved, settings: Settings) -> Subject:
    """The adapter under its name in a state directory of the run's own, so that nothing goes live by being measured."""
    if config.recipe == "embedding":
        return Subject((_key("embedder", str(run.model)),))
    if config.recipe == "reranker":
        made = run.adapter if run.adapter.is_dir() else run.model
        return Subject((_key("reranker", str(made)), "search.rerank=true"))
    if config.adapter.kind == "full":
        return Subject((_key("chat", str(run.model)),))
    home = (run.path / "evaluations" / "home").resolve()
    AdapterStore(home).add(config.name, run.adapter, base, settings.core.tenant, overwrite=True)
    return Subject((_key("chat", f"{config.base}:{config.name}"),), {"LECTERN_LECTERN__HOME": str(home)})


def _reading(settings: Settings) -> dict[str, str]:
    """Agents read where nothing names another mode: quoting, as they would without roles, asks no chat model."""
    told = settings.values.get("agent", {}).get("mode", "auto") != "auto"
    return {} if told else {"LECTERN_AGENT__MODE": "read"}


def _key(kind: str, model: str) -> str:
    return f"models.{kind}={json.dumps(model)}"


def _evaluate(file: Path, out: Path, subject: Subject, limit: int) -> None:
    command: Sequence[str] = [
        *(sys.executable, "-m", "framework.cli", "eval", "run", str(file), "--out", str(out)),
        *(part for key in subject.keys for part in ("--set", key)),
        *(("--limit", str(limit)) if limit else ()),
    ]
    environ = {**os.environ, **subject.environ}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    if done.returncode not in (0, 1):  # 1: a threshold was missed, which is for promotion to judge
        raise CallerError(f"The evaluation {file} failed: {done.stderr.strip()[-800:]}", field="evaluate")
