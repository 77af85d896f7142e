"""The Llama-like decoders in plain torch, written once against `DecoderSpec`, for any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from framework.engine.architectures import rope_table
from framework.engine.attention import Plan, attend
from framework.engine.forward import ForwardInputs, sampled_alone
from framework.engine.kv_cache import LayerShape, PagedCache
from framework.engine.linear import FloatLinear, Linear, TiledLinear, rounded_linear
from framework.engine.loader import Weights
from framework.engine.lora import AdapterBank, AdapterWeights, Rows, check_fit
from framework.engine.quantize import quantize_rows, rounded
from framework.engine.spec import DecoderSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


@dataclass(frozen=True, slots=True)
class Fused:
    """Linear layers that read the same input, computed as one; their full names and widths in order."""

    names: tuple[str, ...]
    widths: list[int]
    linear: Linear

    def outputs(self, x: torch.Tensor, bank: AdapterBank, rows: Rows | None) -> tuple[torch.Tensor, ...]:
        """Each layer's output (T, width), with the adapters of the rows that have one."""
        if not rows:
            return torch.split(self.linear(x), self.widths, dim=-1)
        inputs = [bank.scale_input(name, x, rows) for name in self.names]
        plain = torch.split(self.linear(x), self.widths, dim=-1)
        parts = [
            y if own is x else torch.split(self.linear(own), self.widths, dim=-1)[i]
            for i, (own, y) in enumerate(zip(inputs, plain, strict=True))
        ]
        return tuple(bank.linear(name, x, y, rows) for name, y in zip(self.names, parts, strict=True))


@dataclass(frozen=True, slots=True)
class Layer:
    """One block of the decoder: its linear layers, and the weights of its norms."""

    attention_norm: torch.Tensor
    qkv: Fused
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    output: Fused
    mlp_norm: torch.Tensor
    gate_up: Fused
    down: Fused


@dataclass(frozen=True, slots=True)
class Step:
    """What all layers of one forward pass share."""

    plan: Plan
    cos: torch.Tensor
    sin: torch.Tensor
    rows: Rows | None


