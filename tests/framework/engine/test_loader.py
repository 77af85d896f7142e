"""Weights are mapped, found by either name, and refused with what is wrong when the folder is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from framework.engine.decoders import load_decoder
from framework.engine.kernels.decoder import KernelDecoder
from framework.engine.loader import Weights, read_config
from framework.engine.torch_decoder import TorchDecoder
from framework.errors import ModelUnavailable


@pytest.fixture
def folder(model_folder: Any, tmp_path: Path) -> Path:
    """A copy of a small model, to be broken."""
    return Path(shutil.copytree(model_folder("llama"), tmp_path / "model"))


def test_tensors_are_found_with_and_without_prefix_and_suffix(folder: Path) -> None:
    weights, stored = Weights(folder), load_file(folder / "model.safetensors")
    expected = stored["model.layers.1.mlp.up_proj.weight"]
    for name in ("layers.1.mlp.up_proj", "layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"):
        assert name in weights
        assert torch.equal(weights.get(name, (96, 64)), expected)
    assert set(weights) == set(stored)
    assert "layers.9.mlp.up_proj" not in weights


def test_shards_are_one_set_of_weights(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(stored)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, own in parts.items():
        save_file({name: stored[name] for name in own}, folder / file)
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    weights = Weights(folder)
    assert all(torch.equal(weights.get(name), tensor) for name, tensor in stored.items())
    (folder / "b.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"b\.safetensors"):
        Weights(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../b.safetensors"}}')
    with pytest.raises(ModelUnavailable, match="outside"):
        Weights(folder)


def test_a_missing_or_misshapen_weight_is_named(folder: Path) -> None:
    config = read_config(folder)
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 97}))
    with pytest.raises(ModelUnavailable, match=r"'small'.*gate_proj.*\(96, 64\).*\(97, 64\)"):
        load_decoder(folder, "small", block_size=16, dtype="float32", kernels=False)
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelUnavailable, match=r"layers\.2\."):
        load_decoder(folder, "small", block_size=16, dtype="float32", kernels=False)


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("model.safetensors", b"\x80\x04not safetensors", "can't be read as safetensors"),
        ("model.safetensors", None, "no model.safetensors"),
        ("config.json", b"{", "not valid JSON"),
        ("config.json", b"[1]", "holds a list"),
        ("config.json", None, "no config.json"),
        ("config.json", b'{"model_type": "no such family"}', "no such family"),
    ],
)
def test_a_broken_folder_is_refused_with_what_is_wrong(
    file: str, content: bytes | None, named: str, folder: Path
) -> None:
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(ModelUnavailable, match=f"(?s)'small'.*{named}"):
        load_decoder(folder, "small", block_size=16)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelUnavailable, match="can't be read"):
        Weights(folder)


def test_pickles_are_never_loaded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelUnavailable, match="may run code"):
        Weights(folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_another_quantization_is_refused_by_its_name(method: str, folder: Path) -> None:
    config = {**read_config(folder), "quantization_config": {"quant_method": method, "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnavailable, match=method):
        load_decoder(folder, "small", block_size=16)


def test_the_fastest_decoder_that_fits_is_chosen(model_folder: Any) -> None:
    folder = model_folder("llama")
    plain = load_decoder(folder, "small", block_size=16, device="cpu", dtype="float16")
    assert isinstance(plain, TorchDecoder)
    assert isinstance(load_decoder(folder, "small", block_size=16, device="cpu", kernels=False), TorchDecoder)
    fast = load_decoder(folder, "small", block_size=16, device="cpu")
    assert isinstance(fast, KernelDecoder if KernelDecoder.available() else TorchDecoder)


@pytest.mark.parametrize("device", ["cuda:77", "warp drive", "mps"])
def test_a_device_that_is_not_there_is_refused(device: str, model_folder: Any) -> None:
    with pytest.raises(ModelUnavailable, match=device):
        load_decoder(model_folder("llama"), "small", block_size=16, device=device)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_weight_that_is_no_number_is_not_rounded_away(value: str, kernels: bool, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float(value)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match=r"'small'.*layers\.1\.mlp\.up_proj holds NaN or infinite"):
        load_decoder(folder, "small", block_size=16, dtype="int8", kernels=kernels, device="cpu")


@pytest.mark.parametrize("field", ["num_hidden_layers", "vocab_size"])
def test_an_absurd_size_is_refused_before_memory_is_asked_for(field: str, folder: Path) -> None:
    config = read_config(folder)
    (folder / "config.json").write_text(json.dumps({**config, field: 10**9}))
    with pytest.raises(ModelUnavailable, match=f"'small'.*{field} = 1000000000"):
        load_decoder(folder, "small", block_size=16)
