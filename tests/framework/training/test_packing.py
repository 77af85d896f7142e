"""Rendering and packing: what is learned is what is served, and a packed sequence learns what its examples do alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from framework.errors import CallerError, TooLarge
from framework.messages import Message, ToolCall, ToolSpec, assistant, system, user
from framework.models.chat_text import shared_text
from framework.prompts.reading import reading_messages
from framework.training.attention import register
from framework.training.packing import IGNORED, Packed, pack, visible
from framework.training.recipes.sft import collate
from framework.training.rendering import Example, Renderer
from framework.training.rows import ChatRow, PreferenceRow, Provenance

HERE = Provenance("tests", "MIT")
WEATHER = ToolSpec("weather", "Tells it.", {"type": "object", "properties": {"city": {"type": "string"}}})
CALL = ToolCall("call_0", "weather", '{"city": "Oslo"}')
PASSAGES = ("The mill was built in 1820 beside the river and burned down twice.", "Anna sells bread on Mondays.")


@pytest.fixture(scope="module")
def renderer(tiny_base: Path) -> Renderer:
    return Renderer(shared_text(tiny_base, "tiny"))


def said(renderer: Renderer, ids: Sequence[int]) -> str:
    return str(renderer.text.tokens.tokenizer.decode(list(ids), skip_special_tokens=False))


def reading(renderer: Renderer, documents: int = 2, each: int = 3) -> list[Example]:
    """Questions on passages: a document's share their beginning."""
    rows = [
        ChatRow(
            (*reading_messages(f"What about {n}?", PASSAGES[d % 2] * (1 + d // 2)), assistant(f"n{n}")), f"d{d}", HERE
        )
        for d in range(documents)
        for n in range(each)
    ]
    return [example for row in rows for example in renderer.examples(row)]


# What the loss is on


def test_the_loss_is_on_the_assistants_words_and_the_end_of_its_turn_alone(renderer: Renderer) -> None:
    (example,) = renderer.examples(ChatRow((system("Be brief."), user("Hello?"), assistant("Hi.")), "d", HERE))
    (packed,) = pack([example], 200)
    labelled = [label for label in packed.labels if label != IGNORED]
    assert said(renderer, labelled) == "Hi.<|im_end|>"
    assert said(renderer, packed.ids[: -len(labelled)]).endswith("<|im_start|>assistant\n")


def test_each_turn_of_the_assistant_is_learned_after_what_stood_before_it(renderer: Renderer) -> None:
    answered = Message("tool", "rain", tool_call_id="call_0", name="weather")
    row = ChatRow(
        (user("Oslo?"), Message("assistant", "", (CALL,)), answered, assistant("Rain.")), "d", HERE, (WEATHER,)
    )
    call, answer = renderer.examples(row)
    assert said(renderer, call.ids[call.prompt :]) == (
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>'
    )
    assert said(renderer, answer.ids[answer.prompt :]) == "Rain.<|im_end|>"
    assert "<tool_response>\nrain\n</tool_response>" in said(renderer, answer.ids[: answer.prompt])


def test_a_prompt_in_training_is_the_prompt_in_serving(renderer: Renderer, tiny_base: Path) -> None:
    from framework.models.local_chat import LocalChat

    turns = (system("Be brief."), user("What <|im_end|> is that?"))
    (example,) = renderer.examples(ChatRow((*turns, assistant("Text.")), "d", HERE, (WEATHER,)))
    chat = LocalChat(tiny_base, "tiny")
    assert list(example.ids[: example.prompt]) == chat.prompt(turns, (WEATHER,))
    chat.close()


def test_control_tokens_in_an_answer_stay_text(renderer: Renderer) -> None:
    (example,) = renderer.examples(ChatRow((user("Quote it."), assistant("<|im_end|> ends.")), "d", HERE))
    end = renderer.end
    assert [place for place, id_ in enumerate(example.ids[example.prompt :]) if id_ == end] == [
        len(example.ids) - example.prompt - 1
    ]


def test_both_answers_of_a_preference_follow_one_prompt(renderer: Renderer) -> None:
    pair = renderer.pair(
        PreferenceRow((user("Oslo?"),), Message("assistant", "", (CALL,)), assistant("No."), "d", HERE, (WEATHER,))
    )
    (alone,) = renderer.examples(ChatRow((user("Oslo?"), Message("assistant", "", (CALL,))), "d", HERE, (WEATHER,)))
    assert (*pair.prompt, *pair.chosen) == alone.ids
    assert said(renderer, pair.rejected) == "No.<|im_end|>"


def test_a_row_without_an_answer_is_refused(renderer: Renderer) -> None:
    with pytest.raises(CallerError, match="needs an assistant's message"):
        list(renderer.examples(ChatRow((user("Hello?"),), "d", HERE)))


# Packing


def test_an_example_that_is_too_long_names_its_document_and_both_lengths(renderer: Renderer) -> None:
    with pytest.raises(TooLarge, match=r"'d0' has \d+ tokens, the limit is 50"):
        pack(reading(renderer), 50)


def test_what_examples_have_in_common_stands_there_once(renderer: Renderer) -> None:
    examples = reading(renderer, documents=1, each=6)
    (packed,) = pack(examples, 2000)
    assert len(packed) < sum(len(e.ids) for e in examples) / 3


EXAMPLES = st.lists(
    st.builds(
        lambda stem, rest, answer, document: Example((*[1] * stem, *rest, *answer), stem + len(rest), f"d{document}"),
        st.integers(0, 40),
        st.lists(st.integers(2, 9), min_size=1, max_size=5).map(tuple),
        st.lists(st.integers(2, 9), min_size=1, max_size=5).map(tuple),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=12,
)


@given(EXAMPLES)
def test_each_example_can_be_read_from_the_packed_sequences(examples: list[Example]) -> None:
    found = []
    for packed in pack(examples, 60):
        assert len(packed) <= 60
        for part, trunk in enumerate(packed.trunk):
            own = [n for n, branch in enumerate(packed.branch) if branch in (part, trunk)]
            labels = [packed.labels[n] for n in own if packed.labels[n] != IGNORED]
            if labels:
                assert [packed.positions[n] for n in own] == list(range(len(own)))
                assert (visible(packed)[own[-1]].nonzero()[0] == np.array(own)).all()
                found.append((tuple(packed.ids[n] for n in own), len(own) - len(labels)))
    assert sorted(found) == sorted((example.ids, example.prompt) for example in examples)


def losses_and_gradients(
    base: Path, packed: Sequence[Packed], attention: str, kind: torch.dtype = torch.float32
) -> tuple[float, dict[str, torch.Tensor]]:
    """Sum of the losses, and its gradient by each weight."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, attn_implementation=attention, dtype=kind)
    total = 0.0
    for item in packed:
        batch = collate([{name: getattr(item, name) for name in item.__dataclass_fields__}])
        labels = batch.pop("labels")
        batch["attention_mask"] = batch["attention_mask"].to(kind).clamp_min(torch.finfo(kind).min)
        logits = model(**batch, use_cache=False).logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum", ignore_index=IGNORED)
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "ours"])
def test_packed_losses_and_gradients_are_those_of_the_examples_alone(
    renderer: Renderer, tiny_base: Path, attention: str
) -> None:
    examples = reading(renderer, documents=4, each=3)
    packed = pack(examples, 1000)
    several = [p for p in packed if len(p.trunk) > 4]
    assert several, "several documents share a sequence"
    assert len(packed) < len(examples) / 3
    name = register() if attention == "ours" else attention
    together, one = losses_and_gradients(tiny_base, packed, name)
    alone, other = losses_and_gradients(tiny_base, [p for e in examples for p in pack([e], 1000)], "eager")
    assert together == pytest.approx(alone, rel=1e-6)
    for key, gradient in other.items():
        assert torch.allclose(one[key], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max())), key


def test_the_attention_for_packed_sequences_serves_padded_batches_and_caches_too(tiny_base: Path) -> None:
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[5, 6, 7, 8, 9], [0, 0, 0, 7, 8]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]])
    answers = []
    for attention in ("eager", register()):
        model: Any = AutoModelForCausalLM.from_pretrained(tiny_base, attn_implementation=attention)
        answers.append(model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0))
    assert torch.equal(*answers)


def test_padding_does_not_become_nan_in_bfloat16(tiny_base: Path) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_base, attn_implementation=register())
    ids, mask = torch.tensor([[0, 0, 7, 8]]), torch.tensor([[0, 0, 1, 1]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(model(input_ids=ids, attention_mask=mask).logits).all()
