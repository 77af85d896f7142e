"""Eight-bit weights: how a row is rounded, and folders that keep them rounded."""

from __future__ import annotations

import torch


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row to 255 symmetric levels of its own: row = int8 * scale.

    Args:
        weight: (out, in), any float type.

    Returns:
        int8 (out, in) in -127..127, and float32 scales (out,), positive also for rows of zeros.
    """
    exact = weight.float()
    peak = exact.abs().amax(dim=1)
    scale = torch.where(peak > 0, peak / 127.0, torch.ones_like(peak))
    rounded = torch.round(exact / scale[:, None]).clamp_(-127, 127).to(torch.int8)
    return rounded, scale
