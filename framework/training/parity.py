"""The parity gate: an adapter is served only if our engine gives what its trainer gives, in each served precision.

The trainer is transformers with PEFT. Both sides are asked the same probes, with the adapter and without it:

    export     what the model in training answered at its end  against  PEFT on the saved files
    float32 …  PEFT on the saved files  against  our decoder in that precision, the adapter applied as for a request

A precision that rounds is wrong by some amount on the base alone. The adapter must not add much to that, and its effect
(what it changes in a log-probability) must be as large as at the trainer's. So a fault shows although figures are
rounded: a wrong scale, a lost layer, other weights, no adapter at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from framework.engine.lora import identify
from framework.errors import StoreCorrupt
from framework.training.probes import Answers, Floats, Probes, Reference, from_files
from framework.training.served import Precision, answer, precisions

REPORT: Final = "parity.json"
GROUPS: Final = 16  # parts of the probes by whose spread the effect's error is told
MOST: Final = 1e-3  # that a log-probability may exceed 0 by, for rounding
NO_EFFECT: Final = 1e-4  # nats; an adapter that changes less changes nothing
Say: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a comparison may show at most.

    Attributes:
        divergence: mean KL divergence from the trainer, in nats.
        added: how many times the divergence of the base alone it may be; `slack` is added to that.
        share: or which part of what the adapter changes, where that is more: an adapter that changes much is rounded
            where the base has nothing to round.
        effect: how far the adapter's effect may be from the trainer's, as a share of it, beyond three standard errors.
        largest: difference of any compared log-probability; None: not judged, where single ones vary too much.
    """

    divergence: float
    added: float
    share: float
    slack: float
    effect: float
    largest: float | None = None


# Chosen on SmolLM2-135M with trained and random LoRA and (IA)³; docs/adapters.md has what was measured.
TOLERANCES: Final = {
    "float32": Tolerance(divergence=1e-6, added=2.0, share=1e-6, slack=1e-6, effect=1e-3, largest=2e-3),
    "bfloat16": Tolerance(divergence=0.02, added=2.5, share=0.01, slack=1e-5, effect=0.05),
    "float16": Tolerance(divergence=0.02, added=2.5, share=0.01, slack=1e-5, effect=0.05),
    "int8": Tolerance(divergence=0.25, added=2.5, share=0.1, slack=1e-4, effect=0.1),
    # The adapter's own tensors may have been rounded when they were saved.
    "export": Tolerance(divergence=1e-4, added=2.0, share=1e-3, slack=1e-4, effect=0.02, largest=0.05),
    "export of bfloat16": Tolerance(divergence=0.02, added=2.5, share=0.005, slack=1e-4, effect=0.05),
}


@dataclass(frozen=True, slots=True)
class Figures:
    """How far two sides are apart.

    Attributes:
        largest: largest difference of a log-probability of the trainer's top tokens, in nats.
        mean: mean of these differences.
        divergence: mean KL divergence from the trainer, over its top tokens and the rest as one.
        base_divergence: the same of the base without the adapter.
        change: mean KL divergence of the trainer's base from the trainer's model with the adapter.
        effect: size of the adapter's effect as a share of the trainer's; 1 is right, 0 is no adapter at all.
        effect_error: its standard error, by the jackknife.
    """

    largest: float
    mean: float
    divergence: float
    base_divergence: float
    change: float
    effect: float
    effect_error: float


@dataclass(frozen=True, slots=True)
class Compared:
    """One comparison; `problem` says why it failed and is empty where it passed."""

    name: str
    figures: Figures
    tolerance: Tolerance
    problem: str = ""

    @property
    def passed(self) -> bool:
        return not self.problem


