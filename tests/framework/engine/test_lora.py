"""Adapters: PEFT's files are read whole or refused by name, and their updates are those of a merged model."""

from __future__ import annotations

import json
import math
import pickle
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from framework.engine import lora
from framework.engine.forward import ForwardInputs
from framework.engine.lora import AdapterBank, AdapterCache, AdapterWeights, identify, read_adapter
from framework.errors import CallerError
from framework.testing.adapters import write_ia3, write_lora

LAYER = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (128, 64),
    "mlp.up_proj": (128, 64),
    "mlp.down_proj": (64, 128),
}
LINEARS = {f"layers.{i}.{name}": shape for i in range(2) for name, shape in LAYER.items()}
BASE = {**LINEARS, "lm_head": (256, 64)}
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def read(folder: Path, linears: Mapping[str, tuple[int, int]] = BASE) -> AdapterWeights:
    return read_adapter(identify(folder), linears)


def edit(folder: Path, **fields: Any) -> Path:
    """Change fields of an adapter's configuration."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


def retensor(folder: Path, **changed: torch.Tensor | None) -> Path:
    """Change tensors of an adapter by the end of their name; None takes them out."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for end, tensor in changed.items():
        key = next((key for key in tensors if key.endswith(end.replace("__", "."))), end)
        tensors.pop(key, None)
        if tensor is not None:
            tensors[key] = tensor
    save_file(tensors, path)
    return folder


def step(slots: list[int], lengths: list[int]) -> ForwardInputs:
    """A step of these sequences; only what the bank reads is filled in."""
    starts = np.cumsum([0, *lengths], dtype=np.int32)
    none = np.zeros(0, np.int32)
    return ForwardInputs(none, none, starts, none, np.array(slots, np.int32), none)


# Reading


def test_an_update_is_scaled_by_alpha_over_r(tmp_path: Path) -> None:
    folder = write_lora(tmp_path, LINEARS, rank=4, lora_alpha=6)
    stored = load_file(folder / "adapter_model.safetensors")
    pair = read(folder).lora["layers.1.mlp.up_proj"]
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_"
    assert torch.equal(pair.a, stored[f"{key}A.weight"])
    assert torch.equal(pair.b, stored[f"{key}B.weight"] * 1.5)


def test_rslora_divides_by_the_root_of_the_rank(tmp_path: Path) -> None:
    plain = read(write_lora(tmp_path / "plain", LINEARS, rank=4)).lora["layers.0.mlp.up_proj"]
    stabilized = read(write_lora(tmp_path / "rs", LINEARS, rank=4, use_rslora=True)).lora["layers.0.mlp.up_proj"]
    torch.testing.assert_close(stabilized.b, plain.b * math.sqrt(4))


def test_patterns_give_single_layers_their_rank_and_alpha(tmp_path: Path) -> None:
    folder = write_lora(
        tmp_path, LINEARS, rank=4, size=1.0, ranks={"layers.1.mlp.up_proj": 7}, alpha_pattern={r"layers\.\d+\.mlp.*": 3}
    )
    stored = load_file(folder / "adapter_model.safetensors")
    pairs = read(folder).lora
    assert pairs["layers.1.mlp.up_proj"].a.shape == (7, 64)
    up = stored["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
    torch.testing.assert_close(pairs["layers.1.mlp.up_proj"].b, up * (3 / 7))
    q = stored["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
    torch.testing.assert_close(pairs["layers.1.self_attn.q_proj"].b, q * 2)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"target_modules": "all-linear"}, LINEARS),
        ({"target_modules": r"model\.layers\.\d\.mlp\..*"}, [n for n in LINEARS if ".mlp." in n]),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, ["layers.1.self_attn.q_proj"]),
        ({"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
         ["layers.0.self_attn.q_proj"]),
        ({"target_modules": ["model.layers.0.self_attn.q_proj", "lm_head"]}, ["layers.0.self_attn.q_proj", "lm_head"]),
        ({"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
         [n for n in LINEARS if "down_proj" not in n]),
    ],
)  # fmt: skip
def test_targets_are_named_as_in_peft(tmp_path: Path, fields: dict[str, Any], names: list[str]) -> None:
    folder = write_lora(tmp_path, {name: BASE[name] for name in names}, **fields)
    assert set(read(folder).lora) == set(names)


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    folder = write_lora(tmp_path, LINEARS)
    path = folder / "adapter_model.safetensors"
    save_file({key: tensor.bfloat16() for key, tensor in load_file(path).items()}, path)
    assert {pair.b.dtype for pair in read(folder).lora.values()} == {torch.float32}


