"""The model card: what was trained on what, how, and what came out, from what the run recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from framework.models.catalog import Resolved
from framework.training.config import TrainConfig
from framework.training.data import Data
from framework.training.run import RunFolder


def write(run: RunFolder, config: TrainConfig, base: Resolved, data: Data) -> None:
    """Write README.md beside the result, with the front matter that model hubs read."""
    folder = run.model if run.model.is_dir() else run.adapter
    (folder / "README.md").write_text("\n".join(_lines(run, config, base, data)) + "\n", encoding="utf-8")


def _lines(run: RunFolder, config: TrainConfig, base: Resolved, data: Data) -> Iterator[str]:
    record = run.read()
    licences = Counter(row.provenance.licence for row in data.train)
    synthetic = sum(row.provenance.synthetic for row in data.train)
    yield from ("---", f"base_model: {base.card.name}", f"library_name: {_library(config)}", "tags: [lectern]", "---")
    yield from ("", f"# {config.name}", "")
    yield f"Trained by `lectern train` (recipe `{config.recipe}`) on {base.card.name}."
    yield from ("", "## Data", "")
    yield f"{len(data.train):,} rows to train on ({synthetic:,} synthetic), {len(data.validation):,} held out."
    yield f"Licences: {', '.join(f'{name} ({count:,} rows)' for name, count in licences.most_common())}."
    yield from ("", "| file | SHA-256 |", "|---|---|")
    yield from (f"| {name} | `{digest[:16]}…` |" for name, digest in record["facts"]["data"].items())
    yield from ("", "## Training", "")
    if "parameters" in record:
        trained, whole = record["parameters"]["trained"], record["parameters"]["all"]
        yield f"{trained:,} of {whole:,} parameters ({trained / whole:.2%})."
    yield from ("", "```toml", *_toml(config), "```")
    reports = run.reports()
    losses = [report["loss"] for report in reports if "loss" in report]
    if losses:
        yield from (
            "",
            f"Loss{' per token' if config.recipe == 'sft' else ''} {losses[0]:.3f} at first, {losses[-1]:.3f} at last;",
        )
        held_out = [report["validation_loss"] for report in reports if "validation_loss" in report]
        yield f"on held-out documents {held_out[-1]:.3f}." if held_out else "not measured on held-out rows."
    yield from _preferences(record)
    yield from ("", f"Versions: {', '.join(f'{name} {version}' for name, version in record['versions'].items())}.")
    if record.get("scores"):
        yield from ("", "## Scores", "", *_scores(record["scores"]))


def _preferences(record: Mapping[str, Any]) -> Iterator[str]:
    """What training on preferences or rewards has measured on held-out rows."""
    if "pairs" in record:
        found = record["pairs"]["accuracy"]
        yield from ("", f"Of {found['n']} held-out pairs the better answer is scored higher in {found['mean']:.1%}")
        yield f"(95% interval {found['low']:.1%} to {found['high']:.1%}); mean margin {record['pairs']['margin']:.3f}."
    if "reward" in record and "kl" in record:
        before, after, kl = record["reward"].get("before"), record["reward"]["after"], record["kl"]
        yield from ("", f"Mean reward on held-out prompts {_number(before)} before, {_number(after)} after;")
        yield f"divergence from the base {kl['measured']:.3f} nats a token, bound {kl['bound']}."


def _library(config: TrainConfig) -> str:
    if config.recipe in ("embedding", "reranker"):
        return "sentence-transformers"
    return "transformers" if config.adapter.kind == "full" else "peft"


def _scores(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[str]:
    yield from ("| evaluation | metric | before | after |", "|---|---|---|---|")
    before, after = scores.get("before", {}), scores.get("after", {})
    for name in {**before, **after}:
        for metric in {**before.get(name, {}), **after.get(name, {})}:
            told = [_number(side.get(name, {}).get(metric)) for side in (before, after)]
            yield f"| {name} | {metric} | {told[0]} | {told[1]} |"


def _number(value: Any) -> str:
    if isinstance(value, Mapping):
        mean, low, high = value.get("mean"), value.get("low"), value.get("high")
        return "" if mean is None else f"{mean:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None else "")
    return "" if value is None else f"{value:.3f}"


def _toml(config: TrainConfig) -> Iterator[str]:
    """The configuration as its file would say it."""
    values = config.values()
    tables = {name: value for name, value in values.items() if isinstance(value, dict)}
    yield from (f"{name} = {_value(value)}" for name, value in values.items() if name not in tables)
    for name, table in tables.items():
        yield f"[{name}]"
        yield from (f"{key} = {_value(value)}" for key, value in table.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
