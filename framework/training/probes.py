"""What the parity gate asks, and what the trainer answers: token sequences, and the log-probabilities that follow.

A reference keeps, for each token of each probe, the trainer's most probable next tokens: their log-probabilities with
the adapter, and those that the base alone gives them, so that the adapter's own effect can be told from the rest.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from framework.errors import CallerError, ModelUnavailable, OperatorError

if TYPE_CHECKING:
    import torch

COUNT: Final = 8
LENGTH: Final = 64
REFERENCE: Final = "reference.safetensors"  # in the run folder: what the model in training answered
TOP: Final = 16  # tokens that are compared at each place, the trainer's most probable ones
MISSING: Final = "pip install 'lectern[train]'"

# One word of each line makes a sentence of a generated probe.
SENTENCE: Final = (
    "the a every this one our no that",
    "old annual small public second broken quiet final new written",
    "report bridge invoice garden contract engine letter train policy village meeting budget river",
    "of near about for behind without",
    "Anna Norway 2019 Monday 47 Lima March Keller winter Berlin 300 Tuesday",
    "describes needs covers follows was became reaches ended costs",
    "what why nine three some all 12 half fewer",
    "members pages hours rules tons visitors days answers windows euros",
    "because when although unless before and but",
    "it she they nobody someone we",
    "left paid changed wrote forgot asked won closed",
    "early twice again elsewhere today slowly alone",
)

Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Probes:
    """Token sequences that are put to both sides."""

    sequences: tuple[tuple[int, ...], ...]

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal."""
        return hashlib.sha256(repr(self.sequences).encode()).hexdigest()

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))

    @property
    def places(self) -> int:
        """Where the two sides are compared: after every token but a sequence's first.

        What follows a first token alone is decided by few very large activations, and eight bits are far off there.
        """
        return self.tokens - len(self.sequences)

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], count: int = COUNT, length: int = LENGTH) -> Probes:
        """The first token and the last ones of each: rows of a run's own validation data, which end in an answer.

        Raises:
            CallerError: none has two tokens.
        """
        whole = [tuple(int(token) for token in sequence) for sequence in sequences]
        cut = [row if len(row) <= length else (row[0], *row[1 - length :]) for row in whole]
        kept = tuple(sequence for sequence in cut if len(sequence) > 1)[:count]
        if not kept:
            raise CallerError("There is nothing to probe with.", hint="Give sequences of two tokens or more.")
        return cls(kept)

    @classmethod
    def generated(cls, base: Path, count: int = COUNT, length: int = LENGTH, seed: int = 0) -> Probes:
        """Made-up sentences in the base's tokens, all different.

        Random tokens would not do: no model expects them, and eight bits lose far more on them than on any text.

        Raises:
            ModelUnavailable: the base has no tokenizer.json that can be read.
        """
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        except Exception as error:  # the library raises nothing more specific
            raise ModelUnavailable(f"{base} has no tokenizer that can be read: {error}") from error
        chance = np.random.default_rng(seed)
        sequences = []
        for _ in range(count):
            ids: list[int] = []
            while len(ids) < length:
                words = [str(chance.choice(kind.split())) for kind in SENTENCE]
                ids += tokenizer.encode(" ".join(words).capitalize() + ". ", add_special_tokens=False).ids
            sequences.append(tuple(ids[:length]))
        return cls(tuple(sequences))


def probes_of(sequences: Sequence[Sequence[int]], base: Path) -> Probes:
    """Probes from a run's own validation data; generated ones where it has none."""
    return Probes.of(sequences) if any(len(sequence) > 1 for sequence in sequences) else Probes.generated(base)


@dataclass(frozen=True, slots=True)
class Answers:
    """Log-probabilities at the places of every probe, one after another (N places).

    Attributes:
        adapted: (N, TOP), of the reference's tokens, with the adapter.
        base: (N, TOP), of the same tokens, without it.
    """

    adapted: Floats
    base: Floats


