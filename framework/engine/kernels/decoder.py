"""A Llama-like decoder on the C++ kernels: one call a step, in which the interpreter's lock is free."""

from __future__ import annotations

import ctypes
import math
import os
import weakref
from collections.abc import Mapping, Sequence
from mmap import mmap
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from framework.engine.architectures.rotary import rope_table
from framework.engine.forward import ForwardInputs
from framework.engine.kernels import packed_file
from framework.engine.kernels.build import library
from framework.engine.kernels.packing import FUSED, HEAD_NORMS, NORMS, input_width, pack, rounded_up
from framework.engine.kernels.structures import (
    BFLOAT16,
    CHUNK,
    FLOAT32,
    INT8,
    PANEL,
    Change,
    Layer,
    Linear,
    Model,
    Step,
    sizes,
)
from framework.engine.loader import Weights
from framework.engine.lora import AdapterWeights
from framework.engine.spec import DecoderSpec
from framework.errors import CallerError, ModelUnavailable

WeightType: TypeAlias = Literal["float32", "bfloat16", "int8"]
TYPES = {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": INT8}
LANES = 16
MOST_GROUP = 128


class KernelDecoder:
    """Weights in float32, bfloat16 or int8 (a scale per output channel; activations have one for 64 inputs of a row).

    Every sum has an order of its own that depends on the row alone, so a token's logits are the same to the bit
    whatever else is in the batch, however the prompt was cut, and wherever its blocks are.

    Args:
        dtype: of the weights. Products are exact in int8 and in float32 otherwise.
        kv_dtype: of the cache; int8 has a scale per token and head.
        adapter_slots: adapters that can be resident at once.
        threads: None: one a core.

    Raises:
        ModelUnavailable: no compiler, a model whose shapes the kernels can't take, or weights that don't fit the spec.
    """

    shares_prefixes = True

    def __init__(
        self,
        spec: DecoderSpec,
        weights: Weights,
        *,
        block_size: int,
        dtype: WeightType = "int8",
        kv_dtype: WeightType = "bfloat16",
        adapter_slots: int = 0,
        threads: int | None = None,
    ) -> None:
        if not self.takes(spec, block_size):
            raise ModelUnavailable("The C++ kernels can't be used for this model here.", hint="Set kernels to false.")
        self.spec, self.block_size, self.dtype, self.kv_dtype = spec, block_size, dtype, kv_dtype
        self._kept: list[torch.Tensor] = []  # what the structures point to
        self.weight_bytes = 0
        self.linears = spec.all_linears
        self._names = {name: place for place, name in enumerate(self.linears)}
        packed = packed_weights(spec, weights, dtype)
        self._layers = (Layer * spec.layers)(*(self._layer(packed, place) for place in range(spec.layers)))
        self._tables = (ctypes.c_void_p * max(adapter_slots, 1))()
        self._adapters: dict[int, tuple[Any, list[torch.Tensor]]] = {}
        self._model = self._filled_in(_embedding(spec, weights), packed)
        self._cache: list[torch.Tensor] = []
        self._logits = torch.empty(0, 0)
        self._library = _checked_library()
        self._session = self._library.lectern_open(threads or cores())
        if not self._session:
            raise ModelUnavailable(f"{threads or cores()} threads can't be started.", hint="Set models.threads.")
        weakref.finalize(self, _close, self._library, self._session, os.getpid())

    @staticmethod
    def available() -> bool:
        """Whether the kernels are, or can be, compiled here."""
        return library() is not None

    @classmethod
    def takes(cls, spec: DecoderSpec, block_size: int) -> bool:
        """Whether a model of these shapes can be computed here."""
        whole = spec.hidden % LANES == 0 and spec.head_dim % LANES == 0 and block_size % LANES == 0
        return whole and spec.heads // spec.kv_heads <= MOST_GROUP and cls.available()

    @property
    def vocabulary(self) -> int:
        return self.spec.vocabulary

    @property
    def context_length(self) -> int:
        return self.spec.context_length

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def block_bytes(self) -> int:
        spec = self.spec
        values = spec.kv_heads * spec.head_dim * {"float32": 4, "bfloat16": 2, "int8": 1}[self.kv_dtype]
        scales = spec.kv_heads * 4 if self.kv_dtype == "int8" else 0
        return 2 * spec.layers * self.block_size * (values + scales)

    def allocate(self, blocks: int) -> None:
        spec = self.spec
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}[self.kv_dtype]
        self._cache = []
        shape = (spec.layers, blocks, spec.kv_heads, self.block_size, spec.head_dim)
        self._cache = [_untouched(shape, dtype) for _ in range(2)]
        if self.kv_dtype == "int8":
            self._cache += [_untouched(shape[:-1], torch.float32) for _ in range(2)]
        fields = ("keys", "values", "key_scales", "value_scales")
        for place in range(spec.layers):
            for field, tensor in zip(fields, self._cache, strict=False):
                setattr(self._layers[place], field, tensor[place].data_ptr())

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        for source, target in pairs:
            for tensor in self._cache:
                tensor[:, target] = tensor[:, source]

    def set_adapter(self, slot: int, weights: AdapterWeights | None) -> None:
        if weights is None:
            self._tables[slot] = None
            self._adapters.pop(slot, None)
            return
        unknown = (set(weights.lora) | set(weights.input_scale) | set(weights.output_scale)) - set(self._names)
        if unknown:
            raise CallerError(f"The adapter changes {min(unknown)}, which this model doesn't have.", field="adapter")
        table = (Change * len(self._names))()
        kept: list[torch.Tensor] = []
        for name, place in self._names.items():
            self._change(table[place], name, weights, kept)
        self._adapters[slot] = (table, kept)
        self._tables[slot] = ctypes.addressof(table)

    def forward(self, inputs: ForwardInputs) -> torch.Tensor:
        count, width = len(inputs.sampled), self._model.head.outputs
        if len(self._logits) < count:
            self._logits = torch.empty(count, width)
        arrays = (inputs.tokens, inputs.positions, inputs.starts, inputs.blocks, inputs.slots, inputs.sampled)
        held = [np.ascontiguousarray(array, dtype=np.int32) for array in arrays]
        pointers = [array.ctypes.data for array in held]
        shape = (len(inputs.tokens), len(inputs.starts) - 1, count, inputs.blocks.shape[1])
        step = Step(*shape, *pointers, self._logits.data_ptr())
        if self._library.lectern_forward(self._session, ctypes.byref(self._model), ctypes.byref(step)):
            raise MemoryError(f"No memory for a step of {len(inputs.tokens)} tokens.")
        return self._logits[:count, : self.spec.vocabulary]

    def _filled_in(self, embedding: torch.Tensor, packed: Mapping[str, torch.Tensor]) -> Model:
        spec = self.spec
        cosines, sines = rope_table(spec, spec.context_length)
        return Model(
            layers=spec.layers, hidden=spec.hidden, heads=spec.heads, kv_heads=spec.kv_heads, head_dim=spec.head_dim,
            intermediate=rounded_up(spec.intermediate, PANEL // 2), vocabulary=spec.vocabulary,
            block_size=self.block_size, sliding_window=spec.sliding_window, cache_type=TYPES[self.kv_dtype],
            adapter_type=BFLOAT16 if self.dtype == "int8" else FLOAT32, changes=len(self._names), eps=spec.eps,
            embedding_type=FLOAT32 if embedding.dtype == torch.float32 else BFLOAT16,
            embedding=self._keep(embedding.contiguous()), cosines=self._keep(cosines.float().contiguous()),
            sines=self._keep(sines.float().contiguous()), norm=self._keep(packed["norm"]),
            head=self._linear(packed, "head", ["lm_head"]),
            layer=ctypes.addressof(self._layers), adapters=ctypes.addressof(self._tables),
        )  # fmt: skip

    def _layer(self, packed: Mapping[str, torch.Tensor], place: int) -> Layer:
        layer, prefix = Layer(), f"layers.{place}."
        for name, parts in FUSED.items():
            setattr(layer, name, self._linear(packed, prefix + name, [prefix + part for part in parts]))
        for name in (*NORMS, *HEAD_NORMS):
            if prefix + name in packed:
                setattr(layer, name, self._keep(packed[prefix + name]))
        return layer

    def _linear(self, packed: Mapping[str, torch.Tensor], fused: str, names: list[str]) -> Linear:
        """One or several layers packed as one; `names` are theirs to an adapter."""
        tensors = {key: packed.get(f"{fused}.{key}") for key in ("weights", "scale", "bias")}
        pointers = {key: None if tensor is None else self._keep(tensor) for key, tensor in tensors.items()}
        weights, outputs = packed[f"{fused}.weights"], [self.linears[name][0] for name in names]
        first = [sum(outputs[:part]) for part in range(len(outputs))]
        return Linear(
            inputs=weights[0].numel() // PANEL,
            outputs=weights.shape[0] * PANEL,
            type=TYPES[self.dtype],
            parts=len(names),
            interleaved=len(names) == 2,
            first=(ctypes.c_int32 * 3)(*first),
            names=(ctypes.c_int32 * 3)(*(self._names[name] for name in names)),
            **pointers,
        )

    def _keep(self, tensor: torch.Tensor) -> int:
        self._kept.append(tensor)
        self.weight_bytes += tensor.nbytes
        return tensor.data_ptr()

    def _change(self, change: Change, name: str, weights: AdapterWeights, kept: list[torch.Tensor]) -> None:
        """One layer's part of an adapter, with zeros where the kernels compute more columns than the layer has."""
        outputs, inputs = self.linears[name]
        columns = rounded_up(outputs, CHUNK)
        width = input_width(name, inputs)
        dtype = torch.bfloat16 if self.dtype == "int8" else torch.float32

        def pointer(tensor: torch.Tensor, size: int, to: torch.dtype = torch.float32) -> int:
            kept.append(torch.nn.functional.pad(tensor, (0, size - tensor.shape[-1])).to(to).contiguous())
            return kept[-1].data_ptr()

        change.columns = columns
        pair = weights.lora.get(name)
        if pair is not None:
            change.rank, change.a = len(pair.a), pointer(pair.a, width, dtype)
            wide = torch.nn.functional.pad(pair.b, (0, 0, 0, columns - outputs))
            change.b = pointer(wide.view(-1, CHUNK, len(pair.a)).transpose(1, 2), CHUNK, dtype)
        if name in weights.input_scale:
            change.input_scale = pointer(weights.input_scale[name], width)
        if name in weights.output_scale:
            change.output_scale = pointer(weights.output_scale[name], columns)


def packed_weights(spec: DecoderSpec, weights: Weights, dtype: str) -> dict[str, torch.Tensor]:
    """All weights but the embedding; those in int8 are kept in the cache directory and mapped."""
    if dtype != "int8":
        return pack(spec, weights, dtype)
    return packed_file.packed(weights, dtype, lambda: pack(spec, weights, dtype))


def _embedding(spec: DecoderSpec, weights: Weights) -> torch.Tensor:
    """In float32 or bfloat16; mapped where it is stored so: only the rows of tokens that occur are read."""
    stored = weights.get("embed_tokens", (spec.vocabulary, spec.hidden))
    return stored if stored.dtype in (torch.float32, torch.bfloat16) else stored.float()


def _untouched(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take memory only where they are written to; memory used before could hold NaN."""
    return torch.frombuffer(mmap(-1, math.prod(shape) * dtype.itemsize), dtype=dtype).view(shape)


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _close(loaded: ctypes.CDLL, session: int, process: int) -> None:
    if os.getpid() == process:  # a forked child has no such threads, and would wait for them or worse
        loaded.lectern_close(session)


def _checked_library() -> ctypes.CDLL:
    found = library()
    assert found is not None
    theirs = (ctypes.c_int32 * 5)()
    found.lectern_layout(theirs)
    assert list(theirs) == sizes(), "model.h and structures.py differ"
    return found
