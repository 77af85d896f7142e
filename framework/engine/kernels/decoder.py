"""A Llama-like decoder on the C++ kernels: one call a step, in which the interpreter's lock is free."""

from __future__ import annotations

import ctypes
import math
import os
import weakref
from collections.abc import Sequence
from mmap import mmap
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from framework.engine.architectures.rotary import rope_table
from framework.engine.forward import ForwardInputs
from framework.engine.kernels.build import library
from framework.engine.kernels.packing import in_turn, pack_float, pack_int8, rounded_up, side_by_side, wider
from framework.engine.kernels.structures import (
    BFLOAT16,
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
from framework.engine.quantize import quantize_rows
from framework.engine.spec import DecoderSpec
from framework.errors import CallerError, ModelUnavailable

WeightType: TypeAlias = Literal["float32", "bfloat16", "int8"]
TYPES = {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": INT8}
LANES = 16
MOST_GROUP = 128


class KernelDecoder:
    """Weights in float32, bfloat16 or int8 (a scale per output channel; activations are rounded row by row).

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
        self._names = {name: place for place, name in enumerate(self.linear_names)}
        self._layers = (Layer * spec.layers)(*(self._layer(weights, place) for place in range(spec.layers)))
        self._tables = (ctypes.c_void_p * max(adapter_slots, 1))()
        self._adapters: dict[int, tuple[Any, list[torch.Tensor]]] = {}
        self._model = self._filled_in(weights)
        self._cache: list[torch.Tensor] = []
        self._logits = torch.empty(0, 0)
        self._library = _checked_library()
        self._session = self._library.lectern_open(threads or cores())
        weakref.finalize(self, self._library.lectern_close, self._session)

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
    def linear_names(self) -> list[str]:
        """Every linear layer that an adapter can change."""
        of_layers = [f"layers.{layer}.{name}" for layer in range(self.spec.layers) for name in self.spec.linears]
        return [*of_layers, "lm_head"]

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(out, in) by name."""
        shapes = {name: self.spec.linears[name.split(".", 2)[2]] for name in self.linear_names[:-1]}
        return {**shapes, "lm_head": (self.spec.vocabulary, self.spec.hidden)}

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

    def _filled_in(self, weights: Weights) -> Model:
        spec = self.spec
        embedding = weights.get("embed_tokens", (spec.vocabulary, spec.hidden))
        if embedding.dtype not in (torch.float32, torch.bfloat16):
            embedding = embedding.float()
        cosines, sines = rope_table(spec, spec.context_length)
        head = "embed_tokens" if spec.tied else "lm_head"
        return Model(
            layers=spec.layers, hidden=spec.hidden, heads=spec.heads, kv_heads=spec.kv_heads, head_dim=spec.head_dim,
            intermediate=rounded_up(spec.intermediate, PANEL // 2), vocabulary=spec.vocabulary,
            block_size=self.block_size, sliding_window=spec.sliding_window, cache_type=TYPES[self.kv_dtype],
            adapter_type=BFLOAT16 if self.dtype == "int8" else FLOAT32, changes=len(self._names), eps=spec.eps,
            embedding_type=FLOAT32 if embedding.dtype == torch.float32 else BFLOAT16,
            embedding=self._keep(embedding.contiguous()), cosines=self._keep(cosines.float().contiguous()),
            sines=self._keep(sines.float().contiguous()), norm=self._vector(weights, "norm", spec.hidden),
            head=self._linear(weights, [head], [spec.vocabulary], spec.hidden, ["lm_head"]),
            layer=ctypes.addressof(self._layers), adapters=ctypes.addressof(self._tables),
        )  # fmt: skip

    def _layer(self, weights: Weights, place: int) -> Layer:
        spec, prefix = self.spec, f"layers.{place}."
        layer = Layer()

        def fused(*parts: str) -> Linear:
            names = [prefix + part for part in parts]
            shapes = [spec.linears[part] for part in parts]
            return self._linear(weights, names, [out for out, _ in shapes], shapes[0][1], names)

        layer.qkv = fused("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        layer.o = fused("self_attn.o_proj")
        layer.gate_up = fused("mlp.gate_proj", "mlp.up_proj")
        layer.down = fused("mlp.down_proj")
        layer.attention_norm = self._vector(weights, prefix + "input_layernorm", spec.hidden)
        layer.mlp_norm = self._vector(weights, prefix + "post_attention_layernorm", spec.hidden)
        if spec.qk_norm:
            layer.q_norm = self._vector(weights, prefix + "self_attn.q_norm", spec.head_dim)
            layer.k_norm = self._vector(weights, prefix + "self_attn.k_norm", spec.head_dim)
        return layer

    def _linear(
        self, weights: Weights, names: list[str], outputs: list[int], inputs: int, changed: list[str]
    ) -> Linear:
        """One or several layers packed as one; `changed` are their names to an adapter."""
        together = in_turn if len(names) == 2 else side_by_side
        width = rounded_up(inputs, PANEL // 2) if inputs == self.spec.intermediate else inputs
        shapes = [(out, inputs) for out in outputs]
        scale = None
        if self.dtype == "int8":
            pairs = [
                weights.quantized(name, shape) or quantize_rows(weights.get(name, shape))
                for name, shape in zip(names, shapes, strict=True)
            ]
            packed = pack_int8(wider(together([rounded for rounded, _ in pairs]), width))
            scale = self._keep(together([scales for _, scales in pairs]))
        else:
            target = torch.float32 if self.dtype == "float32" else torch.bfloat16
            given = [weights.get(name, shape).to(target) for name, shape in zip(names, shapes, strict=True)]
            packed = pack_float(wider(together(given), width))
        first = [sum(outputs[:part]) for part in range(len(outputs))]
        return Linear(
            inputs=width,
            outputs=packed.shape[0] * PANEL,
            type=TYPES[self.dtype],
            parts=len(names),
            interleaved=len(names) == 2,
            first=(ctypes.c_int32 * 3)(*first),
            names=(ctypes.c_int32 * 3)(*(self._names[name] for name in changed)),
            weights=self._keep(packed),
            scale=scale,
            bias=self._bias(weights, names, outputs, together),
        )

    def _bias(self, weights: Weights, names: list[str], outputs: list[int], together: Any) -> int | None:
        if not any(f"{name}.bias" in weights for name in names):
            return None
        given = [
            weights.get(f"{name}.bias", (out,)).float() if f"{name}.bias" in weights else torch.zeros(out)
            for name, out in zip(names, outputs, strict=True)
        ]
        return self._keep(together(given).contiguous())

    def _vector(self, weights: Weights, name: str, size: int) -> int:
        return self._keep(weights.get(name, (size,)).float().contiguous())

    def _keep(self, tensor: torch.Tensor) -> int:
        self._kept.append(tensor)
        self.weight_bytes += tensor.nbytes
        return tensor.data_ptr()

    def _change(self, change: Change, name: str, weights: AdapterWeights, kept: list[torch.Tensor]) -> None:
        """One layer's part of an adapter, with zeros where the kernels compute more columns than the layer has."""
        outputs, inputs = self.linears[name]
        columns = rounded_up(outputs, LANES)
        width = rounded_up(inputs, PANEL // 2) if inputs == self.spec.intermediate else inputs
        dtype = torch.bfloat16 if self.dtype == "int8" else torch.float32

        def pointer(tensor: torch.Tensor, size: int, to: torch.dtype = torch.float32) -> int:
            kept.append(torch.nn.functional.pad(tensor, (0, size - tensor.shape[-1])).to(to).contiguous())
            return kept[-1].data_ptr()

        change.columns = columns
        pair = weights.lora.get(name)
        if pair is not None:
            change.rank = pair.a.shape[0]
            change.a, change.b = pointer(pair.a, width, dtype), pointer(pair.b.T, columns, dtype)
        if name in weights.input_scale:
            change.input_scale = pointer(weights.input_scale[name], width)
        if name in weights.output_scale:
            change.output_scale = pointer(weights.output_scale[name], columns)


def _untouched(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take memory only where they are written to; memory used before could hold NaN."""
    return torch.frombuffer(mmap(-1, math.prod(shape) * dtype.itemsize), dtype=dtype).view(shape)


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _checked_library() -> ctypes.CDLL:
    found = library()
    assert found is not None
    theirs = (ctypes.c_int32 * 5)()
    found.lectern_layout(theirs)
    assert list(theirs) == sizes(), "model.h and structures.py differ"
    return found
