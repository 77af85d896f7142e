"""From a file to a trained adapter: read, check, split, train, draw, describe."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from framework.config import Settings
from framework.errors import CallerError, ConfigError
from framework.extras import require
from framework.models.adapter_files import FILES
from framework.models.catalog import Catalog, Resolved
from framework.models.config import ModelsConfig
from framework.training import card, curves, rewards, scores
from framework.training.config import DataConfig, Recipe, TrainConfig, read_config
from framework.training.data import KINDS, Data, Material
from framework.training.datasets import Row
from framework.training.job import Job
from framework.training.leaks import HeldOut, find_leaks, held_out_row, read_held_out
from framework.training.progress import Say, on_terminal
from framework.training.row_parts import parts_of
from framework.training.run import FINISHED, RunFolder, files_hash
from framework.training.tuning import check_start

NEEDED = ("peft", "trl", "datasets", "sentence_transformers", "accelerate", "matplotlib")


def run_file(
    path: Path, settings: Settings, *, restart: bool = False, evaluate: bool = True, say: Say = on_terminal
) -> tuple[RunFolder, TrainConfig]:
    """Train what a file describes, or take up its run where it was killed; a finished one is left as it is.

    Args:
        restart: throw an earlier run away.
        evaluate: run the evaluations that the file names, before and after.

    Raises:
        ConfigError: the file is wrong, or the adapter to start from has another form.
        CallerError: the data is wrong, or training data holds what was to be held out; the training diverged.
        Conflict: the run folder holds another run, or another process trains in it; the adapter to start from has
            another base.
    """
    require("train", *NEEDED)
    _quiet()
    config = read_config(path)
    folder = path.resolve().parent
    base = Catalog(settings.section("models", ModelsConfig)).resolve(config.base)
    known = base_hashes(base)
    data, files = load(config, folder, say)
    if config.adapter.start is not None:
        start = folder / config.adapter.start
        check_start(config.adapter, start, base, known)
        files += [start / name for name in FILES]
    if config.recipe == "grpo":
        files += rewards.files(config.preference.rewards, folder)
    run = RunFolder(folder / config.out)
    facts = {
        "config": config.values(),
        "data": files_hash(files),
        "base": {"name": base.card.name, "files": known},
    }
    with run.held():
        if run.begin(facts, restart):
            say(f"{run.path} is finished already; --restart trains again.")
        else:
            _make(Job(config, base, data, run, say, folder), settings, evaluate)
    return run, config


def _make(job: Job, settings: Settings, evaluate: bool) -> None:
    """The run itself, from the evaluations before to the card."""
    run, config, data = job.run, job.config, job.data
    run.note(rows={"train": len(data.train), "validation": len(data.validation)}, process=os.getpid())
    # Nothing answers with a reward model: there is nothing of it to evaluate.
    measured = evaluate and config.recipe != "reward"
    if measured:
        scores.measure(run, config, job.base, job.folder, "before", settings, job.say)
    _recipe(config.recipe)(job)
    curves.draw(run)
    if measured:
        scores.measure(run, config, job.base, job.folder, "after", settings, job.say)
    card.write(run, config, job.base, data)
    run.note(state=FINISHED)


def load(config: TrainConfig, folder: Path, say: Say) -> tuple[Data, list[Path]]:
    """The rows of a configuration, split and checked, and the files that they came from.

    Raises:
        CallerError: a file is wrong, or a held-out text is among the training rows.
    """
    options, seed, kind = config.data, config.optimizer.seed, KINDS[config.recipe]
    train_files = _expanded(options.train, folder, "data.train")
    validation_files = _expanded(options.validation, folder, "data.validation")
    material = Material.read(train_files, kind)
    if validation_files:
        rows, held_out = material.rows(options, seed), Material.read(validation_files, kind).rows(options, seed)
    else:
        rows, held_out = _split(material, options, seed, say)
    if not rows:
        raise _nothing(material)
    refuse_leaks(rows, held_out if validation_files else (), _expanded(options.exclude, folder, "data.exclude"))
    say(f"{len(rows):,} rows to train on, {len(held_out):,} to measure the loss on.")
    return Data(tuple(rows), tuple(held_out)), [*train_files, *validation_files]


def _nothing(material: Material) -> CallerError:
    if material.kind == "preference" and (material.documents or material.boxes or material.ready):
        return CallerError(
            "No rule could make a worse answer than those of data.train.",
            hint="Rules know answers from a passage and calls of tools; give rows with prompt, chosen and rejected.",
            field="data.train",
        )
    return CallerError("There is nothing to train on.", hint="Name files under data.train.", field="data.train")


def _split(material: Material, options: DataConfig, seed: int, say: Say) -> tuple[list[Row], list[Row]]:
    """The rows to train on, and a share kept back that they give nothing away of; all and none where they do of all."""
    train, validation = material.split(options.validation_share, seed)
    rows, held_out = train.rows(options, seed), validation.rows(options, seed)
    kept = _kept_apart(rows, held_out)
    if held_out and not kept:
        say("Nothing is kept back to measure the loss on: training rows say all of it. Name files in data.validation.")
        return material.rows(options, seed), []
    if len(kept) < len(held_out):
        gone = len(held_out) - len(kept)
        say(f"Of {len(held_out):,} rows kept back {gone:,} are left out: training rows say the same.")
    return rows, kept


def _kept_apart(rows: Sequence[Row], held_out: Sequence[Row]) -> list[Row]:
    """What training rows don't give away: whoever asks one thing twice writes two documents."""
    kept = list(held_out)
    while leaks := find_leaks(rows, _all_held_out(kept)):
        # One place is named of all that a row gives away; looking from the other side finds the rest at once. The
        # training rows are beside, since what many documents answer gives nothing away.
        leaking = [held_out_row(rows[place], "") for place in sorted({leak.place for leak in leaks})]
        gone = {int(leak.where.rpartition(" ")[2]) - 1 for leak in leaks}
        gone |= {
            leak.place
            for leak in find_leaks([*kept, *rows], leaking)
            if leak.place < len(kept) and not (leak.reason.endswith("question") and parts_of(kept[leak.place]).read)
        }
        kept = [row for place, row in enumerate(kept) if place not in gone]
    return kept


