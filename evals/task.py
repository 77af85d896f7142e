"""A task file: what to measure, on which data, with which metrics and thresholds; its variants and its overrides.

    [task]                                       # name, metrics, thresholds
    [dataset]                                    # see evals.dataset
    [target]                                     # see evals.targets
    [run]                                        # concurrency, errors, seed
    [variants.NAME]                              # tables that replace keys of the above, one run each
    [index] [models] [search] [agent]            # replace keys of lectern.toml for this task

Relative paths start at the file's own folder; `${NAME}` in a path is that environment variable.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from evals.dataset import BeirConfig, CallsConfig, DatasetConfig, QuestionsConfig
from evals.gates import Gate, parse_gate
from evals.metrics import Metric, parse_metric
from framework.config import Settings
from framework.errors import ConfigError
from framework.messages import canonical_json

PASSED_ON = ("index", "models", "search", "agent")
CHANGEABLE = ("task", "dataset", "target", "run", *PASSED_ON)
DATASETS: Mapping[str, type[DatasetConfig]] = {
    "beir": BeirConfig,
    "questions": QuestionsConfig,
    "calls": CallsConfig,
}
_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class TaskConfig:
    """Section `[task]`. A threshold is `METRIC >= NUMBER`, or `METRIC.low >= NUMBER` for the interval's lower end."""

    name: str
    metrics: tuple[str, ...] = ()
    thresholds: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Section `[run]`.

    Attributes:
        concurrency: most samples under way at once.
        errors: "zero": a failed sample scores 0; "exclude": it is left out of the means. It is reported either way.
        timeout: seconds after which a sample has failed.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """

    concurrency: int = 4
    errors: Literal["zero", "exclude"] = "zero"
    timeout: float = 300.0
    seed: int = 0
    resamples: int = 2000


@dataclass(frozen=True, slots=True)
class Task:
    """One configuration to run: a task file, one of its variants, and the overrides."""

    config: TaskConfig
    run: RunConfig
    dataset: DatasetConfig
    target: Mapping[str, Any]
    sections: Mapping[str, Mapping[str, Any]]
    metrics: tuple[Metric, ...]
    gates: tuple[Gate, ...]
    path: Path
    variant: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        """The folder that the task's relative paths start at."""
        return self.path.resolve().parent

    @property
    def name(self) -> str:
        return f"{self.config.name}-{self.variant}" if self.variant else self.config.name

    def settings(self, user: Settings) -> Settings:
        """The user's settings with this task's sections on top; what is indexed is in the dataset's language."""
        language = {"index": {"language": self.dataset.language}}
        return Settings(_merged(_merged(user.values, language), self.sections), user.base, user.path)