@dataclass(frozen=True, slots=True)
class Reference:
    """The trainer's side.

    Attributes:
        tokens: int64 (N, TOP), the most probable next tokens with the adapter, best first.
        precision: what the trainer computed in.
    """

    probes: Probes
    tokens: NDArray[np.int64]
    answers: Answers
    precision: str = "float32"

    def save(self, path: Path) -> Path:
        """Write it, whole or not at all."""
        from safetensors.numpy import save_file

        lengths = np.array([len(sequence) for sequence in self.probes.sequences], dtype=np.int64)
        asked = np.concatenate([np.array(sequence, dtype=np.int64) for sequence in self.probes.sequences])
        tensors: dict[str, NDArray[Any]] = {
            "tokens": self.tokens,
            "adapted": self.answers.adapted,
            "base": self.answers.base,
        }
        draft = path.with_name(path.name + ".draft")
        save_file({**tensors, "asked": asked, "lengths": lengths}, draft, metadata={"precision": self.precision})
        draft.replace(path)
        return path

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what `save` wrote.

        Raises:
            OperatorError: it can't be read, or is damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                read = {name: file.get_tensor(name) for name in ("tokens", "adapted", "base", "asked", "lengths")}
                precision = str((file.metadata() or {}).get("precision", "float32"))
        except (OSError, SafetensorError) as error:
            raise OperatorError(f"{path} can't be read: {error}", hint="Train again.") from error
        ends = np.cumsum(read["lengths"])
        parts = np.split(read["asked"], ends[:-1])
        probes = Probes(tuple(tuple(part.tolist()) for part in parts))
        shapes = {read[name].shape for name in ("tokens", "adapted", "base")}
        if len(shapes) != 1 or shapes.pop()[0] != probes.places:
            raise OperatorError(f"{path} is damaged: its parts don't fit together.", hint="Train again.")
        return cls(probes, read["tokens"], Answers(read["adapted"], read["base"]), precision)


def record(
    model: Any, probes: Probes, precision: str = "float32", tokens: NDArray[np.int64] | None = None
) -> Reference:
    """What a model in training answers: at its end, before anything is saved.

    Args:
        model: a `PeftModel`; it is put into evaluation mode while it is asked.
        precision: what it computes in, as in `OptimizerConfig`.
        tokens: (N, TOP), the tokens to look at; None: the most probable ones.
    """
    import torch

    training, cast = model.training, nullcontext()
    device = next(model.parameters()).device
    if precision == "bfloat16":
        cast = torch.autocast(device.type, torch.bfloat16)  # type: ignore[assignment]
    model.eval()
    looked_at, adapted, base, start = [], [], [], 0
    try:
        with torch.inference_mode(), cast:
            for sequence in probes.sequences:
                asked = _asked(sequence, device)
                scores = _log_probabilities(model(**asked).logits[0, 1:])
                if tokens is None:
                    wanted = scores.topk(min(TOP, scores.shape[1]), dim=1).indices
                else:
                    wanted = torch.from_numpy(tokens[start : start + len(scores)]).to(device)
                with model.disable_adapter():
                    plain = _log_probabilities(model(**asked).logits[0, 1:])
                looked_at.append(wanted.cpu().numpy())
                adapted.append(scores.gather(1, wanted).cpu().numpy())
                base.append(plain.gather(1, wanted).cpu().numpy())
                start += len(scores)
    finally:
        model.train(training)
    answers = Answers(np.concatenate(adapted), np.concatenate(base))
    return Reference(probes, np.concatenate(looked_at), answers, precision)


def from_files(base: Path, adapter: Path, probes: Probes, tokens: NDArray[np.int64] | None = None) -> Reference:
    """What the trainer answers with the saved adapter: transformers and PEFT on this machine's processor, in float32.

    Raises:
        ModelUnavailable: the base can't be loaded, or PEFT is not installed.
        CallerError: PEFT can't apply the adapter.
    """
    return record(load_trained(base, adapter), probes, tokens=tokens)


def load_trained(base: Path, adapter: Path) -> Any:
    """The base with the adapter in its folder, as they are trained, in float32. See `from_files`."""
    import torch
    from safetensors import SafetensorError

    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelUnavailable("The parity gate compares with PEFT.", hint=f"Run: {MISSING}.") from error
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    auto: Any = AutoModelForCausalLM
    try:
        model = auto.from_pretrained(base, dtype=torch.float32, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise ModelUnavailable(f"The trainer can't load the base in {base}: {str(error)[:300]}") from error
    try:
        return PeftModel.from_pretrained(model, adapter).eval()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CallerError(f"PEFT can't apply the adapter in {adapter}: {str(error)[:300]}") from error


def _asked(sequence: Sequence[int], device: torch.device) -> dict[str, torch.Tensor]:
    """One probe, with the mask written out: the attention that packed sequences are trained with takes no other."""
    import torch

    lowest = torch.finfo(torch.float32).min
    mask = torch.full((len(sequence), len(sequence)), lowest, device=device).triu(1)
    return {"input_ids": torch.tensor([sequence], device=device), "attention_mask": mask[None, None]}


def _log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    return logits.float().log_softmax(dim=-1)
