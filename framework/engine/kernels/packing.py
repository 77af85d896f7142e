"""Weights in the order that the kernels read them: 64 output columns at a time, each panel from its first input on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch

from framework.engine.kernels.structures import PANEL
from framework.engine.loader import Weights
from framework.engine.quantize import rounded
from framework.engine.spec import DecoderSpec

HALF = PANEL // 2
# The layers that are computed together, since they read the same input.
FUSED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "o": ("self_attn.o_proj",),
        "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
        "down": ("mlp.down_proj",),
    }
)
NORMS: Mapping[str, str] = MappingProxyType(
    {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
)
HEAD_NORMS: Mapping[str, str] = MappingProxyType({"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"})


def rounded_up(size: int, to: int) -> int:
    return -(-size // to) * to


def input_width(name: str, inputs: int) -> int:
    """Inputs of a linear layer as the kernels see it: those of the MLP's second half fill whole half panels."""
    return rounded_up(inputs, HALF) if name.endswith("mlp.down_proj") else inputs


def pack(spec: DecoderSpec, weights: Weights, dtype: str) -> dict[str, torch.Tensor]:
    """All weights but the embedding, as the kernels read them.

    Returns:
        "layers.0.qkv.weights", ".scale" (int8 only), ".bias" (where there is one) and so on for FUSED and "head";
        "layers.0.attention_norm" and so on, and "norm", in float32.
    """
    packed = {"norm": _vector(weights, "norm", spec.hidden)}
    for layer in range(spec.layers):
        prefix = f"layers.{layer}."
        for name, parts in FUSED.items():
            shapes = {prefix + part: spec.linears[part] for part in parts}
            packed |= {f"{prefix}{name}.{key}": t for key, t in _linear(spec, weights, shapes, dtype).items()}
        for name, stored in NORMS.items():
            packed[prefix + name] = _vector(weights, prefix + stored, spec.hidden)
        for name, stored in HEAD_NORMS.items() if spec.qk_norm else ():
            packed[prefix + name] = _vector(weights, prefix + stored, spec.head_dim)
    head = {"embed_tokens" if spec.tied else "lm_head": (spec.vocabulary, spec.hidden)}
    packed |= {f"head.{key}": tensor for key, tensor in _linear(spec, weights, head, dtype).items()}
    return packed


def _linear(
    spec: DecoderSpec, weights: Weights, shapes: Mapping[str, tuple[int, int]], dtype: str
) -> dict[str, torch.Tensor]:
    """One or several layers over the same input, packed as one."""
    together = _in_turn if len(shapes) == 2 else _side_by_side
    name, (_, inputs) = next(iter(shapes.items()))
    width = input_width(name, inputs)
    packed = {}
    if dtype == "int8":
        pairs = [rounded(weights, name, shape) for name, shape in shapes.items()]
        packed["weights"] = _pack_int8(_wider(together([values for values, _ in pairs]), width))
        packed["scale"] = together([scales for _, scales in pairs])
    else:
        target = torch.float32 if dtype == "float32" else torch.bfloat16
        given = [weights.get(name, shape).to(target) for name, shape in shapes.items()]
        packed["weights"] = _pack_float(_wider(together(given), width))
    if any(f"{name}.bias" in weights for name in shapes):
        packed["bias"] = together([_bias(weights, name, out) for name, (out, _) in shapes.items()])
    return packed


def _bias(weights: Weights, name: str, out: int) -> torch.Tensor:
    return weights.get(f"{name}.bias", (out,)).float() if f"{name}.bias" in weights else torch.zeros(out)


def _vector(weights: Weights, name: str, size: int) -> torch.Tensor:
    return weights.get(name, (size,)).float().contiguous()


def _side_by_side(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows of several layers one after another, with zeros up to a multiple of 64: (out, ...)."""
    return _filled(torch.cat(list(weights)), PANEL)


def _in_turn(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows of two layers (gate, up) in turn, 32 of each: (2 out, ...), out filled up to a multiple of 32."""
    gate, up = (_filled(weight, HALF) for weight in weights)
    rest = gate.shape[1:]
    return torch.stack([gate.reshape(-1, HALF, *rest), up.reshape(-1, HALF, *rest)], dim=1).reshape(-1, *rest)


def _filled(weight: torch.Tensor, to: int) -> torch.Tensor:
    missing = rounded_up(weight.shape[0], to) - weight.shape[0]
    return torch.cat([weight, weight.new_zeros(missing, *weight.shape[1:])]) if missing else weight


def _wider(weight: torch.Tensor, inputs: int) -> torch.Tensor:
    """Zeros at the end of each row up to this width."""
    return torch.nn.functional.pad(weight, (0, inputs - weight.shape[1]))


def _pack_float(weight: torch.Tensor) -> torch.Tensor:
    """(out, in) to (out / 64, in, 64)."""
    return weight.reshape(-1, PANEL, weight.shape[1]).transpose(1, 2).contiguous()


def _pack_int8(weight: torch.Tensor) -> torch.Tensor:
    """int8 (out, in) to uint8 (out / 64, in / 4, 64, 4), 128 added: products take one unsigned factor."""
    panels = weight.reshape(-1, PANEL, weight.shape[1] // 4, 4).transpose(1, 2)
    return panels.contiguous().view(torch.uint8) ^ 128
