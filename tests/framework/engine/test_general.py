"""Models that only transformers knows: over the paged cache where they allow it, one by one where not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from framework.engine.architectures.general import TransformersDecoder
from framework.engine.architectures.separate import SeparateDecoder
from framework.engine.decoders import load_decoder
from framework.engine.lora import AdapterWeights, LoraPair
from framework.errors import CallerError, ModelUnavailable

BLOCK = 4
PAGED = ["gpt-neox", "gemma2", "gemma3", "phi3", "gpt2", "gpt-oss"]
SEPARATE = ["falcon", "phi3-longrope"]


def load(folder: Path, **options: Any) -> Any:
    return load_decoder(folder, "small", block_size=BLOCK, dtype="float32", device="cpu", adapter_slots=2, **options)


def ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(1, 256, count).tolist()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", PAGED + SEPARATE)
def test_logits_are_those_of_transformers_whole_chunked_decoded_and_mixed(
    kind: str, model_folder: Any, reference: Any, drive: Any
) -> None:
    decoder = load(model_folder(kind))
    assert isinstance(decoder, TransformersDecoder if kind in PAGED else SeparateDecoder)
    assert decoder.shares_prefixes == (kind in PAGED)
    run = drive(decoder)
    texts = {name: ids(length, seed=name) for name, length in enumerate([12, 24, 9])}
    run.step((0, texts[0]), (1, texts[1][:7]))
    run.step((1, texts[1][7:20]), (2, texts[2][:1]))
    for i in range(4):
        run.step((2, texts[2][1 + 2 * i : 3 + 2 * i]), (1, texts[1][20 + i : 21 + i]))
    for name, text in texts.items():
        close(run.of(name), reference(kind, text))
