"""The C++ kernels: transformers' logits in float32, and each row the same to the bit whatever else is computed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from framework.engine.architectures import spec_of
from framework.engine.kernels import packed_file
from framework.engine.kernels.decoder import KernelDecoder
from framework.engine.loader import Weights, read_config
from framework.engine.lora import AdapterWeights, LoraPair
from framework.engine.torch_decoder import TorchDecoder
from framework.errors import CallerError, ModelUnavailable

BLOCK = 16
KINDS = [
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

pytestmark = pytest.mark.skipif(not KernelDecoder.available(), reason="no C++ compiler, or the kernels are turned off")


def load(folder: Path, dtype: Any = "float32", kv_dtype: Any = "float32", **options: Any) -> KernelDecoder:
    spec = spec_of(read_config(folder))
    assert spec is not None
    options = {"block_size": BLOCK, "threads": 2, **options}
    return KernelDecoder(spec, Weights(folder), dtype=dtype, kv_dtype=kv_dtype, **options)


def driver(drive: Any, decoder: KernelDecoder, **options: Any) -> Any:
    return drive(decoder, **{"block_size": decoder.block_size, **options})


def ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(1, 256, count).tolist()


def adapter(decoder: KernelDecoder, rank: int, seed: int, share: float = 1.0) -> AdapterWeights:
    """Of rank 0 (IA)³, otherwise LoRA, on a share of the linear layers."""
    generator = torch.Generator().manual_seed(seed)
    names = [name for name in decoder.linears if torch.rand(1, generator=generator).item() < share]

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    if rank == 0:
        scales = {name: (random(out).exp(), random(into).exp()) for name, (out, into) in decoder.linears.items()}
        inputs = {name: scales[name][1] for name in names if name.endswith("down_proj")}
        outputs = {name: scales[name][0] for name in names if name not in inputs}
        return AdapterWeights(f"digest {seed}", {}, inputs, outputs)
    shapes = {name: decoder.linears[name] for name in names}
    return AdapterWeights(
        f"digest {seed}",
        {
            n: LoraPair(random(rank, into) / into**0.5, random(out, rank) / rank**0.5)
            for n, (out, into) in shapes.items()
        },
    )


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers_whole_chunked_decoded_and_mixed(
    kind: str, model_folder: Any, reference: Any, drive: Any
) -> None:
    run = driver(drive, load(model_folder(kind)))
    texts = {name: ids(length, seed=name) for name, length in enumerate([23, 40, 9, 17])}
    run.step((0, texts[0]))
    run.step((1, texts[1][:13]), (2, texts[2][:5]))
    run.step((1, texts[1][13:30]), (2, texts[2][5:6]), (3, texts[3][:1]))
    for i in range(3):
        run.step((2, texts[2][6 + i : 7 + i]), (1, texts[1][30 + i : 31 + i]), (3, texts[3][1 + 5 * i : 6 + 5 * i]))
    run.step((1, texts[1][33:]), (3, texts[3][16:]))
    for name, text in texts.items():
        torch.testing.assert_close(run.of(name), reference(kind, text), rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize(("block", "threads"), [(32, 1), (64, 3)])
def test_block_size_and_threads_change_nothing(
    block: int, threads: int, model_folder: Any, reference: Any, drive: Any
) -> None:
    run = driver(drive, load(model_folder("qwen3"), block_size=block, threads=threads))
    run.step((0, ids(100)[:70]))
    run.step((0, ids(100)[70:]))
    torch.testing.assert_close(run.of(0), reference("qwen3", ids(100)), rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "off"),
    [("bfloat16", "float32", 0.05), ("float32", "bfloat16", 0.05), ("float32", "int8", 0.05), ("int8", "int8", 0.1)],
)
def test_fewer_bits_stay_near_float32(
    dtype: str, kv_dtype: str, off: float, model_folder: Any, reference: Any, drive: Any
) -> None:
    run = driver(drive, load(model_folder("llama-bias"), dtype, kv_dtype))
    run.step((0, ids(50)[:49]))
    run.step((0, ids(50)[49:]), (1, ids(3, seed=5)))
    expected = reference("llama-bias", ids(50))
    assert (run.of(0) - expected).abs().max() < off * expected.abs().max()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("dtype", "kv_dtype"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("int8", "float32"), ("int8", "int8")]
)
def test_a_row_is_the_same_to_the_bit_alone_and_in_any_company(
    dtype: str, kv_dtype: str, seed: int, model_folder: Any, drive: Any
) -> None:
    chance = np.random.default_rng(seed)
    decoder = load(model_folder("mistral"), dtype, kv_dtype, adapter_slots=3)
    for slot in range(3):
        decoder.set_adapter(slot, adapter(decoder, rank=3 * slot, seed=slot, share=0.6))
    texts = {name: ids(int(chance.integers(1, 46)), seed=name) for name in range(int(chance.integers(2, 12)))}
    slots = {name: int(chance.integers(-1, 3)) for name in texts}
    together, left = driver(drive, decoder, slots=slots), dict(texts)
    while left:
        chosen = chance.permutation(list(left))[: int(chance.integers(1, len(left) + 1))].tolist()
        sizes = {name: int(chance.integers(1, min(20, len(left[name])) + 1)) for name in chosen}
        together.step(*((name, left[name][: sizes[name]]) for name in chosen))
        left = {name: text[sizes.get(name, 0) :] for name, text in left.items() if len(text) > sizes.get(name, 0)}
    for name, text in texts.items():
        alone = driver(drive, decoder, slots={0: slots[name]}, seed=name + 1)
        alone.step((0, text))
        assert torch.equal(alone.of(0), together.of(name))


@pytest.mark.parametrize("kind", ["llama-bias", "qwen3"])
def test_adapters_change_their_own_rows_as_in_torch(kind: str, model_folder: Any, drive: Any) -> None:
    ours = load(model_folder(kind), adapter_slots=4)
    spec = spec_of(read_config(model_folder(kind)))
    assert spec is not None
    theirs = TorchDecoder(spec, Weights(model_folder(kind)), block_size=BLOCK, dtype="float32", adapter_slots=4)
    slots = {0: -1, 1: 0, 2: 2, 3: 0, 4: 3}
    found, expected = driver(drive, ours, slots=slots), drive(theirs, block_size=BLOCK, slots=slots)
    for slot, rank in ((0, 8), (2, 0), (3, 40)):
        for decoder in (ours, theirs):
            decoder.set_adapter(slot, adapter(ours, rank, seed=rank, share=0.7))
    for run in (found, expected):
        run.step(*((name, ids(9 + name, seed=name)) for name in slots))
        run.step(*((name, ids(1, seed=9 - name)) for name in reversed(slots)))
    for name in slots:
        torch.testing.assert_close(found.of(name), expected.of(name), rtol=1e-4, atol=1e-4)
    plain = driver(drive, load(model_folder(kind)))
    plain.step((1, ids(10, seed=1)))
    assert (plain.of(1) - found.of(1)[:10]).abs().max() > 0.1  # the adapters do change something


def test_a_slot_is_emptied_and_filled_again(model_folder: Any, drive: Any) -> None:
    decoder = load(model_folder("llama"), adapter_slots=1)
    logits = []
    for weights in (None, adapter(decoder, 4, seed=1), adapter(decoder, 9, seed=2), None, adapter(decoder, 4, seed=1)):
        decoder.set_adapter(0, weights)
        run = driver(drive, decoder, slots={0: 0})
        logits.append(run.step((0, ids(12))))
    assert torch.equal(logits[0], logits[3])
    assert torch.equal(logits[1], logits[4])
    assert not torch.equal(logits[1], logits[2])


def test_an_adapter_for_layers_that_are_not_there_is_refused(model_folder: Any) -> None:
    decoder = load(model_folder("llama"), adapter_slots=1)
    pair = LoraPair(torch.zeros(2, 64), torch.zeros(64, 2))
    with pytest.raises(CallerError, match=r"layers\.7"):
        decoder.set_adapter(0, AdapterWeights("d", {"layers.7.self_attn.q_proj": pair}))


def test_a_copied_block_is_written_to_alone(model_folder: Any, drive: Any) -> None:
    for kv_dtype in ("float32", "int8"):
        run = driver(drive, load(model_folder("llama"), "float32", kv_dtype))
        run.step((0, ids(20)))
        run.tables[1] = [run.tables[0][0], run._free.pop()]
        run.decoder.copy_blocks([(run.tables[0][1], run.tables[1][1])])
        run.done[1] = 20
        other = run.step((1, [7, 9]))
        mine = run.step((0, [7, 3, 9]))
        assert torch.equal(other[0], mine[0])
        assert not torch.equal(other[1], mine[1])


def test_a_block_that_held_nan_is_used_again(model_folder: Any, drive: Any) -> None:
    """What a block held before never reaches another sequence, whatever it was."""
    decoder = load(model_folder("mistral"))
    clean = driver(drive, decoder).step((0, ids(21)))
    run = driver(drive, decoder)
    for tensor in decoder._cache:
        tensor.fill_(float("nan"))
    assert torch.equal(run.step((0, ids(21))), clean)


def test_memory_is_told(model_folder: Any) -> None:
    decoder = load(model_folder("llama"), "int8", "int8")
    decoder.allocate(10)
    assert decoder.block_bytes * 10 == sum(tensor.nbytes for tensor in decoder._cache)
    assert decoder.weight_bytes < 0.5 * load(model_folder("llama")).weight_bytes


def test_shapes_that_do_not_fit_are_refused(model_folder: Any) -> None:
    with pytest.raises(ModelUnavailable, match="kernels"):
        load(model_folder("llama"), block_size=8)


SCRIPT = """
import sys, numpy as np, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from framework.engine.architectures import spec_of
from framework.engine.forward import ForwardInputs
from framework.engine.kernels.decoder import KernelDecoder
from framework.engine.loader import Weights, read_config
folder = Path(sys.argv[1])
print(KernelDecoder.available())
if KernelDecoder.available():
    whole = lambda *numbers: np.array(numbers, dtype=np.int32)
    decoder = KernelDecoder(spec_of(read_config(folder)), Weights(folder), block_size=16, dtype="int8", kv_dtype="int8")
    decoder.allocate(4)
    tokens = np.arange(20, dtype=np.int32)
    tables = np.array([[2, 1]], dtype=np.int32)
    logits = decoder.forward(ForwardInputs(tokens, tokens, whole(0, 20), tables, whole(-1), tokens))
    np.save(sys.argv[3], logits.numpy())
