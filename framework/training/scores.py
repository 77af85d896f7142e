"""Scores before and after: the evaluations that a run names, by `lectern eval` in processes of their own.

Evaluation lies above training, so it is called as a user calls it; its memory is free again afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from framework.config import Settings
from framework.documents import content_hash
from framework.errors import CallerError, NotFound
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
    with _base(config) if moment == "before" else _result(run, config, base, settings) as subject:
        reading = {} if config.recipe in ("embedding", "reranker") else _reading(settings)
        subject = replace(subject, environ={"LECTERN_LECTERN__HOME": str(settings.home), **reading})
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


@contextmanager
def _base(config: TrainConfig) -> Iterator[Subject]:
    if config.recipe == "reranker":
        yield Subject(("search.rerank=false",))
    else:
        yield Subject((_key("embedder" if config.recipe == "embedding" else "chat", config.base),))


@contextmanager
def _result(run: RunFolder, config: TrainConfig, base: Resolved, settings: Settings) -> Iterator[Subject]:
    """An adapter has a name of its own only while it is measured: under the run's it would be live."""
    if config.recipe == "embedding":
        yield Subject((_key("embedder", str(run.model)),))
    elif config.recipe == "reranker":
        made = run.adapter if run.adapter.is_dir() else run.model
        yield Subject((_key("reranker", str(made)), "search.rerank=true"))
    elif config.adapter.kind == "full":
        yield Subject((_key("chat", str(run.model)),))
    else:
        # The same after a kill, which leaves it behind: evaluations go on where they were.
        name = f"{config.name[:44]}.trial.{content_hash(str(run.path.resolve()))[:12]}"
        store, tenant = AdapterStore.open(settings), settings.core.tenant
        with suppress(NotFound):
            store.remove(name, tenant)
        store.add(name, run.adapter, base, tenant)
        try:
            yield Subject((_key("chat", f"{config.base}:{name}"),))
        finally:
            store.remove(name, tenant)


def _reading(settings: Settings) -> dict[str, str]:
    """Agents read where nothing names another mode: quoting, as they would without roles, asks no chat model."""
    told = settings.values.get("agent", {}).get("mode", "auto") != "auto"
    return {} if told else {"LECTERN_AGENT__MODE": "read"}


def _key(kind: str, model: str) -> str:
    return f"models.{kind}={json.dumps(model)}"


def _evaluate(file: Path, out: Path, subject: Subject, limit: int) -> None:
    command: Sequence[str] = [
        *(sys.executable, "-m", "framework.cli", "eval", "run", str(file), "--out", str(out), "--json"),
        *(part for key in subject.keys for part in ("--set", key)),
        *(("--limit", str(limit)) if limit else ()),
    ]
    environ = {**os.environ, **subject.environ}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    # 1: a threshold was missed, which is for promotion to judge; or a traceback, and then nothing was printed.
    if done.returncode not in (0, 1) or not done.stdout.strip():
        raise CallerError(f"The evaluation {file} failed: {done.stderr.strip()[-800:]}", field="evaluate")