def test_ia3_scales_inputs_of_feed_forward_layers_and_outputs_of_others(tmp_path: Path) -> None:
    names = ("k_proj", "v_proj", "down_proj")
    folder = write_ia3(tmp_path, {name: shape for name, shape in LINEARS.items() if name.endswith(names)})
    weights = read(folder)
    assert {name: len(scale) for name, scale in weights.input_scale.items()} == {
        "layers.0.mlp.down_proj": 128,
        "layers.1.mlp.down_proj": 128,
    }
    assert len(weights.output_scale) == 4
    assert weights.output_scale["layers.0.self_attn.k_proj"].shape == (32,)


def test_the_digest_is_of_both_files_and_nothing_else(tmp_path: Path) -> None:
    folder = write_lora(tmp_path, LINEARS)
    first = identify(folder).digest
    (folder / "README.md").write_text("Trained on Tuesday.")
    assert identify(folder).digest == first
    assert identify(edit(folder, lora_alpha=9)).digest != first
    assert identify(write_lora(tmp_path, LINEARS, seed=1)).digest != first


# Refusing


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"use_tomorrows_idea": True}, "use_tomorrows_idea"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"r": 0}, "r:"),
        ({"r": True}, "r:"),
        ({"lora_alpha": float("nan")}, "adapter_config.json"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"target_modules": None}, "target_modules"),
        ({"target_modules": "("}, "pattern"),
        ({"target_modules": ["q_proj"]}, "doesn't name"),
        ({"lora_alpha": 1e300}, "lora_alpha"),
    ],
)
def test_a_configuration_that_can_not_be_honoured_is_refused_by_name(
    tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    folder = edit(write_lora(tmp_path, LINEARS), **fields)
    with pytest.raises(CallerError, match=said.replace("(", r"\(")) as caught:
        read(folder)
    assert caught.value.field == "adapter"


@pytest.mark.parametrize("key", ["target_modules", "rank_pattern"])
def test_a_catastrophic_pattern_is_given_up(tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framework.engine.peft_config.PATTERN_SECONDS", 0.1)
    pattern = r"(.*?,?){20}\d"
    folder = edit(write_lora(tmp_path, LINEARS), **{key: {pattern: 3} if key == "rank_pattern" else pattern})
    with pytest.raises(CallerError, match="too long"):
        read(folder)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lora_magnitude_vector": torch.ones(64)}, "DoRA"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2, 2)}, "embedding"),
        ({"base_model.model.lm_head.base_layer.weight": torch.ones(2, 2)}, "save_embedding_layers=False"),
        ({"base_model.model.score.weight": torch.ones(2, 2)}, "score"),
        ({"layers.0.mlp.up_proj.ia3_l": torch.ones(2, 1)}, "ia3_l"),
        ({"1__mlp__up_proj__lora_B__weight": None}, "lora_B"),
        ({"1__mlp__up_proj__lora_A__weight": torch.ones(5, 64)}, r"\(5, 64\).*\(4, 64\)"),
        ({"1__mlp__up_proj__lora_B__weight": torch.ones(99, 4)}, r"\(99, 4\).*\(128, 4\)"),
        ({"1__mlp__up_proj__lora_B__weight": torch.full((128, 4), math.nan)}, "NaN"),
        ({"1__mlp__up_proj__lora_A__weight": torch.full((4, 64), -math.inf)}, "infinite"),
        ({"1__mlp__up_proj__lora_A__weight": torch.ones(4, 64, dtype=torch.int8)}, "int8"),
    ],
)
def test_weights_that_can_not_be_applied_are_refused_by_name(
    tmp_path: Path, changed: dict[str, torch.Tensor | None], said: str
) -> None:
    folder = retensor(write_lora(tmp_path, LINEARS), **changed)
    with pytest.raises(CallerError, match=said):
        read(folder)


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = write_lora(tmp_path, LINEARS) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CallerError, match="damaged"):
        read(tmp_path)