class TorchDecoder:
    """A Llama-like decoder (a `Decoder`).

    Args:
        dtype: "float32", "bfloat16", "float16", or "int8": weights rounded by output channel, computing in float32 on
            CPUs and bfloat16 on CUDA.
        kv_dtype: the cache's type, one of the same; "auto": the type of computing.
        deterministic: what a token's row gives never depends on what else is in the batch or on how its prompt was cut
            into chunks, to the last bit (on CPUs; CUDA's kernels promise nothing of the kind). Linear layers are then
            computed 16 rows at a time, so that a single row costs as much as 16 and a batch gains little beyond 16,
            attention of long prompts takes two to three times as long, and SiLU is called once a row. With "int8",
            whose linear layers have that property anyway, it is always on: rounding amplifies the smallest difference.

    Raises:
        ModelUnavailable: the weights don't fit the specification.
    """

    shares_prefixes = True

    def __init__(
        self,
        spec: DecoderSpec,
        weights: Weights,
        *,
        block_size: int,
        dtype: str = "float32",
        kv_dtype: str = "auto",
        device: torch.device | None = None,
        adapter_slots: int = 0,
        deterministic: bool = False,
    ) -> None:
        self.spec = spec
        self.device = device or torch.device("cpu")
        self.linears = spec.all_linears
        self.adapter_slots = adapter_slots
        self._rounded = dtype == "int8"
        self._deterministic = deterministic or self._rounded
        self._dtype = _computing(dtype, self.device)
        self._weights: Weights | None = weights
        self._embedding = self._tensor("embed_tokens", (spec.vocabulary, spec.hidden))
        self._layers = [self._layer(f"layers.{i}") for i in range(spec.layers)]
        self._norm = self._tensor("norm", (spec.hidden,))
        self._head = self._fused("", ["lm_head"], self._embedding if spec.tied else None)
        self._weights = None
        cos, sin = rope_table(spec, spec.context_length)
        self._cos, self._sin = (x.to(self.device, self._dtype)[:, None] for x in (cos, sin))
        shape = LayerShape(spec.kv_heads, spec.head_dim, spec.head_dim)
        cached = self._dtype if kv_dtype == "auto" else DTYPES[kv_dtype]
        self._block_size = block_size
        self._cache = PagedCache([shape] * spec.layers, block_size, cached, self.device)
        self._bank = AdapterBank(self.device, self._dtype)

    @property
    def vocabulary(self) -> int:
        return self.spec.vocabulary

    @property
    def context_length(self) -> int:
        return self.spec.context_length

    @property
    def block_bytes(self) -> int:
        return self._cache.block_bytes

    @property
    def weight_bytes(self) -> int:
        shared = self.spec.tied and not self._rounded
        layers = [
            part.linear for layer in self._layers for part in (layer.qkv, layer.output, layer.gate_up, layer.down)
        ]
        head = 0 if shared else self._head.linear.nbytes
        return self._embedding.nbytes + head + sum(linear.nbytes for linear in layers)

    def allocate(self, blocks: int) -> None:
        self._cache.allocate(blocks)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._cache.copy_blocks(pairs)

    def set_adapter(self, slot: int, weights: AdapterWeights | None) -> None:
        if weights is not None:
            check_fit(weights, self.linears)
        self._bank.set(slot, weights)

    @torch.inference_mode()
    def forward(self, inputs: ForwardInputs) -> torch.Tensor:
        plan = Plan(inputs, self._block_size, self.device, self._deterministic)
        rows = self._bank.rows(inputs)
        step = Step(plan, self._cos[plan.positions], self._sin[plan.positions], rows or None)
        hidden = functional.embedding(plan.tokens, self._embedding)
        for number, layer in enumerate(self._layers):
            hidden = hidden + self._attention(number, layer, self._normed(hidden, layer.attention_norm), step)
            hidden = hidden + self._mlp(layer, self._normed(hidden, layer.mlp_norm), step)
        last = self._normed(hidden[plan.sampled], self._norm)
        sampled = self._bank.rows(sampled_alone(inputs)) if step.rows else None
        return self._head.outputs(last, self._bank, sampled or None)[0].float()

    def _attention(self, number: int, layer: Layer, x: torch.Tensor, step: Step) -> torch.Tensor:
        parts = layer.qkv.outputs(x, self._bank, step.rows)
        queries, keys, values = (part.reshape(len(x), -1, self.spec.head_dim) for part in parts)
        if layer.query_norm is not None and layer.key_norm is not None:
            queries, keys = self._normed(queries, layer.query_norm), self._normed(keys, layer.key_norm)
        queries, keys = _rotated(queries, step), _rotated(keys, step)
        self._cache.write(number, step.plan.places, keys, values)
        found = attend(queries, self._cache, number, step.plan.pieces(self.spec.sliding_window))
        return layer.output.outputs(found.reshape(len(x), -1), self._bank, step.rows)[0]

    def _mlp(self, layer: Layer, x: torch.Tensor, step: Step) -> torch.Tensor:
        gate, up = layer.gate_up.outputs(x, self._bank, step.rows)
        gate = gate.contiguous()
        if self._deterministic:
            # At the end of a tensor the exponential is another routine than inside, so rows are tensors of their own.
            for row in gate:
                functional.silu(row, inplace=True)
        else:
            gate = functional.silu(gate)
        return layer.down.outputs(gate * up, self._bank, step.rows)[0]

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMS norm (Zhang and Sennrich, 2019) of the last dimension, in float32."""
        exact = x.float()
        scale = torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.spec.eps)
        return weight * (exact * scale).to(x.dtype)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        assert self._weights is not None
        return self._weights.get(name, shape).to(self.device, self._dtype)

    def _layer(self, prefix: str) -> Layer:
        spec, attention = self.spec, f"{prefix}.self_attn"
        norms = [self._tensor(f"{attention}.{x}_norm", (spec.head_dim,)) for x in "qk"] if spec.qk_norm else [None] * 2
        return Layer(
            attention_norm=self._tensor(f"{prefix}.input_layernorm", (spec.hidden,)),
            qkv=self._fused(f"{prefix}.", [f"self_attn.{x}_proj" for x in "qkv"], bias=spec.attention_bias),
            query_norm=norms[0],
            key_norm=norms[1],
            output=self._fused(f"{prefix}.", ["self_attn.o_proj"], bias=spec.output_bias),
            mlp_norm=self._tensor(f"{prefix}.post_attention_layernorm", (spec.hidden,)),
            gate_up=self._fused(f"{prefix}.", ["mlp.gate_proj", "mlp.up_proj"], bias=spec.mlp_bias),
            down=self._fused(f"{prefix}.", ["mlp.down_proj"], bias=spec.mlp_bias),
        )

    def _fused(
        self, prefix: str, parts: Sequence[str], given: torch.Tensor | None = None, *, bias: bool = False
    ) -> Fused:
        """The layers of these names as one; `given` is the weight of a single one."""
        names = tuple(prefix + part for part in parts)
        widths = [self.linears[name][0] for name in names]
        biases = [self._tensor(f"{name}.bias", (width,)) for name, width in zip(names, widths, strict=True) if bias]
        joined = torch.cat(biases) if biases else None
        if self._rounded:
            pairs = [self._rounded_weight(name, given) for name in names]
            weight, scale = (torch.cat(x) if len(x) > 1 else x[0] for x in zip(*pairs, strict=True))
            return Fused(names, widths, rounded_linear(weight, scale, joined))
        found = [given if given is not None else self._tensor(name, self.linears[name]) for name in names]
        kind = TiledLinear if self._deterministic else FloatLinear
        return Fused(names, widths, kind(torch.cat(found) if len(found) > 1 else found[0], joined))

    def _rounded_weight(self, name: str, given: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._weights is not None
        stored = rounded(self._weights, name, self.linears[name]) if given is None else quantize_rows(given)
        return stored[0].to(self.device), stored[1].to(self.device)


def _computing(dtype: str, device: torch.device) -> torch.dtype:
    if dtype != "int8":
        return DTYPES[dtype]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _rotated(x: torch.Tensor, step: Step) -> torch.Tensor:
    """x (T, heads, width), the first half of each head rotated against the second by its position."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * step.cos - second * step.sin, second * step.cos + first * step.sin), dim=-1)
