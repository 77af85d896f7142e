"""The Llama-like decoders give transformers' logits, whatever way the tokens take through the paged cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.engine.architectures import rope_table, spec_of
from framework.engine.loader import Weights, read_config
from framework.engine.torch_decoder import TorchDecoder
from framework.errors import ModelUnavailable

BLOCK = 4
LLAMA_LIKE = [
    "llama",
    "llama-bias",
    "llama3",
    "llama-linear",
    "mistral",
    "mistral-full",
    "qwen2",
    "qwen2-window",
    "qwen3",
    "qwen3-tied",
]


def load(folder: Path, **options: Any) -> TorchDecoder:
    spec = spec_of(read_config(folder))
    assert spec is not None
    return TorchDecoder(spec, Weights(folder), block_size=BLOCK, **options)


def ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(1, 256, count).tolist()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("kind", LLAMA_LIKE)
def test_logits_are_those_of_transformers_whole_chunked_decoded_and_mixed(
    kind: str, deterministic: bool, model_folder: Any, reference: Any, drive: Any
) -> None:
    run = drive(load(model_folder(kind), deterministic=deterministic))
    texts = {name: ids(length, seed=name) for name, length in enumerate([23, 40, 9, 17])}
    run.step((0, texts[0]))
    run.step((1, texts[1][:13]), (2, texts[2][:5]))
    run.step((1, texts[1][13:30]), (2, texts[2][5:6]), (3, texts[3][:1]))
    for i in range(3):
        run.step((2, texts[2][6 + i : 7 + i]), (1, texts[1][30 + i : 31 + i]), (3, texts[3][1 + 5 * i : 6 + 5 * i]))
    run.step((1, texts[1][33:]), (3, texts[3][16:]))
    for name, text in texts.items():
        close(run.of(name), reference(kind, text))