@given(cut=st.integers(0, 400), junk=st.binary(max_size=40))
def test_no_damage_escapes_as_another_error(tmp_path_factory: pytest.TempPathFactory, cut: int, junk: bytes) -> None:
    folder = write_lora(tmp_path_factory.mktemp("junk"), {"layers.0.mlp.up_proj": (4, 4)}, rank=1)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:cut] + junk)
    with pytest.raises(CallerError):
        read(folder)


def test_pickles_are_refused_under_either_name(tmp_path: Path) -> None:
    folder = write_lora(tmp_path, LINEARS)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CallerError, match=r"adapter_model\.bin.*may run code"):
        identify(folder)
    torch.save({"x": torch.ones(1)}, folder / "adapter_model.safetensors")
    with pytest.raises(CallerError, match="pickle"):
        read(folder)
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(CallerError, match="pickle"):
        read(folder)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "adapter", LINEARS)
    secret = tmp_path / "secret.json"
    (folder / "adapter_config.json").rename(secret)
    (folder / "adapter_config.json").symlink_to(secret)
    with pytest.raises(CallerError, match="link"):
        identify(folder)


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match=r"adapter_config\.json"):
        identify(tmp_path)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    folder = write_lora(tmp_path, LINEARS, base_model_name_or_path="someone/other-model")
    deeper = {**BASE, **{f"layers.2.{name}": shape for name, shape in LAYER.items()}}
    with pytest.raises(CallerError, match=r"layers\.2.*someone/other-model"):
        read(folder, deeper)
    with pytest.raises(CallerError, match=r"no linear layer 'layers\.1"):
        read(folder, {name: shape for name, shape in BASE.items() if "layers.0" in name})
    wider = {name: (out * 2, into * 2) for name, (out, into) in BASE.items()}
    with pytest.raises(CallerError, match=r"down_proj: lora_A.weight has the shape \(4, 128\).*\(4, 256\)"):
        read(folder, wider)


def test_files_that_changed_since_they_were_identified_are_refused(tmp_path: Path) -> None:
    adapter = identify(write_lora(tmp_path, LINEARS))
    write_lora(tmp_path, LINEARS, seed=1)
    with pytest.raises(CallerError, match="changed"):
        read_adapter(adapter, BASE)


# Keeping


def test_the_cache_drops_what_was_used_least_recently_and_reads_it_again(tmp_path: Path) -> None:
    adapters = [identify(write_lora(tmp_path / str(seed), LINEARS, seed=seed)) for seed in range(3)]
    size = read_adapter(adapters[0], BASE).nbytes
    cache = AdapterCache(2 * size)
    first, second = cache.get(adapters[0], BASE), cache.get(adapters[1], BASE)
    assert cache.get(adapters[0], BASE) is first
    cache.get(adapters[2], BASE)
    assert cache.used_bytes == 2 * size
    assert cache.get(adapters[0], BASE) is first
    again = cache.get(adapters[1], BASE)
    assert again is not second
    assert torch.equal(again.lora["layers.0.mlp.up_proj"].b, second.lora["layers.0.mlp.up_proj"].b)


def test_an_adapter_larger_than_the_cache_is_read_and_not_kept(tmp_path: Path) -> None:
    adapter = identify(write_lora(tmp_path, LINEARS))
    cache = AdapterCache(10)
    assert cache.get(adapter, BASE).lora
    assert cache.used_bytes == 0