"""


def kernels_elsewhere(folder: Path, to: Path, **environment: str) -> str:
    """Logits of twenty tokens computed in a process of its own, where the kernels are chosen anew."""
    command = [sys.executable, "-c", SCRIPT, str(folder), str(Path.cwd()), str(to)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_portable_kernels_give_the_same_bits(tmp_path: Path, model_folder: Any) -> None:
    folder = model_folder("qwen2")
    for mode in ("on", "portable"):
        assert kernels_elsewhere(folder, tmp_path / f"{mode}.npy", LECTERN_KERNELS=mode) == "True"
    assert np.array_equal(np.load(tmp_path / "on.npy"), np.load(tmp_path / "portable.npy"))


def test_without_a_compiler_they_are_not_available(tmp_path: Path, model_folder: Any) -> None:
    folder = model_folder("qwen2")
    assert kernels_elsewhere(folder, tmp_path / "x", LECTERN_KERNELS="off") == "False"
    assert kernels_elsewhere(folder, tmp_path / "x", LECTERN_KERNELS="") == "True"  # empty is as unset
    assert kernels_elsewhere(folder, tmp_path / "x", CXX="/bin/false", LECTERN_CACHE=str(tmp_path)) == "False"


def small(folder: Path, **changes: Any) -> Path:
    """A Llama of other shapes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    fields = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 256, "max_position_embeddings": 64,
              "initializer_range": 0.2}  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**{**fields, **changes})).save_pretrained(folder)
    return folder


