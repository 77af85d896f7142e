"""Weights in the order that the kernels read them: 64 output columns at a time, each panel from its first input on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from framework.engine.kernels.structures import PANEL

HALF = PANEL // 2


def rounded_up(size: int, to: int) -> int:
    return -(-size // to) * to


def side_by_side(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows of several layers one after another, with zeros up to a multiple of 64: (out, ...)."""
    return _filled(torch.cat(list(weights)), PANEL)


def in_turn(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rows of two layers (gate, up) in turn, 32 of each: (2 out, ...), out filled up to a multiple of 32."""
    gate, up = (_filled(weight, HALF) for weight in weights)
    rest = gate.shape[1:]
    return torch.stack([gate.reshape(-1, HALF, *rest), up.reshape(-1, HALF, *rest)], dim=1).reshape(-1, *rest)


def wider(weight: torch.Tensor, inputs: int) -> torch.Tensor:
    """Zeros at the end of each row up to this width."""
    return torch.nn.functional.pad(weight, (0, inputs - weight.shape[1]))


def pack_float(weight: torch.Tensor) -> torch.Tensor:
    """(out, in) to (out / 64, in, 64)."""
    return weight.reshape(-1, PANEL, weight.shape[1]).transpose(1, 2).contiguous()


def pack_int8(weight: torch.Tensor) -> torch.Tensor:
    """int8 (out, in) to uint8 (out / 64, in / 4, 64, 4), 128 added: products take one unsigned factor."""
    panels = weight.reshape(-1, PANEL, weight.shape[1] // 4, 4).transpose(1, 2)
    return panels.contiguous().view(torch.uint8) ^ 128


def _filled(weight: torch.Tensor, to: int) -> torch.Tensor:
    missing = rounded_up(weight.shape[0], to) - weight.shape[0]
    return torch.cat([weight, weight.new_zeros(missing, *weight.shape[1:])]) if missing else weight