def suites() -> dict[str, Path]:
    """The task files that ship, by name."""
    folder = Path(str(files("evals") / "suites"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_tasks(
    place: str, overrides: Sequence[str] = (), variants: Sequence[str] = (), environ: Mapping[str, str] = os.environ
) -> list[Task]:
    """The tasks of a file, or of a suite that ships: one for each variant, or one in all.

    Args:
        place: a TOML file, or a suite's name.
        overrides: `table.key=value`, the value as TOML would read it; they go before what a variant says.
        variants: take only these.

    Raises:
        ConfigError: no such file, or a key, value, metric or threshold that is wrong, by name.
    """
    path = Path(place)
    if not path.is_file() and place in suites():
        path = suites()[place]
    values = _read(path)
    choices: dict[str, Any] = values.pop("variants", {})
    unknown = set(variants) - choices.keys()
    if unknown:
        known = ", ".join(choices) or "none"
        raise ConfigError(f"{path} has no variant {min(unknown)!r}.", hint=f"It has: {known}.", field="--variant")
    changes = _overrides(overrides)
    chosen = [name for name in choices if not variants or name in variants]
    merged = {name: _merged(_merged(values, choices[name]), changes) for name in chosen}
    if len({canonical_json(each) for each in merged.values()}) <= 1 and not variants:
        merged = {"": _merged(values, changes)}  # there are no variants, or the overrides set what they vary
    return [_task(each, name, path, environ) for name, each in merged.items()]


def _task(values: Mapping[str, Any], variant: str, path: Path, environ: Mapping[str, str]) -> Task:
    dataset = _dataset(_table(values, "dataset", path), path.resolve().parent, environ)
    read = Settings({**values, "dataset": dataset}, path.parent, path)
    config, run = read.section("task", TaskConfig), read.section("run", RunConfig)
    _check_run(run)
    metrics = tuple(parse_metric(name) for name in dict.fromkeys(config.metrics))
    if not metrics:
        raise ConfigError(f"{path} names no metric.", field="task.metrics")
    gates = tuple(parse_gate(text, [metric.name for metric in metrics]) for text in config.thresholds)
    target = _table(values, "target", path)
    if "function" in target:
        target["function"] = _expanded(target["function"], environ, "target.function")
    sections = {name: values[name] for name in PASSED_ON if name in values}
    data = read.section("dataset", DATASETS[dataset["kind"]])
    return Task(config, run, data, target, sections, metrics, gates, path, variant, values)


def _dataset(table: dict[str, Any], base: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """The table with a known kind, its variables replaced and its paths made absolute."""
    kind = table.get("kind")
    if kind not in DATASETS:
        raise ConfigError(f"dataset.kind must be one of {', '.join(DATASETS)}, got {kind!r}.", field="dataset.kind")
    if isinstance(table.get("passages"), str):
        table["passages"] = [table["passages"]]
    for key in ("path", "passages"):
        value = _expanded(table.get(key), environ, f"dataset.{key}")
        if isinstance(value, list):
            table[key] = [base / str(place) for place in value]
        elif value is not None:
            table[key] = base / str(value)
    return table


def _check_run(run: RunConfig) -> None:
    for key in ("concurrency", "timeout", "resamples"):
        if not getattr(run, key) > 0:
            raise ConfigError(f"run.{key} must be above 0, got {getattr(run, key)!r}.", field=f"run.{key}")


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = f"Suites that ship: {', '.join(suites())}."
        raise ConfigError(f"There is no task file {path}.", hint=hint) from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no task file: {error}.") from error
    for name, table in values.items():
        if name not in (*CHANGEABLE, "variants"):
            known = ", ".join((*CHANGEABLE, "variants"))
            raise ConfigError(f"Unknown table [{name}] in {path}.", hint=f"Known: {known}.", field=name)
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: the key {name!r} stands outside a table.", field=name)
    for name, table in values.get("variants", {}).items():
        wrong = [key for key in table if key not in CHANGEABLE] if isinstance(table, dict) else ["(no table)"]
        if wrong:
            place = f"variants.{name}.{wrong[0]}"
            raise ConfigError(f"Unknown table {place} in {path}.", hint=f"Known: {', '.join(CHANGEABLE)}.", field=place)
    return values


def _table(values: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    if name not in values:
        raise ConfigError(f"{path} has no table [{name}].", field=name)
    return dict(values[name])


def _overrides(texts: Sequence[str]) -> dict[str, Any]:
    """`a.b=value` for each, as nested tables."""
    changes: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        keys = name.strip().split(".")
        if not equals or len(keys) < 2 or not all(keys) or keys[0] not in CHANGEABLE:
            hint = f"For example target.mode=dense; tables: {', '.join(CHANGEABLE)}."
            raise ConfigError(f"--set {text!r} is no table.key=value.", hint=hint, field=name)
        try:
            read = tomllib.loads(f"value = {value.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            read = value.strip()
        for key in reversed(keys):
            read = {key: read}
        changes = _merged(changes, read)
    return changes


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `under`, tables merged at every depth."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = _merged(below, value) if both else value  # type: ignore[arg-type]  # `both` narrows neither
    return merged


def _expanded(value: Any, environ: Mapping[str, str], place: str) -> Any:
    """`${NAME}` replaced in texts, also inside lists."""
    if isinstance(value, list):
        return [_expanded(item, environ, place) for item in value]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if not environ.get(match[1]):
            raise ConfigError(
                f"{place} is {value!r}, and {match[1]} is not set.",
                hint=f"Set {match[1]} to the folder that holds the data.",
                field=place,
            )
        return environ[match[1]]

    return _VARIABLE.sub(variable, value)