def test_a_cached_adapter_is_still_checked_against_the_base(tmp_path: Path) -> None:
    adapter = identify(write_lora(tmp_path, LINEARS))
    cache = AdapterCache(2**20)
    cache.get(adapter, BASE)
    with pytest.raises(CallerError, match="shape"):
        cache.get(adapter, {name: (out, into + 1) for name, (out, into) in BASE.items()})


def test_an_adapter_that_was_mended_is_read_after_it_failed(tmp_path: Path) -> None:
    adapter = identify(write_lora(tmp_path, LINEARS))
    weights = tmp_path / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:50])
    cache = AdapterCache(2**20)
    for _ in range(2):
        with pytest.raises(CallerError, match="changed"):
            cache.get(adapter, BASE)
    weights.write_bytes(whole)
    assert cache.get(adapter, BASE).lora


def test_threads_that_want_one_adapter_read_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = identify(write_lora(tmp_path, LINEARS))
    reads: list[str] = []
    everyone = threading.Barrier(8)

    def counted(*arguments: Any) -> AdapterWeights:
        reads.append("read")
        return read_adapter(*arguments)

    def ask() -> None:
        everyone.wait()
        got.append(cache.get(adapter, BASE))

    monkeypatch.setattr(lora, "read_adapter", counted)
    cache, got = AdapterCache(2**20), list[AdapterWeights]()
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads == ["read"]
    assert len({id(weights) for weights in got}) == 1


# Applying


@pytest.fixture(scope="module")
def base() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(intermediate_size=128, vocab_size=256, attention_bias=True, **SHAPE)
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def merged(base: Any, weights: AdapterWeights) -> Any:
    """A copy of the base with the adapter folded into its weights."""
    import copy

    model = copy.deepcopy(base)
    with torch.no_grad():
        for name, module in model.named_modules():
            name = name.removeprefix("model.")
            if name in weights.lora:
                module.weight += weights.lora[name].b @ weights.lora[name].a
            if name in weights.input_scale:
                module.weight *= weights.input_scale[name]
            if name in weights.output_scale:
                module.weight *= weights.output_scale[name][:, None]
                if module.bias is not None:
                    module.bias *= weights.output_scale[name]
    return model


