"""Linear layers: in float, in float with rows kept apart, and with eight-bit weights. All map (T, in) to (T, out)."""

from __future__ import annotations

import warnings
from typing import Protocol

import torch
import torch.nn.functional as functional

TILE = 16  # rows of one product in the deterministic layer


class Linear(Protocol):
    """A linear layer, weights and bias inside."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...

    @property
    def nbytes(self) -> int: ...


class FloatLinear:
    """Weights in the type of the activations.

    Args:
        weight: (out, in).
        bias: (out,), or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight, self.bias)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


class TiledLinear(FloatLinear):
    """Products of one fixed shape, so that a row's result doesn't depend on how many other rows there are.

    A library of matrix products picks its kernel, and with it the order of additions, by the number of rows; 16 rows
    always give one choice. A step of one row costs as much as one of 16 and many rows gain nothing beyond 16.
    """

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[0]
        padded = functional.pad(x, (0, 0, 0, -rows % TILE))
        tiles = [functional.linear(tile, self.weight, self.bias) for tile in torch.split(padded, TILE)]
        return torch.cat(tiles)[:rows] if tiles else x.new_empty(0, self.weight.shape[0])


class RoundedLinear:
    """Eight-bit weights, and activations rounded with a scale for each row, so that rows never touch each other.

    The product of integers is exact. CUDA wants more than 16 rows, and widths in eights: what is missing is zeros.

    Args:
        weight: int8 (out, in).
        scale: float32 (out,).
        bias: (out,), or None.
    """

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.out, self.width = weight.shape
        self.padded = weight.device.type == "cuda"
        if self.padded:
            weight = functional.pad(weight, (0, -self.width % 8, 0, -self.out % 8))
        self.columns = weight.t()
        self.scale = scale
        self.bias = None if bias is None else bias.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[0]
        scaled, step = scaled_rows(x)
        rounded = scaled.round_().to(torch.int8)
        if self.padded:
            rounded = functional.pad(rounded, (0, -self.width % 8, 0, max(32, rows + -rows % 8) - rows))
        product = torch._int_mm(rounded, self.columns)[:rows, : self.out]
        return _finish(product * self.scale, step, self.bias, x.dtype)

    @property
    def nbytes(self) -> int:
        return self.columns.nbytes + self.scale.nbytes + (0 if self.bias is None else self.bias.nbytes)


class PackedLinear:
    """As `RoundedLinear`, by torch's x86 quantized engine: 1.1 to 1.5 times as fast on CPUs with VNNI.

    The engine knows one scale for all activations: rows are divided by their own scale before, and multiplied after.
    """

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the type of the packed tensor is to go in a later torch
            zeros = torch.zeros(len(scale), dtype=torch.long)
            stored = torch._make_per_channel_quantized_tensor(weight.contiguous(), scale.double(), zeros, 0)
            self.packed = torch.ops.quantized.linear_prepack(stored, None)
        self.out = len(scale)
        self.nbytes = weight.nbytes + scale.nbytes + (0 if bias is None else bias.nbytes)
        self.bias = None if bias is None else bias.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not len(x):
            return x.new_empty(0, self.out)
        scaled, step = scaled_rows(x)
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(scaled, 1.0, 128, self.packed)
        return _finish(product, step, self.bias, x.dtype)

    @staticmethod
    def available() -> bool:
        """This CPU and this torch have the engine with exact 8-bit products (without VNNI its sums overflow)."""
        return "x86" in torch.backends.quantized.supported_engines and torch.cpu._is_vnni_supported()


def scaled_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of (T, in) divided by their scale to -127..127, not rounded yet, and the scales (T, 1), in float32."""
    exact = x.float()
    step = exact.abs().amax(dim=1, keepdim=True) / 127.0
    step.masked_fill_(step == 0, 1.0)
    return exact / step, step


def rounded_linear(weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """The fastest eight-bit layer for the device that the weights are on."""
    if weight.device.type == "cpu" and PackedLinear.available():
        return PackedLinear(weight, scale, bias)
    return RoundedLinear(weight, scale, bias)


def _finish(y: torch.Tensor, step: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    y = y * step
    return (y if bias is None else y + bias).to(dtype)
