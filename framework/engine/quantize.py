"""Eight-bit weights: how a row is rounded, folders that keep them rounded, and what rounding costs on a text."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from framework.engine.forward import Decoder, ForwardInputs
from framework.errors import ModelUnavailable

if TYPE_CHECKING:
    from framework.engine.loader import Weights

SCHEME: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "kv_cache_scheme": None,
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "int",
                "strategy": "channel",
                "symmetric": True,
                "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "strategy": "token",
                "symmetric": True,
                "dynamic": True,
            },
        }
    },
}


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row to 255 symmetric levels of its own: row = int8 * scale.

    Args:
        weight: (out, in), any float type.

    Returns:
        int8 (out, in) in -127..127, and float32 scales (out,), positive also for rows of zeros, not finite for
        rows that aren't.
    """
    exact = weight.float()
    peak = exact.abs().amax(dim=1)
    scale = torch.where(peak == 0, torch.ones_like(peak), peak / 127.0)
    rounded = torch.round(exact / scale[:, None]).clamp_(-127, 127).to(torch.int8)
    return rounded, scale


def rounded(weights: Weights, name: str, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight as `quantize_rows` gives it, or as it is stored rounded.

    Raises:
        ModelUnavailable: it is missing or misshapen, or it is NaN or infinite somewhere: rounding would hide that.
    """
    found = weights.quantized(name, shape) or quantize_rows(weights.get(name, shape))
    if not found[1].isfinite().all():
        raise ModelUnavailable(
            f"{weights.folder}: {name} holds NaN or infinite values.",
            hint="The file is damaged, or the training diverged: use another checkpoint.",
        )
    return found


def save_quantized(folder: Path, target: Path) -> Path:
    """Write a model with its linear layers rounded, beside copies of the folder's other files.

    The layout is compressed-tensors' "int-quantized" (W8A8: a scale per output channel, activations rounded as they
    come, a scale per token), which other engines read too. Embedding, norms, biases and the head stay as they are.

    Args:
        folder: a Llama-like model in float.
        target: a folder that doesn't exist yet; it appears when it is complete.

    Returns:
        The target.

    Raises:
        ModelUnavailable: the folder can't be read, is of another family or rounded already, or the target exists.
    """
    from framework.engine.architectures import spec_of
    from framework.engine.loader import Weights, read_config

    config = read_config(folder)
    spec, weights = spec_of(config), Weights(folder)
    if spec is None or weights.is_quantized:
        what = "rounded already" if weights.is_quantized else f"of the family {config.get('model_type')!r}"
        raise ModelUnavailable(f"{folder} is {what}.", hint="Name a Llama, Mistral or Qwen in float.")
    if target.exists():
        raise ModelUnavailable(f"{target} exists.", hint="Name a folder that doesn't.")
    linears = {name: shape for name, shape in spec.all_linears.items() if name != "lm_head"}
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    _copy_rest(folder, part)
    _write_weights(weights, linears, part / "model.safetensors")
    (part / "config.json").write_text(json.dumps({**config, "quantization_config": SCHEME}, indent=2) + "\n")
    part.rename(target)
    return target


def _write_weights(weights: Weights, linears: dict[str, tuple[int, int]], path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {}
    for full in weights:
        name = full.removeprefix("model.").removesuffix(".weight")
        if name in linears:
            values, scale = rounded(weights, full, linears[name])
            tensors[full], tensors[f"{full}_scale"] = values, scale[:, None].contiguous()
        else:
            tensors[full] = weights.get(full)
    save_file(tensors, path, metadata={"format": "pt"})


def _copy_rest(folder: Path, target: Path) -> None:
    """Tokenizer, chat template, licence: every plain file but weights and config.json."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and ".safetensors" not in path.name and path.name != "config.json":
            shutil.copyfile(path, target / path.name)


def mean_loss(decoder: Decoder, tokens: Sequence[int], *, block_size: int, window: int, chunk: int = 512) -> float:
    """Mean negative log-likelihood of a text's tokens in nats; its exponential is the perplexity.

    The text is cut into windows that know nothing of each other; the first token of each is not predicted. Whatever the
    decoder had cached is gone afterwards.

    Args:
        window: tokens of a window, 2 or more.
        chunk: tokens of one forward pass.
    """
    assert window >= 2, window
    decoder.allocate(-(-window // block_size))
    windows = [tokens[start : start + window] for start in range(0, len(tokens), window)]
    losses = [_losses(decoder, part, block_size, chunk) for part in windows if len(part) > 1]
    return math.fsum(float(loss.sum()) for loss in losses) / sum(len(loss) for loss in losses)


def _losses(decoder: Decoder, tokens: Sequence[int], block_size: int, chunk: int) -> torch.Tensor:
    """Negative log-likelihoods, float64 (len(tokens) - 1,), of each token but the first."""
    blocks = np.arange(-(-len(tokens) // block_size), dtype=np.int32)[None]
    found = []
    for start in range(0, len(tokens) - 1, chunk):
        part = np.array(tokens[start : start + chunk], dtype=np.int32)
        inputs = ForwardInputs(
            tokens=part,
            positions=np.arange(start, start + len(part), dtype=np.int32),
            starts=np.array([0, len(part)], dtype=np.int32),
            blocks=blocks,
            slots=np.array([-1], dtype=np.int32),
            sampled=np.arange(min(len(part), len(tokens) - 1 - start), dtype=np.int32),
        )
        logits = decoder.forward(inputs)
        following = torch.tensor(tokens[start + 1 : start + 1 + len(logits)], device=logits.device)
        found.append(torch.nn.functional.cross_entropy(logits.double(), following, reduction="none").cpu())
    return torch.cat(found)
