"""Models that only transformers knows: over the paged cache where they allow it, one by one where not."""

from __future__ import annotations

import json
import shutil
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


def test_its_cache_may_have_eight_bits_and_its_blocks_are_copied(model_folder: Any, drive: Any, reference: Any) -> None:
    run = drive(load(model_folder("gpt-neox"), kv_dtype="int8"))
    run.step((0, ids(10)))
    expected = reference("gpt-neox", ids(10))
    assert (run.of(0) - expected).abs().mean() < 0.05 * expected.abs().mean()
    wanted = run.step((0, ids(11)[10:]))
    spare = [run._free.pop() for _ in run.tables[0]]
    run.decoder.copy_blocks(list(zip(run.tables[0], spare, strict=True)))
    run.tables[1], run.done[1] = spare, 10
    assert torch.equal(run.step((1, ids(11)[10:])), wanted)


@pytest.mark.parametrize("kind", ["gpt-neox", "falcon"])
def test_adapters_change_the_rows_that_have_one(kind: str, model_folder: Any, drive: Any, reference: Any) -> None:
    from transformers import AutoModelForCausalLM

    decoder = load(model_folder(kind))
    generator = torch.Generator().manual_seed(1)
    names = [name for name in decoder.linears if "dense" in name or "query_key_value" in name or "embed_out" in name]
    pairs = {
        name: LoraPair(
            torch.randn(2, decoder.linears[name][1], generator=generator) * 0.2,
            torch.randn(decoder.linears[name][0], 2, generator=generator) * 0.2,
        )
        for name in names
    }
    scale = torch.rand(decoder.linears[names[0]][1], generator=generator) + 0.5
    decoder.set_adapter(0, AdapterWeights("lora", lora=pairs))
    decoder.set_adapter(1, AdapterWeights("ia3", input_scale={names[0]: scale}))
    run = drive(decoder, slots={0: 0, 2: 1})
    texts = [ids(9, seed=name) for name in range(3)]
    for span in (slice(0, 5), slice(5, 6), slice(6, 9)):
        run.step(*((name, text[span]) for name, text in enumerate(texts)))
    close(run.of(1), reference(kind, texts[1]))
    for name in (0, 2):
        changed = AutoModelForCausalLM.from_pretrained(model_folder(kind), dtype=torch.float32)
        modules = dict(changed.named_modules())
        with torch.inference_mode():
            for layer, pair in pairs.items() if name == 0 else ():
                modules[layer].weight += pair.b @ pair.a
            if name == 2:
                modules[names[0]].weight *= scale
            close(run.of(name), changed(torch.tensor([texts[name]])).logits[0])
    wrong = AdapterWeights("x", lora={names[0]: LoraPair(torch.zeros(2, 3), torch.zeros(5, 2))})
    with pytest.raises(CallerError, match=names[0].replace(".", r"\.")):
        decoder.set_adapter(0, wrong)


def test_a_sequence_by_itself_is_forgotten_when_its_blocks_are_another_s(model_folder: Any, drive: Any) -> None:
    decoder = load(model_folder("falcon"))
    run = drive(decoder, blocks=4)
    run.step((0, ids(10)))
    first = list(run.tables[0])
    run.tables[1], run.done[1] = [first[2], first[0]], 0
    expected = run.step((1, ids(6, seed=3)))
    assert len(decoder._sequences) == 1
    run.tables[2], run.done[2] = first, 0  # the first again, after it was preempted
    close(run.step((2, ids(10))), run.logits[0][0])
    assert len(decoder._sequences) == 1
    run.tables[3], run.done[3] = [first[2], first[0]], 0
    assert torch.equal(run.step((3, ids(6, seed=3))), expected)
    decoder.allocate(4)
    assert not decoder._sequences
    assert decoder.block_bytes > 0


def test_a_model_that_sees_what_comes_later_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(
        vocab_size=128,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        is_decoder=False,
    )
    BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelUnavailable, match="BertLMHeadModel"):
        load(tmp_path)


def test_a_model_without_a_cache_of_keys_is_refused(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelUnavailable, match="MambaForCausalLM"):
        load(tmp_path)


def test_code_of_the_folder_is_never_run(model_folder: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder("gpt-neox"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "stranger", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelUnavailable, match="'small'"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_a_cache_of_transformers_own_has_the_model_s_type(model_folder: Any) -> None:
    with pytest.raises(ModelUnavailable, match="FalconForCausalLM keeps keys and values in float32"):
        load(model_folder("falcon"), kv_dtype="int8")


def test_eight_bit_weights_are_refused_by_name(model_folder: Any) -> None:
    with pytest.raises(ModelUnavailable, match="8-bit"):
        load_decoder(model_folder("gpt2"), "small", block_size=BLOCK, dtype="int8", device="cpu")


def test_what_transformers_computes_can_not_be_promised_to_be_deterministic(model_folder: Any) -> None:
    with pytest.raises(ModelUnavailable, match="deterministic"):
        load(model_folder("gpt2"), deterministic=True)


def test_loading_leaves_the_progress_bars_of_downloads_as_they_were(model_folder: Any) -> None:
    from transformers.utils import logging

    for switch in (logging.enable_progress_bar, logging.disable_progress_bar):
        switch()  # type: ignore[no-untyped-call]
        before = logging.is_progress_bar_enabled()
        load(model_folder("gpt2"))
        assert logging.is_progress_bar_enabled() == before
    logging.enable_progress_bar()  # type: ignore[no-untyped-call]
