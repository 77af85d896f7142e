"""An adapter that was just trained answers in our engine as it does in PEFT."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
from safetensors.torch import load_file

from framework.engine.lora import identify
from framework.messages import collect, user
from framework.models.base import GenerationParams
from framework.models.chat_text import ChatText, shared_text
from framework.models.config import EngineConfig
from framework.models.local_chat import LocalChat

from .conftest import Bench

Rows: TypeAlias = Callable[[int], list[dict[str, Any]]]
EXACT = EngineConfig(device="cpu", dtype="float32", kv_dtype="float32")
TOKENS = 12


def trainers_answer(bench: Bench, prompt: list[int], adapter: Any = None) -> list[int]:
    """Greedy tokens of transformers and PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(bench.base)
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    ids = torch.tensor([prompt])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
    return list(found[0, len(prompt) :].tolist())


def written(text: ChatText, ids: list[int]) -> str:
    """Tokens up to the end of the answer, as text; half a character at the end is left out."""
    end = next((place for place, id_ in enumerate(ids) if id_ in text.ends), len(ids))
    shown = [id_ for id_ in ids[:end] if id_ not in text.tokens.special]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(b"".join(text.vocabulary.token_bytes(id_) for id_ in shown))


@pytest.mark.parametrize(("recipe", "kind"), [("sft", "lora"), ("sft", "ia3"), ("dpo", "lora"), ("grpo", "lora")])
async def test_the_engine_answers_as_the_trainer(
    bench: Bench, questions: Rows, preferences: Rows, recipe: str, kind: str
) -> None:
    bench.rows((preferences if recipe == "dpo" else questions)(16))
    (bench.folder / "r.py").write_text("def long(row, answer):\n    return len(answer.content)\n", encoding="utf-8")
    optimizer = {"steps": 6, "sequences": 4, "learning_rate": 0.02 if kind == "lora" else 0.2}
    preference = {"rewards": ["r.py:long"], "max_new_tokens": 3, "kl_bound": 5}
    run = bench.train(bench.config(recipe, optimizer=optimizer, adapter={"kind": kind}, preference=preference))
    tensors = load_file(run.adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}

    adapter = identify(run.adapter)
    chat = LocalChat(bench.base, "tiny", config=EXACT, adapter=lambda: adapter)
    plain = LocalChat(bench.base, "tiny", config=EXACT)
    text, changed = shared_text(bench.base, "tiny"), 0
    for n in range(6):
        asked = [user(f"What is {n + 30}?")]
        params = GenerationParams(max_tokens=TOKENS)
        prompt = chat.prompt(asked)
        for model, folder in ((chat, run.adapter), (plain, None)):
            answer = (await collect(model.stream(asked, params=params))).message.content
            expected = trainers_answer(bench, prompt, folder)
            assert answer == written(text, expected)
        changed += trainers_answer(bench, prompt, run.adapter) != trainers_answer(bench, prompt)
    assert changed, "the adapter does something"
    for model in (chat, plain):
        model.close()