def test_what_a_step_leaves_behind_reaches_no_later_one(tmp_path: Path, drive: Any) -> None:
    """Where the MLP is as wide as the stream, only the MLP's second half is widened to whole panels."""
    folder = small(tmp_path / "model", hidden_size=48, intermediate_size=48)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][9] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    decoder = load(folder)
    clean = driver(drive, decoder).step((0, [1, 2, 3]))
    assert driver(drive, decoder).step((0, [9, 9, 9])).isnan().all()
    assert torch.equal(driver(drive, decoder).step((0, [1, 2, 3])), clean)


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "int8"])
def test_a_number_that_is_none_is_not_rounded_away(kv_dtype: str, model_folder: Any, drive: Any) -> None:
    decoder = load(model_folder("llama"), "int8", kv_dtype, adapter_slots=1)
    for name in ("layers.0.mlp.up_proj", "layers.0.self_attn.v_proj"):
        scale = torch.ones(decoder.linears[name][0])
        scale[5] = float("nan")
        decoder.set_adapter(0, AdapterWeights("d", output_scale={name: scale}))
        assert driver(drive, decoder, slots={0: 0}).step((0, ids(5))).isnan().all(), name


def test_a_damaged_file_in_the_cache_is_compiled_again(tmp_path: Path, model_folder: Any) -> None:
    """Loading a file whose end is missing is no error that could be caught: the process dies."""
    folder, place = model_folder("qwen2"), {"LECTERN_CACHE": str(tmp_path)}
    assert kernels_elsewhere(folder, tmp_path / "first.npy", **place) == "True"
    (file,) = (tmp_path / "kernels").glob("*.so")
    file.write_bytes(file.read_bytes()[:30_000])
    assert kernels_elsewhere(folder, tmp_path / "second.npy", **place) == "True"
    assert [path.name for path in (tmp_path / "kernels").iterdir()] == [file.name]
    assert np.array_equal(np.load(tmp_path / "first.npy"), np.load(tmp_path / "second.npy"))


