"""The Llama-like decoders give transformers' logits, whatever way the tokens take through the paged cache."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.engine.architectures import rope_table, spec_of
from framework.engine.forward import ForwardInputs
from framework.engine.loader import Weights, read_config
from framework.engine.lora import AdapterWeights, LoraPair
from framework.engine.torch_decoder import TorchDecoder
from framework.errors import CallerError, ModelUnavailable

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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32(dtype: str, model_folder: Any, reference: Any, drive: Any) -> None:
    run = drive(load(model_folder("qwen3"), dtype=dtype))
    run.step((0, ids(20)))
    run.step((0, ids(30)[20:21]), (1, ids(3, seed=5)))
    expected = reference("qwen3", ids(30)[:21])
    assert (run.of(0) - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "float16", "int8"])
def test_each_type_of_cache_gives_nearly_the_same_logits(
    kv_dtype: str, model_folder: Any, reference: Any, drive: Any
) -> None:
    run = drive(load(model_folder("llama"), kv_dtype=kv_dtype))
    run.step((0, ids(20)[:15]))
    run.step((0, ids(20)[15:]))
    expected = reference("llama", ids(20))
    limit = {"float32": 1e-5, "int8": 0.05}.get(kv_dtype, 0.02)
    assert (run.of(0) - expected).abs().max() < limit * expected.abs().max()
    assert kv_dtype == "float32" or not torch.equal(run.of(0), expected)


@pytest.mark.parametrize(
    ("kv_dtype", "expected"), [("float32", 16 * 4 * 2 * 2 * 2 * 4), ("int8", (16 + 4) * 4 * 2 * 2 * 2)]
)
def test_a_block_takes_what_it_says(kv_dtype: str, expected: int, model_folder: Any) -> None:
    decoder = load(model_folder("llama"), kv_dtype=kv_dtype)
    assert decoder.block_bytes == expected  # width, tokens, kv heads, layers, keys and values, bytes
    decoder.allocate(3)
    tensors = [x for pools in decoder._cache.pools for pool in pools for x in (pool.data, pool.scale) if x is not None]
    assert sum(tensor.nbytes for tensor in tensors) == 3 * expected


def in_pieces(decoder: TorchDecoder, drive: Any, texts: Sequence[Sequence[int]], cuts: Sequence[Sequence[int]]) -> Any:
    """The logits of several sequences that run side by side, each cut into pieces of these lengths."""
    run = drive(decoder)
    steps = max(len(cut) for cut in cuts)
    bounds = [np.cumsum([0, *cut]).tolist() for cut in cuts]
    for step in range(steps):
        pieces = [
            (name, texts[name][bound[step] : bound[step + 1]])
            for name, bound in enumerate(bounds)
            if step < len(bound) - 1
        ]
        run.step(*pieces)
    return run


@st.composite
def cuttings(draw: st.DrawFn) -> list[list[int]]:
    """One to six sequences of 1 to 40 tokens, each cut anyhow."""
    return draw(st.lists(st.lists(st.integers(1, 18), min_size=1, max_size=4), min_size=1, max_size=6))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama-bias", {"deterministic": True}),
        ("mistral", {"deterministic": True}),
        ("qwen3", {"dtype": "int8", "kv_dtype": "int8"}),
        ("mistral", {"dtype": "bfloat16", "deterministic": True}),
    ],
)
def test_a_row_is_the_same_to_the_bit_alone_and_in_any_batch(
    kind: str, options: dict[str, Any], model_folder: Any, drive: Any
) -> None:
    decoder = load(model_folder(kind), **options)
    texts = [ids(72, seed=name) for name in range(6)]
    alone = [in_pieces(decoder, drive, [text], [[len(text)]]).of(0) for text in texts]

    @settings(max_examples=12, deadline=None)
    @given(cuttings())
    def check(cuts: list[list[int]]) -> None:
        run = in_pieces(decoder, drive, texts, cuts)
        for name, cut in enumerate(cuts):
            assert torch.equal(run.of(name), alone[name][: sum(cut)])

    check()


def test_blocks_are_copied_whole_and_in_order(model_folder: Any, drive: Any) -> None:
    for kv_dtype in ("float32", "int8"):
        run = drive(load(model_folder("llama"), kv_dtype=kv_dtype))
        run.step((0, ids(6)))
        expected = run.step((0, ids(7)[6:]))
        spare = [run._free.pop() for _ in range(2)]
        run.decoder.copy_blocks(
            [(run.tables[0][0], spare[0]), (run.tables[0][1], spare[1]), (spare[0], run.tables[0][1])]
        )
        run.tables[1], run.done[1] = spare, 6
        assert torch.equal(run.step((1, ids(7)[6:])), expected)


def test_no_row_sampled_gives_no_logits(model_folder: Any) -> None:
    for dtype in ("float32", "int8"):
        decoder = load(model_folder("llama"), dtype=dtype)
        decoder.allocate(2)
        one = np.array([0], dtype=np.int32)
        bounds = np.array([0, 1], dtype=np.int32)
        inputs = ForwardInputs(one, one, bounds, one[None], one - 1, one[:0])
        assert decoder.forward(inputs).shape == (0, 256)


def lora(decoder: TorchDecoder, names: Sequence[str], rank: int, seed: int) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: decoder.linears[name] for name in names}
    pairs = {
        name: LoraPair(
            torch.randn(rank, into, generator=generator) * 0.2, torch.randn(out, rank, generator=generator) * 0.2
        )
        for name, (out, into) in shapes.items()
    }
    return AdapterWeights(f"digest {seed}", lora=pairs)


def merged(folder: Path, target: Path, changes: dict[str, torch.Tensor], scales: dict[str, torch.Tensor]) -> Path:
    """The folder's model with updates added to weights, then multiplied (by output, or by input channel)."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, target)
    tensors = load_file(folder / "model.safetensors")
    for name, change in changes.items():
        full = "lm_head.weight" if name == "lm_head" else f"model.{name}.weight"
        tensors[full] = tensors[full] + change
    for name, scale in scales.items():
        tensors[f"model.{name}.weight"] = tensors[f"model.{name}.weight"] * scale
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors")
    return target


