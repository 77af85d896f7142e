"""Adapters in PEFT's own files: read, checked, and kept in the form that every decoder applies them in."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from framework.engine.adapter import Adapter
from framework.engine.peft_config import PeftConfig, refused
from framework.engine.peft_files import WEIGHTS, contents, digest_of, tensors_of

if TYPE_CHECKING:
    import torch

    from framework.engine.forward import ForwardInputs
    from framework.errors import CallerError

TENSOR: Final = re.compile(r"base_model\.model\.(?P<path>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|ia3_l)")
# Tensors of what is not served, and what to do about them.
LEFT_OVER: Final = {
    "lora_magnitude_vector": "That is DoRA: train with use_dora=False.",
    "lora_embedding": "Only linear layers are adapted: leave the embedding out of target_modules.",
    "trainable_tokens": "Only linear layers are adapted: train without trainable_token_indices.",
    "base_layer.": "It is the base's own: save the adapter with save_pretrained(..., save_embedding_layers=False).",
    "embed_tokens.": "It is the base's own: save the adapter with save_pretrained(..., save_embedding_layers=False).",
    "lora_B.bias": "Train with lora_bias=False.",
}


@dataclass(frozen=True, slots=True)
class LoraPair:
    """One linear layer's update: y += x @ a.T @ b.T. The scale (alpha / r, or alpha / sqrt(r)) is already in `b`.

    Attributes:
        a: float32 (rank, in).
        b: float32 (out, rank).
    """

    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """An adapter's tensors by linear layer, named as in the base model's checkpoint without "model." and ".weight".

    Such names are "layers.3.self_attn.q_proj" and "lm_head". (IA)³ scales a layer's input (feed-forward) or output.

    Attributes:
        lora: low-rank updates.
        input_scale: float32 (in,), multiplied with the layer's input.
        output_scale: float32 (out,), multiplied with the layer's output.
    """

    digest: str
    lora: Mapping[str, LoraPair] = field(default_factory=dict)
    input_scale: Mapping[str, torch.Tensor] = field(default_factory=dict)
    output_scale: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Memory that the tensors take."""
        pairs = chain.from_iterable((pair.a, pair.b) for pair in self.lora.values())
        return sum(t.nbytes for t in chain(pairs, self.input_scale.values(), self.output_scale.values()))


def identify(folder: Path) -> Adapter:
    """The adapter in a folder, by its content. The folder's other files are not looked at.

    Raises:
        CallerError: a file is missing, pickled, too large, or a link that leads out of the folder.
    """
    return Adapter(digest_of(*contents(folder)), folder)


def read_adapter(adapter: Adapter, linears: Mapping[str, tuple[int, int]]) -> AdapterWeights:
    """Read an adapter for a base whose linear layers have these (out, in).

    Everything in its files is either applied or refused.

    Raises:
        CallerError: it can't be served, doesn't fit the base, is damaged, or changed since it was identified.
    """
    config_data, data = contents(adapter.folder)
    if digest_of(config_data, data) != adapter.digest:
        raise refused(f"The files in {adapter.folder} have changed since the adapter was added.", "Add it again.")
    config, tensors = PeftConfig(config_data), tensors_of(data)
    parts: dict[str, dict[str, torch.Tensor]] = {}
    left_over = []
    for key, tensor in sorted(tensors.items()):
        found = TENSOR.fullmatch(key)
        if found and (found["part"] == "ia3_l") != config.is_lora:
            parts.setdefault(found["path"], {})[found["part"]] = tensor
        else:
            left_over.append(key)
    if left_over:
        raise _unserved(left_over)
    _check_targets(config, parts.keys(), linears)
    read = _read_lora if config.is_lora else _read_ia3
    return read(adapter.digest, config, parts, linears)


def check_fit(weights: AdapterWeights, linears: Mapping[str, tuple[int, int]]) -> None:
    """Refuse an adapter that was read for a base of other shapes.

    Raises:
        CallerError: a layer is missing in the base or has another shape.
    """
    shapes = {name: (pair.b.shape[0], pair.a.shape[1]) for name, pair in weights.lora.items()}
    for name, shape in shapes.items():
        if linears.get(name) != shape:
            raise _misfit(name, "the update", shape, linears.get(name))
    for side, scales in ((1, weights.input_scale), (0, weights.output_scale)):
        for name, scale in scales.items():
            if name not in linears or linears[name][side] != len(scale):
                raise _misfit(name, "the scale", tuple(scale.shape), linears.get(name))


