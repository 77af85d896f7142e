"""Eight-bit weights: exact to half a step, rows independent, folders and loading on the fly the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.engine.architectures import spec_of
from framework.engine.linear import FloatLinear, Linear, PackedLinear, RoundedLinear, TiledLinear
from framework.engine.loader import Weights, read_config
from framework.engine.quantize import mean_loss, quantize_rows, save_quantized
from framework.engine.torch_decoder import TorchDecoder
from framework.errors import ModelUnavailable


def load(folder: Path, dtype: str = "int8", **options: Any) -> TorchDecoder:
    spec = spec_of(read_config(folder))
    assert spec is not None
    return TorchDecoder(spec, Weights(folder), block_size=4, dtype=dtype, **options)


def ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(1, 256, count).tolist()


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 1000), st.floats(1e-20, 1e20))
def test_a_row_is_rounded_to_the_nearest_of_its_levels(rows: int, width: int, seed: int, size: float) -> None:
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * size
    weight[0] = 0
    rounded, scale = quantize_rows(weight)
    assert rounded.dtype == torch.int8
    assert int(rounded.min()) >= -127
    assert (scale > 0).all()
    assert ((rounded.double() * scale[:, None].double() - weight.double()).abs() <= scale[:, None] * 0.50001).all()
    assert all(int(row.abs().max()) == 127 for row in rounded[1:])


EIGHT_BIT = [RoundedLinear, *([PackedLinear] if PackedLinear.available() else [])]


@pytest.mark.parametrize("make", [*EIGHT_BIT, FloatLinear, TiledLinear])
@pytest.mark.parametrize("biased", [False, True])
def test_every_linear_layer_computes_the_same_product(make: Callable[..., Linear], biased: bool) -> None:
    weight, x = torch.randn(48, 70), torch.randn(37, 70)
    bias = torch.randn(48) if biased else None
    rounded, scale = quantize_rows(weight)
    layer = make(rounded, scale, bias) if make in EIGHT_BIT else make(weight, bias)
    expected = torch.nn.functional.linear(x, weight, bias)
    limit = 0.02 if make in EIGHT_BIT else 1e-5
    assert (layer(x) - expected).abs().max() <= limit * expected.abs().max()
    assert layer(x[:0]).shape == (0, 48)
    assert layer.nbytes == (rounded.nbytes + scale.nbytes if make in EIGHT_BIT else weight.nbytes) + biased * 48 * 4


@pytest.mark.parametrize("make", [*EIGHT_BIT, TiledLinear])
def test_a_row_is_the_same_to_the_bit_whatever_its_neighbours_are(make: Callable[..., Linear]) -> None:
    weight = torch.randn(96, 64)
    layer = make(*quantize_rows(weight), torch.randn(96)) if make in EIGHT_BIT else make(weight, torch.randn(96))
    row = torch.randn(64)
    alone = layer(row[None])[0]

    @settings(max_examples=40, deadline=None)
    @given(st.integers(1, 70), st.integers(0, 69), st.sampled_from([0.0, 1e-3, 1.0, 1e6]))
    def check(rows: int, place: int, size: float) -> None:
        batch = torch.randn(rows, 64) * size
        batch[place % rows] = row
        assert torch.equal(layer(batch)[place % rows], alone)

    check()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_saved_folder_gives_the_logits_of_rounding_on_load(
    kind: str, model_folder: Any, drive: Any, tmp_path: Path
) -> None:
    source = model_folder(kind)
    target = save_quantized(source, tmp_path / "small")
    found = [drive(load(folder)).step((0, ids(20))) for folder in (source, target)]
    assert torch.equal(*found)
    assert (target / "model.safetensors").stat().st_size < 0.6 * (source / "model.safetensors").stat().st_size
    scheme = json.loads((target / "config.json").read_text())["quantization_config"]
    assert (scheme["quant_method"], scheme["format"], scheme["ignore"]) == (
        "compressed-tensors",
        "int-quantized",
        ["lm_head"],
    )
    assert Weights(target).quantized("embed_tokens") is None
    rounded = Weights(target).quantized("layers.0.mlp.up_proj")
    assert rounded is not None
    assert torch.equal(rounded[0], quantize_rows(Weights(source).get("layers.0.mlp.up_proj"))[0])
    as_float = drive(load(target, "float32")).step((0, ids(20)))
    assert (as_float - found[0]).abs().mean() < 0.1 * found[0].abs().mean()


def test_other_files_are_copied_and_nothing_is_overwritten(model_folder: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in model_folder("llama").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    (source / "tokenizer.json").write_text("{}")
    target = save_quantized(source, tmp_path / "target")
    assert (target / "tokenizer.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []
    for folder, place, named in ((source, target, "exists"), (target, tmp_path / "new", "already")):
        with pytest.raises(ModelUnavailable, match=named):
            save_quantized(folder, place)
    with pytest.raises(ModelUnavailable, match="gpt2"):
        save_quantized(model_folder("gpt2"), tmp_path / "other")


def test_rounding_costs_little_on_a_text_and_the_loss_is_that_of_transformers(model_folder: Any) -> None:
    from transformers import AutoModelForCausalLM

    folder, text = model_folder("llama"), ids(90)
    found = mean_loss(load(folder, "float32"), text, block_size=4, window=40, chunk=16)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    losses = []
    for start in (0, 40, 80):
        part = torch.tensor([text[start : start + 40]])
        losses += [model(part, labels=part).loss.item()] * (part.shape[1] - 1)
    assert found == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    rounded = mean_loss(load(folder), text, block_size=4, window=40)
    assert math.isfinite(rounded)
    assert abs(rounded - found) < 0.05 * found