def test_adapters_of_one_batch_give_each_what_merged_weights_give(
    model_folder: Any, drive: Any, tmp_path: Path
) -> None:
    folder = model_folder("qwen3")
    decoder = load(folder, adapter_slots=3)
    every = lora(decoder, list(decoder.linears), rank=3, seed=1)
    few = lora(decoder, ["layers.1.mlp.up_proj", "layers.0.self_attn.v_proj"], rank=5, seed=2)
    scale, inner = torch.rand(32) + 0.5, torch.rand(96) + 0.5
    names = ("layers.0.self_attn.k_proj", "layers.1.mlp.down_proj", "layers.1.mlp.gate_proj")
    ia3 = AdapterWeights("ia3", input_scale={names[1]: inner, names[2]: inner[:64]}, output_scale={names[0]: scale})
    for slot, weights in enumerate([every, few, ia3]):
        decoder.set_adapter(slot, weights)
    run = drive(decoder, slots={0: 0, 1: 1, 2: 2, 4: 0})
    texts = [ids(14, seed=name) for name in range(5)]
    for span in (slice(0, 9), slice(9, 10), slice(10, 14)):
        run.step(*((name, text[span]) for name, text in enumerate(texts)))
    updates = [{name: pair.b @ pair.a for name, pair in adapter.lora.items()} for adapter in (every, few)]
    ia3_scales = {names[0]: scale[:, None], names[1]: inner, names[2]: inner[:64]}
    bases = [
        merged(folder, tmp_path / "0", updates[0], {}),
        merged(folder, tmp_path / "1", updates[1], {}),
        merged(folder, tmp_path / "2", {}, ia3_scales),
        folder,
        tmp_path / "0",
    ]
    for name, base in enumerate(bases):
        own = drive(load(base))
        torch.testing.assert_close(run.of(name), own.step((0, texts[name])), rtol=1e-4, atol=1e-3)


def test_an_emptied_slot_is_forgotten_and_a_misfit_refused(model_folder: Any, drive: Any) -> None:
    decoder = load(model_folder("llama"), adapter_slots=1)
    decoder.set_adapter(0, lora(decoder, ["layers.0.mlp.up_proj"], rank=2, seed=1))
    decoder.set_adapter(0, None)
    wrong = AdapterWeights("x", lora={"layers.0.mlp.up_proj": LoraPair(torch.zeros(2, 64), torch.zeros(97, 2))})
    with pytest.raises(CallerError, match="up_proj"):
        decoder.set_adapter(0, wrong)


def test_the_rotary_table_is_that_of_transformers(model_folder: Any) -> None:
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    for kind in ("llama", "llama3", "llama-linear"):
        spec = spec_of(read_config(model_folder(kind)))
        assert spec is not None
        cos, sin = rope_table(spec, 50)
        module = LlamaRotaryEmbedding(AutoConfig.from_pretrained(model_folder(kind)))
        expected = module(torch.zeros(1), torch.arange(50)[None])
        torch.testing.assert_close(cos, expected[0][0, :, :8])
        torch.testing.assert_close(sin, expected[1][0, :, :8])


SMOL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 256,
}


def test_older_forms_of_config_json_are_read() -> None:
    scaling = {"type": "linear", "factor": 2.0}
    spec = spec_of({**SMOL, "rope_theta": 5e5, "rope_scaling": scaling, "max_position_embeddings": 99})
    assert spec is not None
    assert (spec.kv_heads, spec.head_dim, spec.context_length, spec.tied) == (4, 16, 99, False)
    assert (spec.rope["rope_theta"], spec.rope["rope_type"], spec.rope["factor"]) == (5e5, "linear", 2.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "gpt2"},
        {"hidden_act": "gelu"},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        {"partial_rotary_factor": 0.5},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8},
    ],
)
def test_what_our_decoder_lacks_is_left_to_the_general_path(changes: dict[str, Any]) -> None:
    assert spec_of({**SMOL, **changes}) is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": -2}, "num_hidden_layers"),
        ({"vocab_size": 10.5}, "vocab_size"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_theta": "ten"}, "rope_theta"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
    ],
)
def test_an_impossible_config_json_is_refused_by_its_field(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelUnavailable, match=named):
        spec_of({**SMOL, **changes})