class AdapterCache:
    """Adapters in host memory, for the slots to be filled from: least recently used go first, by bytes.

    What was dropped is read again from its folder. Thread-safe; two threads never read one adapter at the same time.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._kept: OrderedDict[str, AdapterWeights] = OrderedDict()
        self._lock = threading.Lock()
        self._reading: dict[str, threading.Lock] = {}

    def get(self, adapter: Adapter, linears: Mapping[str, tuple[int, int]]) -> AdapterWeights:
        """Raises: CallerError, as `read_adapter` does."""
        weights = self._look_up(adapter.digest)
        if weights is None:
            with self._lock:
                reading = self._reading.setdefault(adapter.digest, threading.Lock())
            with reading:
                try:
                    weights = self._look_up(adapter.digest) or self._keep(read_adapter(adapter, linears))
                finally:
                    self._reading.pop(adapter.digest, None)
        check_fit(weights, linears)
        return weights

    def _look_up(self, digest: str) -> AdapterWeights | None:
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
            return self._kept.get(digest)

    def _keep(self, weights: AdapterWeights) -> AdapterWeights:
        with self._lock:
            if weights.nbytes <= self.limit_bytes:
                self._kept[weights.digest] = weights
                self.used_bytes += weights.nbytes
            while self.used_bytes > self.limit_bytes:
                self.used_bytes -= self._kept.popitem(last=False)[1].nbytes
        return weights


class Rows:
    """Which of a step's T tokens each slot's adapter is for; false where no token has an adapter.

    Args:
        inputs: the step.
        device: where indices are needed; None: the CPU.
    """

    def __init__(self, inputs: ForwardInputs, device: torch.device | None = None) -> None:
        self._device = device
        self._spans: dict[int, list[tuple[int, int]]] = {}
        self._places: dict[tuple[int, ...], slice | torch.Tensor] = {}
        ends = inputs.starts[1:].tolist()
        for slot, start, end in zip(inputs.slots.tolist(), inputs.starts[:-1].tolist(), ends, strict=True):
            if slot >= 0:
                self._spans.setdefault(slot, []).append((start, end))
        self.counts = {slot: sum(end - start for start, end in spans) for slot, spans in self._spans.items()}

    def __bool__(self) -> bool:
        return bool(self.counts)

    def of(self, slots: tuple[int, ...]) -> slice | torch.Tensor:
        """The places of these slots' rows, a slot after the other: a slice where they are neighbours."""
        if slots not in self._places:
            self._places[slots] = self._place([span for slot in slots for span in self._spans[slot]])
        return self._places[slots]

    def _place(self, spans: list[tuple[int, int]]) -> slice | torch.Tensor:
        import torch

        if all(before[1] == after[0] for before, after in pairwise(spans)):
            return slice(spans[0][0], spans[-1][1])
        return torch.cat([torch.arange(*span) for span in spans]).to(self._device)