def refuse_leaks(rows: Sequence[Row], validation: Sequence[Row], files: Sequence[Path]) -> None:
    """Stop before training on what is to be measured with.

    Raises:
        CallerError: naming the first rows that leak, and why.
    """
    leaks = find_leaks(rows, [*_all_held_out(validation), *(item for file in files for item in read_held_out(file))])
    if leaks:
        shown = "; ".join(
            f"{rows[leak.place].document!r} and {leak.where} share {leak.shared[:80]!r} ({leak.reason})"
            for leak in leaks[:3]
        )
        raise CallerError(
            f"{len({leak.place for leak in leaks})} training rows hold what is held out: {shown}.",
            hint="Take them out, with `lectern dataset clean` for example.",
            field="data.exclude",
        )


def _all_held_out(rows: Sequence[Row]) -> list[HeldOut]:
    return [_held_out(row, place) for place, row in enumerate(rows, start=1)]


def _held_out(row: Row, place: int) -> HeldOut:
    """A validation row. "Who decides?" about two texts are two questions: with a text, the text tells."""
    item = held_out_row(row, f"validation row {place}")
    return replace(item, questions=()) if parts_of(row).read else item


def base_hashes(base: Resolved) -> dict[str, str]:
    """SHA-256 of the base's own files."""
    return files_hash(sorted(p for p in base.path.iterdir() if p.suffix in (".json", ".safetensors", ".jinja")))


def _expanded(places: Sequence[Path], folder: Path, field: str) -> list[Path]:
    """Paths with `*` and `${NAME}` replaced."""
    found: list[Path] = []
    for place in places:
        text = os.path.expandvars(str(place))
        if "$" in text:
            raise ConfigError(f"{field}: a variable in {str(place)!r} is not set.", field=field)
        whole = Path(text) if Path(text).is_absolute() else folder / text
        matches = sorted(whole.parent.glob(whole.name)) if set("*?[") & set(whole.name) else [whole]
        if not matches:
            raise ConfigError(f"{field}: nothing matches {whole}.", field=field)
        found += matches
    return found


def _recipe(name: Recipe) -> Callable[[Job], None]:
    """The recipe's `train`, imported when it is used."""
    from importlib import import_module

    function: Callable[[Job], None] = import_module(f"framework.training.recipes.{name}").train
    return function


def _quiet() -> None:
    """No network, no telemetry, no warnings of libraries about themselves; room for large blocks to be reused."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|accelerate)\b")