def through_bank(base: Any, bank: AdapterBank, slot: int, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (T, vocabulary) of one sequence, the bank hooked into each linear layer."""
    rows = bank.rows(step([slot], [len(tokens)]))
    hooks = []
    for path, module in base.named_modules():
        if isinstance(module, torch.nn.Linear):
            name = path.removeprefix("model.")

            def before(_: Any, given: Any, name: str = name) -> Any:
                return (bank.scale_input(name, given[0][0], rows)[None],)

            def after(_: Any, given: Any, y: torch.Tensor, name: str = name) -> torch.Tensor:
                return bank.linear(name, given[0][0], y[0], rows)[None]

            hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        with torch.inference_mode():
            return base(tokens[None]).logits[0]
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("kind", ["lora", "rank pattern", "head", "ia3"])
def test_logits_equal_those_of_merged_weights(base: Any, tmp_path: Path, kind: str) -> None:
    folder = {
        "lora": lambda: write_lora(tmp_path, LINEARS, rank=8, size=0.1),
        "rank pattern": lambda: write_lora(tmp_path, LINEARS, size=0.1, ranks={"layers.1.mlp.up_proj": 3}),
        "head": lambda: write_lora(tmp_path, {n: s for n, s in BASE.items() if "q_proj" in n or n == "lm_head"}),
        "ia3": lambda: write_ia3(tmp_path, {n: s for n, s in LINEARS.items() if "o_proj" not in n}),
    }[kind]()
    weights, tokens, bank = read(folder), torch.arange(17), AdapterBank()
    bank.set(3, weights)
    with torch.inference_mode():
        expected, plain = merged(base, weights)(tokens[None]).logits[0], base(tokens[None]).logits[0]
    found = through_bank(base, bank, 3, tokens)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - plain).abs().max() > 0.01, "the adapter makes a difference"
    assert torch.equal(through_bank(base, bank, -1, tokens), plain)


def pair_weights(rank: int, seed: int, out: int = 12, into: int = 8) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, into, generator=generator), torch.randn(out, rank, generator=generator)
    return AdapterWeights(str(seed), lora={"layer": lora.LoraPair(a, b)})


@given(
    sequences=st.lists(st.tuples(st.integers(-1, 5), st.integers(1, 4)), min_size=1, max_size=12),
    ranks=st.lists(st.integers(1, 9), min_size=6, max_size=6),
)
def test_each_row_gets_its_own_adapter_whatever_its_neighbours_rank(
    sequences: list[tuple[int, int]], ranks: list[int]
) -> None:
    bank, adapters = AdapterBank(), [pair_weights(rank, seed) for seed, rank in enumerate(ranks)]
    for slot, weights in enumerate(adapters):
        bank.set(slot, weights)
    slots, lengths = [slot for slot, _ in sequences], [length for _, length in sequences]
    x, y = torch.randn(sum(lengths), 8), torch.randn(sum(lengths), 12)
    found = bank.linear("layer", x, y.clone(), bank.rows(step(slots, lengths)))
    place = 0
    for slot, length in sequences:
        own = slice(place, place + length)
        place += length
        expected = y[own].clone()
        if slot >= 0:
            pair = adapters[slot].lora["layer"]
            expected += x[own] @ pair.a.T @ pair.b.T
        torch.testing.assert_close(found[own], expected, atol=1e-4, rtol=1e-4)


def test_a_step_without_adapters_costs_nothing() -> None:
    bank = AdapterBank()
    rows = bank.rows(step([-1, -1], [3, 1]))
    x, y = torch.randn(4, 8), torch.randn(4, 12)
    assert not rows
    assert bank.scale_input("layer", x, rows) is x
    assert bank.linear("layer", x, y, rows) is y


def test_a_slot_holds_what_was_put_there_last() -> None:
    bank = AdapterBank()
    x, rows = torch.randn(1, 8), bank.rows(step([0], [1]))
    bank.set(0, pair_weights(2, 1))
    bank.set(0, pair_weights(5, 2))
    pair = pair_weights(5, 2).lora["layer"]
    torch.testing.assert_close(bank.linear("layer", x, torch.zeros(1, 12), rows), x @ pair.a.T @ pair.b.T)


# PEFT itself


def test_peft_gives_the_same_logits(base: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    import copy

    configs = {
        "plain": peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
        "rslora": peft.LoraConfig(
            r=8, lora_alpha=3, use_rslora=True, target_modules=r".*\.(q|v)_proj", init_lora_weights=False
        ),
        "patterns": peft.LoraConfig(
            r=4,
            target_modules=["q_proj", "up_proj", "down_proj"],
            rank_pattern={"layers.1.mlp.up_proj": 6, "q_proj": 2},
            alpha_pattern={r"layers\.0\..*": 5},
            layers_to_transform=[0, 1],
            init_lora_weights=False,
        ),
        "one layer": peft.LoraConfig(target_modules=["o_proj"], layers_to_transform=[1], init_lora_weights=False),
        "ia3": peft.IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
        ),
    }
    tokens = torch.arange(11)
    for name, config in configs.items():
        torch.manual_seed(1)
        model = peft.get_peft_model(copy.deepcopy(base), config).eval()
        model.save_pretrained(tmp_path / name)
        bank = AdapterBank()
        bank.set(0, read(tmp_path / name))
        with torch.inference_mode():
            expected = model(tokens[None]).logits[0]
        torch.testing.assert_close(through_bank(base, bank, 0, tokens), expected, atol=1e-4, rtol=0)
