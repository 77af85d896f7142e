"""The runner turns what was scheduled into arrays, and does what must come before the forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from framework.engine.adapter import Adapter
from framework.engine.architectures import spec_of
from framework.engine.loader import Weights, read_config
from framework.engine.lora import AdapterCache, identify
from framework.engine.model_runner import ModelRunner
from framework.engine.scheduler import Batch, Scheduled
from framework.engine.sequence import Request, SamplingParams, Sequence
from framework.engine.torch_decoder import TorchDecoder
from framework.errors import CallerError

BLOCK = 4


def sequence(tokens: list[int], blocks: list[int], computed: int = 0, slot: int = -1) -> Sequence:
    made = Sequence(Request(tuple(tokens), SamplingParams(max_tokens=4)))
    made.blocks, made.computed, made.slot = blocks, computed, slot
    return made


def loaded(folder: Path, blocks: int = 16) -> TorchDecoder:
    spec = spec_of(read_config(folder))
    assert spec is not None
    decoder = TorchDecoder(spec, Weights(folder), block_size=BLOCK, adapter_slots=2)
    decoder.allocate(blocks)
    return decoder


def test_a_mixed_batch_becomes_flat_arrays(model_folder: Any) -> None:
    runner = ModelRunner(loaded(model_folder("llama")), BLOCK)
    chunk = sequence(list(range(10, 20)), [3, 4, 5], computed=2)
    decode = sequence([7, 8, 9], [1, 9], computed=2, slot=1)
    whole = sequence([5], [2])
    inputs = runner.inputs(Batch((Scheduled(chunk, 4), Scheduled(decode, 1), Scheduled(whole, 1))))
    assert inputs.tokens.tolist() == [12, 13, 14, 15, 9, 5]
    assert inputs.positions.tolist() == [2, 3, 4, 5, 2, 0]
    assert inputs.starts.tolist() == [0, 4, 5, 6]
    assert inputs.blocks.tolist() == [[3, 4], [1, 0], [2, 0]]
    assert inputs.slots.tolist() == [-1, 1, -1]
    assert inputs.sampled.tolist() == [4, 5]
    assert inputs.lengths.tolist() == [6, 3, 1]
    assert {array.dtype for array in (inputs.tokens, inputs.positions, inputs.starts, inputs.blocks)} == {
        np.dtype(np.int32)
    }


def test_logits_are_those_of_the_sampling_sequences_and_copies_come_first(model_folder: Any, reference: Any) -> None:
    runner = ModelRunner(loaded(model_folder("llama")), BLOCK)
    text = [4, 8, 15, 16, 23, 42]
    first = sequence(text, [6, 2])
    assert runner.forward(Batch((Scheduled(first, 5),))).shape == (0, 256)
    first.computed = 5
    sharing = sequence([*text[:5], 99], [6, 11], computed=5)
    batch = Batch((Scheduled(first, 1), Scheduled(sharing, 1)), copies=((2, 11),))
    logits = runner.forward(batch)
    for row, tokens in enumerate((text, sharing.tokens)):
        torch.testing.assert_close(logits[row], reference("llama", tokens)[-1], rtol=1e-4, atol=1e-4)


def test_an_adapter_is_loaded_into_its_slot_for_the_sequences_that_have_it(model_folder: Any, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    folder = model_folder("llama")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    adapter = identify(tmp_path)
    runner = ModelRunner(loaded(folder), BLOCK, AdapterCache(2**20))
    text = [3, 1, 4, 1, 5]
    runner.load(1, adapter)
    adapted, plain_one = sequence(text, [0, 1], slot=1), sequence(text, [2, 3])
    logits = runner.forward(Batch((Scheduled(adapted, 5), Scheduled(plain_one, 5))))
    with torch.inference_mode():
        expected = model(torch.tensor([text])).logits[0, -1]
        with model.disable_adapter():
            plain = model(torch.tensor([text])).logits[0, -1]
    torch.testing.assert_close(logits, torch.stack([expected, plain]), rtol=1e-4, atol=1e-4)
    with pytest.raises(CallerError, match="adapter_"):
        runner.load(0, Adapter("0" * 64, tmp_path / "no"))
