"""What our engine's decoders answer to probes, with the adapter and without it in one batch, as requests are served."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from framework.engine.adapter import Adapter
from framework.engine.decoders import Dtype, decoder_for
from framework.errors import ModelUnavailable
from framework.training.probes import Answers, Floats, Reference

if TYPE_CHECKING:
    import torch

    from framework.engine.forward import Decoder, ForwardInputs

BLOCK: Final = 16
ADAPTER_BYTES: Final = 1 << 30
SLOT: Final = 1  # not the first, so that a decoder that takes any slot is seen


@dataclass(frozen=True, slots=True)
class Precision:
    """One way of computing a model.

    Attributes:
        dtype: of the weights, as `models.engine.dtype`.
        kernels: by the C++ kernels where they fit.
        device: None: CUDA where there is a card.
    """

    dtype: Dtype
    kernels: bool = False
    device: str | None = None

    @property
    def name(self) -> str:
        """As in "int8, kernels"."""
        return f"{self.dtype}, {'kernels' if self.kernels else 'torch'}"


def precisions(base: Path, device: str | None = None) -> tuple[Precision, ...]:
    """Every way in which the configuration can have this model served on this machine.

    Raises:
        ModelUnavailable: the model's configuration or the device can't be used.
    """
    import torch

    kind = decoder_for(base, block_size=BLOCK, device=device, kernels=False)
    card = (device or ("cuda" if torch.cuda.is_available() else "cpu")).startswith("cuda")
    if kind == "transformers":  # they are never rounded
        return tuple(Precision(dtype, device=device) for dtype in _floats(card))
    compiled = [
        Precision(dtype, True, device)
        for dtype in ("float32", "bfloat16", "int8")
        if decoder_for(base, block_size=BLOCK, dtype=dtype, device=device) == "kernels"
    ]
    return (*compiled, *(Precision(dtype, device=device) for dtype in (*_floats(card), "int8")))


def _floats(card: bool) -> tuple[Dtype, ...]:
    return ("float32", "bfloat16", "float16") if card else ("float32", "bfloat16")


def answer(
    base: Path, adapter: Adapter, precision: Precision, reference: Reference, threads: int | None = None
) -> Answers:
    """The log-probabilities of the reference's tokens, as this precision serves them.

    Args:
        threads: that the kernels compute with.

    Raises:
        ModelUnavailable: the base can't be loaded so.
        CallerError: the adapter can't be served on it.
    """
    from framework.engine.decoders import load_decoder
    from framework.engine.lora import AdapterCache
    from framework.engine.model_runner import ModelRunner

    decoder = load_decoder(
        base,
        base.name,
        block_size=BLOCK,
        dtype=precision.dtype,
        device=precision.device,
        adapter_slots=SLOT + 1,
        kernels=precision.kernels,
        threads=threads,
    )
    longest = max(map(len, reference.probes.sequences))
    if longest > decoder.context_length:
        raise ModelUnavailable(f"A probe has {longest} tokens, the model takes {decoder.context_length}.")
    decoder.allocate(2 * -(-longest // BLOCK))
    ModelRunner(decoder, BLOCK, AdapterCache(ADAPTER_BYTES)).load(SLOT, adapter)
    parts = list(_asked(decoder, reference))
    return Answers(np.concatenate([part.adapted for part in parts]), np.concatenate([part.base for part in parts]))


def _asked(decoder: Decoder, reference: Reference) -> Iterator[Answers]:
    """One probe after another, each as two requests of a step: one for the adapter, one for the base."""
    import torch

    start = 0
    for sequence in reference.probes.sequences:
        count = len(sequence) - 1
        wanted = torch.from_numpy(reference.tokens[start : start + count]).to(decoder.device)
        logits = decoder.forward(_inputs(sequence))
        adapted, plain = (_of(part, wanted) for part in (logits[:count], logits[count:]))
        yield Answers(adapted, plain)
        start += count


def _of(logits: torch.Tensor, wanted: torch.Tensor) -> Floats:
    """Log-probabilities of the wanted tokens alone: the others need no copy."""
    found = logits.gather(1, wanted) - logits.logsumexp(dim=1, keepdim=True)
    values: Floats = found.float().cpu().numpy()
    return values


def _inputs(sequence: tuple[int, ...]) -> ForwardInputs:
    from framework.engine.forward import ForwardInputs

    count, blocks = len(sequence), -(-len(sequence) // BLOCK)
    places = np.arange(1, count, dtype=np.int32)  # see `Probes.places`
    return ForwardInputs(
        tokens=np.array(sequence * 2, dtype=np.int32),
        positions=np.tile(np.arange(count, dtype=np.int32), 2),
        starts=np.array([0, count, 2 * count], dtype=np.int32),
        blocks=np.arange(2 * blocks, dtype=np.int32).reshape(2, blocks),
        slots=np.array([SLOT, -1], dtype=np.int32),
        sampled=np.concatenate([places, count + places]),
    )