class AdapterBank:
    """The adapters that are resident on a device, by slot, and their part of a linear layer with plain torch.

    A layer of a step is computed as `linear(name, x, layer(scale_input(name, x, rows)), rows)`. Adapters of one rank
    that have equally many rows are multiplied as one batch, so no row is padded to another's rank, and a row's result
    depends on no row of another slot.

    Args:
        device, dtype: where and how the weights are kept and the updates computed; None: the CPU, float32.
    """

    def __init__(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        self._device = device
        self._dtype = dtype
        self._resident: dict[int, AdapterWeights] = {}

    def set(self, slot: int, weights: AdapterWeights | None) -> None:
        """Make an adapter resident in a slot, instead of what was there; None empties it."""
        if weights is None:
            self._resident.pop(slot, None)
        else:
            self._resident[slot] = self._moved(weights)

    def rows(self, inputs: ForwardInputs) -> Rows:
        """The rows of a step's tokens by slot, computed once a step."""
        return Rows(inputs, self._device)

    def scale_input(self, name: str, x: torch.Tensor, rows: Rows) -> torch.Tensor:
        """The layer's input (T, in) with the (IA)³ scales of the rows that have one; `x` itself where none has."""
        scaled = x
        for slot in rows.counts:
            scale = self._resident[slot].input_scale.get(name)
            if scale is not None:
                own = rows.of((slot,))
                scaled = x.clone() if scaled is x else scaled
                scaled[own] = (x[own] * scale).to(x.dtype)
        return scaled

    def linear(self, name: str, x: torch.Tensor, y: torch.Tensor, rows: Rows) -> torch.Tensor:
        """The layer's output (T, out), bias included, with the adapters' updates and scales; `y` is changed in place.

        Args:
            x: the layer's input (T, in), before `scale_input`.
        """
        alike: dict[tuple[int, int], list[int]] = {}
        for slot, count in rows.counts.items():
            weights = self._resident[slot]
            pair, scale = weights.lora.get(name), weights.output_scale.get(name)
            if pair is not None:
                alike.setdefault((pair.a.shape[0], count), []).append(slot)
            if scale is not None:
                own = rows.of((slot,))
                y[own] = (y[own] * scale).to(y.dtype)
        for slots in alike.values():
            own = rows.of(tuple(slots))
            y[own] += self._updates([self._resident[slot].lora[name] for slot in slots], x[own]).to(y.dtype)
        return y

    def _updates(self, pairs: list[LoraPair], x: torch.Tensor) -> torch.Tensor:
        """Updates of shape (rows, out) for pairs of one rank that have equally many of the rows, in this order."""
        import torch

        if len(pairs) == 1:
            a, b = pairs[0].a[None], pairs[0].b[None]
        else:
            a, b = torch.stack([pair.a for pair in pairs]), torch.stack([pair.b for pair in pairs])
        own = x.to(a.dtype).reshape(len(pairs), -1, x.shape[-1])
        return torch.bmm(torch.bmm(own, a.mT), b.mT).reshape(x.shape[0], -1)

    def _moved(self, weights: AdapterWeights) -> AdapterWeights:
        import torch

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(self._device or "cpu", self._dtype or torch.float32)

        return AdapterWeights(
            weights.digest,
            {name: LoraPair(move(pair.a), move(pair.b)) for name, pair in weights.lora.items()},
            {name: move(scale) for name, scale in weights.input_scale.items()},
            {name: move(scale) for name, scale in weights.output_scale.items()},
        )


def _check_targets(config: PeftConfig, paths: Collection[str], linears: Mapping[str, tuple[int, int]]) -> None:
    """What the configuration names and what the file holds must be the same layers, and the base's."""
    for path in paths:
        if _name(path) not in linears:
            raise _misfit(_name(path), "", (), None)
        if not config.targets(path):
            raise refused(f"{WEIGHTS} adapts {path!r}, which adapter_config.json doesn't name.", "Save it again.")
    prefix = "model." if any(path.startswith("model.") for path in paths) else ""
    expected = (prefix + name if "." in name else name for name in linears)
    missing = [path for path in expected if path not in paths and config.targets(path)]
    if missing:
        trained_on = f" It was trained on {config.base[:200]!r}." if config.base else ""
        raise refused(
            f"{WEIGHTS} lacks {len(missing)} of the layers that adapter_config.json names, the first {missing[0]!r}.",
            f"Was the adapter trained on another base?{trained_on}",
        )


def _read_lora(
    digest: str,
    config: PeftConfig,
    parts: Mapping[str, dict[str, torch.Tensor]],
    linears: Mapping[str, tuple[int, int]],
) -> AdapterWeights:
    pairs = {}
    for path, tensors in parts.items():
        name, rank, scale = _name(path), config.rank(path), config.scale(path)
        out, into = linears[name]
        for part, wanted in (("lora_A.weight", (rank, into)), ("lora_B.weight", (out, rank))):
            if part not in tensors:
                raise refused(f"{WEIGHTS} has no {part} of {path!r}.", "Save the adapter again.")
            if tensors[part].shape != wanted:
                raise _misfit(name, part, tuple(tensors[part].shape), wanted)
        b = tensors["lora_B.weight"].float() * scale
        if not b.isfinite().all():
            raise refused(f"{path}: B times its scale of {scale:g} is no finite number.", "Check lora_alpha.")
        pairs[name] = LoraPair(tensors["lora_A.weight"].float().contiguous(), b.contiguous())
    return AdapterWeights(digest, lora=pairs)


def _read_ia3(
    digest: str,
    config: PeftConfig,
    parts: Mapping[str, dict[str, torch.Tensor]],
    linears: Mapping[str, tuple[int, int]],
) -> AdapterWeights:
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    for path, tensors in parts.items():
        name, scale = _name(path), tensors["ia3_l"]
        out, into = linears[name]
        feedforward = config.is_feedforward(path)
        wanted = (1, into) if feedforward else (out, 1)
        if scale.shape != wanted:
            raise _misfit(name, "ia3_l", tuple(scale.shape), wanted)
        (inputs if feedforward else outputs)[name] = scale.float().flatten().contiguous()
    return AdapterWeights(digest, input_scale=inputs, output_scale=outputs)


def _name(path: str) -> str:
    """A module's path as the engine names linear layers."""
    return path.removeprefix("model.")


def _unserved(keys: Sequence[str]) -> CallerError:
    telling = ((key, hint) for part, hint in LEFT_OVER.items() for key in keys if part in key)
    key, hint = next(telling, (keys[0], "Only linear layers are adapted."))
    return refused(f"{WEIGHTS} holds {key[:200]!r}, which is not served.", hint)


def _misfit(name: str, what: str, given: tuple[int, ...], wanted: tuple[int, ...] | None) -> CallerError:
    hint = "Was the adapter trained on another base?"
    if wanted is None:
        return refused(f"The base has no linear layer {name[:200]!r}.", hint)
    return refused(f"{name}: {what} has the shape {given}; configuration and base make it {wanted}.", hint)
