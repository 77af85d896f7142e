"""Adapters in PEFT's own files: read, checked, and kept in the form that every decoder applies them in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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
