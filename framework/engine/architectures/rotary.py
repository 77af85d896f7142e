"""Rotary position embeddings (Su et al., 2021) as a table."""

from __future__ import annotations

import math

import torch

from framework.engine.spec import DecoderSpec


def rope_table(spec: DecoderSpec, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of positions 0 to positions - 1, each float32 of shape (positions, head_dim / 2).

    The first half of a head is rotated against the second: (x, y) becomes (x cos - y sin, y cos + x sin).
    """
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.float32) / spec.head_dim
    frequencies = 1.0 / (spec.rope["rope_theta"] ** exponents)
    kind = spec.rope["rope_type"]
    if kind == "linear":
        frequencies = frequencies / spec.rope["factor"]
    elif kind == "llama3":
        frequencies = _llama3(frequencies, spec)
    else:
        assert kind == "default", kind
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


def _llama3(frequencies: torch.Tensor, spec: DecoderSpec) -> torch.Tensor:
    """Llama 3.1's scaling: slow waves are stretched by the factor, fast ones kept, those between interpolated."""
    rope = spec.rope
    context, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    waves = 2 * math.pi / frequencies
    stretched = frequencies / rope["factor"]
    smooth = (context / waves - low) / (high - low)
    between = (1 - smooth) * stretched + smooth * frequencies
    result = torch.where(waves > context / low, stretched, frequencies)
    return torch.where((waves <= context / low) & (waves >= context / high), between, result)