@dataclass(frozen=True, slots=True)
class ParityReport:
    """What the gate found.

    Attributes:
        base: the base, as adapters name it.
        adapter: digest of the adapter's files.
        probes: digest of the token sequences.
        tokens: how many they have in all.
    """

    base: str
    adapter: str
    probes: str
    tokens: int
    compared: tuple[Compared, ...]

    @property
    def passed(self) -> bool:
        return bool(self.compared) and all(one.passed for one in self.compared)

    @property
    def reason(self) -> str:
        """Why it failed, in a sentence; empty where it passed."""
        failed = [one for one in self.compared if not one.passed]
        more = f" (and in {len(failed) - 1} more)" if len(failed) > 1 else ""
        return f"{failed[0].name}: {failed[0].problem}{more}" if failed else "" if self.compared else "nothing compared"

    def to_json(self) -> str:
        values = {"passed": self.passed, "reason": self.reason, **asdict(self)}
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"

    def save(self, folder: Path) -> Path:
        """Write `parity.json` into a folder, whole or not at all."""
        path, draft = folder / REPORT, folder / f"{REPORT}.draft"
        draft.write_text(self.to_json(), encoding="utf-8")
        return draft.replace(path)

    def table(self) -> str:
        """For a terminal."""
        heads = ("compared", "largest", "mean", "KL", "base's", "adapter's", "effect", "")
        rows = [heads, *(_cells(one) for one in self.compared)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(lines)


_READER: Final = TypeAdapter(ParityReport)


def read_report(folder: Path) -> ParityReport | None:
    """The report beside an adapter; None: there is none.

    Raises:
        StoreCorrupt: it is damaged.
    """
    try:
        return _READER.validate_json((folder / REPORT).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise StoreCorrupt(f"{folder / REPORT} is damaged.", hint="`lectern adapters check` writes it anew.") from error


def check_parity(
    base: Path,
    folder: Path,
    *,
    name: str,
    probes: Probes | None = None,
    trained: Reference | None = None,
    served: Path | None = None,
    only: Sequence[Precision] | None = None,
    device: str | None = None,
    threads: int | None = None,
    say: Say = lambda text: None,
) -> ParityReport:
    """Compare what the engine serves with what the trainer gives.

    Args:
        base: the folder that the adapter was trained on.
        folder: the adapter, as the trainer saved it.
        name: what adapters call the base.
        probes: None: the ones that `trained` was asked, or else generated ones.
        trained: what the model in training answered, before it was saved.
        served: the adapter's files as they are served; None: `folder` itself.
        only: precisions; None: all that the configuration can have on this machine.
        device: that requests are served on; None: CUDA where there is a card.
        say: told what is compared next.

    Raises:
        CallerError: the adapter can't be served, or PEFT can't apply it.
        ModelUnavailable: the base can't be loaded by one side or the other.
    """
    adapter = identify(served or folder)
    asked = trained.probes if trained else probes or Probes.generated(base)
    say("the trainer")
    reference = from_files(base, folder, asked, trained.tokens if trained else None)
    compared = []
    if trained:
        kept = "export" if trained.precision == "float32" else "export of bfloat16"
        compared.append(compare("export", trained, reference.answers, TOLERANCES[kept]))
    for precision in precisions(base, device) if only is None else only:
        say(precision.name)
        got = answer(base, adapter, precision, reference, threads)
        compared.append(compare(precision.name, reference, got, TOLERANCES[precision.dtype]))
    return ParityReport(name, adapter.digest, asked.digest, asked.tokens, tuple(compared))


def compare(name: str, reference: Reference, got: Answers, tolerance: Tolerance) -> Compared:
    """Judge one side's answers by the other's."""
    with np.errstate(invalid="ignore", over="ignore"):  # what is no number is told by name
        figures = _figures(reference.answers, got)
    wrong = [found for found in (got.adapted, got.base) if not (np.isfinite(found) & (found < MOST)).all()]
    problem = "a log-probability is no number" if wrong else _problem(figures, tolerance)
    return Compared(name, figures, tolerance, problem)


def _figures(trainer: Answers, served: Answers) -> Figures:
    difference = np.abs(served.adapted.astype(np.float64) - trainer.adapted)
    effect, error = _effect(trainer, served)
    return Figures(
        largest=float(difference.max()),
        mean=float(difference.mean()),
        divergence=_divergence(trainer.adapted, served.adapted),
        base_divergence=_divergence(trainer.base, served.base),
        change=_divergence(trainer.adapted, trainer.base),
        effect=effect,
        effect_error=error,
    )


def _divergence(trainer: Floats, served: Floats) -> float:
    """Mean of KL(trainer, served) over the compared tokens and the rest of the vocabulary as one more."""
    ours, theirs = (np.concatenate([x, _rest(x)], axis=1) for x in (trainer.astype(np.float64), served))
    return max(float((np.exp(ours) * (ours - theirs)).sum(axis=1).mean()), 0.0)


def _rest(logs: NDArray[Any]) -> NDArray[np.float64]:
    """Log-probability (N, 1) of the tokens that are not compared."""
    left = 1 - np.exp(logs.astype(np.float64)).sum(axis=1, keepdims=True)
    return np.log(np.clip(left, 1e-9, 1))  # type: ignore[no-any-return]


def _effect(trainer: Answers, served: Answers) -> tuple[float, float]:
    """By how much the served effect is the trainer's (least squares through 0), and the standard error of that."""
    theirs = trainer.adapted.astype(np.float64) - trainer.base
    ours = served.adapted.astype(np.float64) - served.base
    if np.sqrt(np.mean(theirs**2)) < NO_EFFECT:
        return (1.0 if np.sqrt(np.mean(ours**2)) < NO_EFFECT * 10 else float("inf")), 0.0
    parts = np.array_split(np.arange(len(theirs)), min(GROUPS, len(theirs)))
    products = np.array([(theirs[part] * ours[part]).sum() for part in parts])
    squares = np.array([(theirs[part] ** 2).sum() for part in parts])
    without = (products.sum() - products) / np.maximum(squares.sum() - squares, 1e-12)
    error = np.sqrt((len(parts) - 1) * np.mean((without - without.mean()) ** 2))
    return float(products.sum() / squares.sum()), float(error)


def _problem(figures: Figures, tolerance: Tolerance) -> str:
    """Why these figures are not tolerated; empty where they are."""
    rounding = max(tolerance.added * figures.base_divergence, tolerance.share * figures.change)
    allowed = min(tolerance.divergence, rounding + tolerance.slack)
    if abs(figures.effect - 1) > tolerance.effect + 3 * figures.effect_error:
        return f"the adapter has {figures.effect:.0%} of the effect that it has at the trainer's"
    if not figures.divergence <= allowed:
        return (
            f"it diverges from the trainer by {figures.divergence:.2g} nats, {allowed:.2g} are tolerated "
            f"(the base alone: {figures.base_divergence:.2g})"
        )
    if tolerance.largest is not None and not figures.largest <= tolerance.largest:
        return f"a log-probability differs by {figures.largest:.2g}, {tolerance.largest:g} is tolerated"
    return ""


def _cells(one: Compared) -> tuple[str, ...]:
    f = one.figures
    numbers = (f.largest, f.mean, f.divergence, f.base_divergence, f.change)
    effect = f"{f.effect:.3f} ±{f.effect_error:.3f}"
    return (one.name, *(f"{number:.1e}" for number in numbers), effect, "passed" if one.passed else "FAILED")