FORKED = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from framework.errors import ModelUnavailable
from framework.messages import user
from framework.models.base import GenerationParams, complete
from framework.models.config import EngineConfig
from framework.models.local_chat import LocalChat
from framework.testing.tiny_chat import write_tiny_chat
chat = LocalChat(write_tiny_chat(Path(sys.argv[2])), "small", config=EngineConfig(device="cpu"))
ask = lambda: asyncio.run(complete(chat, [user("Hello")], params=GenerationParams(max_tokens=2)))
ask()
from framework.engine.kernels.decoder import KernelDecoder
from framework.engine.architectures import spec_of
from framework.engine.loader import Weights, read_config
folder = Path(sys.argv[3])
decoder = KernelDecoder(spec_of(read_config(folder)), Weights(folder), block_size=16)
child = os.fork()
if not child:
    try:
        ask()
    except ModelUnavailable as error:
        print(error, flush=True)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
ask()
print("goes on")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
def test_a_forked_child_is_told_and_ends_and_its_parent_goes_on(tmp_path: Path, model_folder: Any) -> None:
    command = [sys.executable, "-c", FORKED, str(Path.cwd()), str(tmp_path / "model"), str(model_folder("llama"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "small was loaded before this process was forked" in done.stdout
    assert done.stdout.endswith("goes on\n")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data.replace(b'"tensors"', b'"sensors"'),
        lambda data: data.replace(b"float32", b"float99"),
    ],
)
def test_kept_weights_that_are_damaged_are_made_again(damage: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    packed_file.write(path, {"norm": torch.arange(5.0), "qkv": torch.ones(3, 2, dtype=torch.uint8)})
    kept = packed_file.read(path)
    assert kept is not None
    assert torch.equal(kept["norm"], torch.arange(5.0))
    del kept
    path.write_bytes(damage(path.read_bytes()))
    assert packed_file.read(path) is None


def test_rounded_weights_are_kept_for_the_next_start_and_old_ones_removed(
    tmp_path: Path, model_folder: Any, drive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(model_folder("qwen2"), tmp_path / "model")
    fresh = driver(drive, load(folder, "int8")).step((0, ids(20)))
    monkeypatch.setattr(packed_file, "LEAST", 0)
    monkeypatch.setenv("LECTERN_CACHE", str(tmp_path / "cache"))
    kept = tmp_path / "cache" / "kernels"
    kept.mkdir(parents=True)
    forgotten, recent = kept / "weights-a-b.bin", kept / "weights-c-d.bin"
    for path in (forgotten, recent):
        path.write_bytes(b"")
    os.utime(forgotten, (0, 0))
    for _ in range(2):  # made, then mapped
        assert torch.equal(driver(drive, load(folder, "int8")).step((0, ids(20))), fresh)
    files = set(kept.iterdir())
    assert recent in files
    assert forgotten not in files
    (folder / "generation_config.json").write_text("{}")  # another state of the folder
    load(folder, "int8")
    assert len(set(kept.iterdir()) - files) == 1
    assert len(set(kept.iterdir())) == len(files)
