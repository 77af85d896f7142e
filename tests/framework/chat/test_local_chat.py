from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from framework.bridge import iterate_sync
from framework.errors import CallerError, ModelUnavailable, NotFound
from framework.messages import Delta, Message, ToolSpec, Usage, assemble, user
from framework.models.base import (
    AUTO,
    REQUIRED,
    ChatModel,
    Choice,
    GenerationParams,
    JsonSchema,
    ToolChoice,
    complete,
)
from framework.models.chat import PROVIDERS, load_chat
from framework.models.config import EndpointConfig, ModelsConfig
from framework.models.local_chat import LocalChat
from framework.models.openai_compatible import OpenAICompatible
from framework.testing.scripted import ScriptedChat, scripted_from_file

CONTEXT = 1024
HELLO = [user("Hello")]
WEATHER = ToolSpec(
    "get_weather",
    "Weather of a city.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}, "days": {"type": "integer"}},
        "required": ["city", "unit"],
    },
)
CLOCK = ToolSpec("clock", "The time.", {"type": "object", "properties": {}})


async def deltas(model: ChatModel, messages: Sequence[Message] = HELLO, **options: Any) -> list[Delta]:
    return [delta async for delta in model.stream(messages, **options)]


def reference(model: LocalChat, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding by whole forward passes: no cache, no generate."""
    import torch

    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, model._model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(prompt) :].tolist()


async def test_it_is_a_chat_model_and_says_what_plain_forward_passes_say(tiny: LocalChat) -> None:
    assert isinstance(tiny, ChatModel)
    done = await complete(tiny, HELLO, params=GenerationParams(max_tokens=24, logprobs=0))
    expected = reference(tiny, tiny.prompt(HELLO), 24)
    ended = expected.index(1) if 1 in expected else len(expected)
    assert [entry.token for entry in done.logprobs] == [named(tiny, token) for token in expected[:ended]]
    assert done.usage == Usage(len(tiny.prompt(HELLO)), min(24, ended + 1))


def named(model: LocalChat, token: int) -> str:
    raw = model._vocabulary.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


async def test_logprobs_are_those_of_a_plain_forward_pass(tiny: LocalChat) -> None:
    import torch

    done = await complete(tiny, HELLO, params=GenerationParams(max_tokens=8, logprobs=5))
    prompt = tiny.prompt(HELLO)
    tokens = reference(tiny, prompt, 8)
    with torch.no_grad():
        rows = tiny._model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    for token, row, entry in zip(tokens, rows, done.logprobs, strict=False):
        assert math.isclose(entry.logprob, row[token].item(), abs_tol=1e-3)
        best = row.topk(5)
        assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=1e-3)
    assert len(done.logprobs) >= 1


async def test_logprobs_are_the_models_own_where_a_grammar_forbids_its_choice(tiny: LocalChat) -> None:
    plain = await complete(tiny, HELLO, params=GenerationParams(max_tokens=1, logprobs=1))
    bound = await complete(
        tiny, HELLO, constraint=Choice(("yes", "no")), params=GenerationParams(max_tokens=1, logprobs=1)
    )
    assert bound.logprobs[0].top == plain.logprobs[0].top
    assert bound.logprobs[0].logprob < plain.logprobs[0].logprob


async def test_streamed_equals_unstreamed_and_a_seed_repeats(tiny: LocalChat) -> None:
    params = GenerationParams(max_tokens=30, temperature=1.0, top_p=0.95, seed=11)
    streamed = await deltas(tiny, params=params)
    assert len(streamed) > 5
    assert assemble(streamed) == await complete(tiny, HELLO, params=params)
    other = await complete(tiny, HELLO, params=GenerationParams(max_tokens=30, temperature=1.0, top_p=0.95, seed=12))
    assert assemble(streamed).message != other.message
    assert [d.finish_reason is None and d.usage is None for d in streamed] == [True] * (len(streamed) - 1) + [False]


@pytest.mark.parametrize("choice", [REQUIRED, ToolChoice.named("get_weather"), AUTO])
async def test_a_call_is_whole_and_valid_whatever_the_weights(tiny: LocalChat, choice: ToolChoice) -> None:
    for seed in range(3):
        params = GenerationParams(max_tokens=100, temperature=1.5, seed=seed)
        done = await complete(tiny, HELLO, tools=[CLOCK, WEATHER], tool_choice=choice, params=params)
        assert choice == AUTO or len(done.message.tool_calls) == 1
        for call in done.message.tool_calls:
            arguments = json.loads(call.arguments)
            assert call.name in {"get_weather", "clock"}
            assert call.name == "clock" or (arguments["unit"] in {"C", "F"} and isinstance(arguments["city"], str))
            assert call.id


async def test_calls_are_the_same_streamed_and_again(tiny: LocalChat) -> None:
    options: dict[str, Any] = {"tools": [WEATHER], "tool_choice": REQUIRED, "params": GenerationParams(max_tokens=90)}
    streamed = await deltas(tiny, **options)
    assert assemble(streamed) == await complete(tiny, HELLO, **options)
    pieces = [piece for delta in streamed for piece in delta.tool_calls]
    assert pieces[0].id
    assert pieces[0].name == "get_weather"


async def test_a_budget_too_small_for_any_call_gives_none_and_says_length(tiny: LocalChat) -> None:
    done = await complete(tiny, HELLO, tools=[WEATHER], tool_choice=REQUIRED, params=GenerationParams(max_tokens=6))
    assert done.message.tool_calls == ()
    assert done.message.content == ""
    assert done.finish_reason == "length"
    assert done.usage.completion_tokens == 6


async def test_json_by_schema(tiny: LocalChat) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"type": "number"}}, "required": ["n"]}
    for seed in range(4):
        params = GenerationParams(max_tokens=80, temperature=1.0, seed=seed)
        done = await complete(tiny, HELLO, constraint=JsonSchema(schema), params=params)
        assert isinstance(json.loads(done.message.content)["n"], int | float)


async def test_the_answer_ends_before_a_stop_string(tiny: LocalChat) -> None:
    params = GenerationParams(max_tokens=40, temperature=1.0, seed=5)
    whole = (await complete(tiny, HELLO, params=params)).message.content
    stop = whole[7:10]
    done = await complete(
        tiny, HELLO, params=GenerationParams(max_tokens=40, temperature=1.0, seed=5, stop=(stop, "never"))
    )
    assert done.message.content == whole[: whole.index(stop)]
    assert done.finish_reason == "stop"


async def test_a_prompt_longer_than_the_context_is_refused_before_the_model_is_loaded(tiny_folder: Path) -> None:
    model = LocalChat(tiny_folder, "fresh")
    long = [user("word " * CONTEXT)]
    with pytest.raises(CallerError) as refused:
        await complete(model, long)
    assert refused.value.field == "messages"
    assert str(len(model.prompt(long))) in str(refused.value)
    assert str(CONTEXT) in str(refused.value)
    assert "_model" not in vars(model)
    model.close()


async def test_without_a_limit_the_answer_ends_with_the_context(tiny: LocalChat) -> None:
    long = [user("a" * (CONTEXT - 40))]
    room = CONTEXT - len(tiny.prompt(long))
    done = await complete(tiny, long, params=GenerationParams(temperature=1.0, seed=1))
    assert done.usage.completion_tokens <= room
    assert done.finish_reason == ("length" if done.usage.completion_tokens == room else "stop")


@pytest.mark.parametrize("messages", [[], [Message("robot", "x")]])  # type: ignore[arg-type]  # the fault
async def test_an_impossible_conversation_is_refused(tiny: LocalChat, messages: list[Message]) -> None:
    with pytest.raises(CallerError):
        await complete(tiny, messages)


async def test_tools_with_bottomless_schemas_are_refused(tiny: LocalChat) -> None:
    circle: dict[str, Any] = {"type": "object"}
    circle["properties"] = {"again": circle}
    deep: dict[str, Any] = {}
    for _ in range(10_000):
        deep = {"items": deep}
    for parameters in (circle, deep):
        with pytest.raises(CallerError, match="64 levels") as refused:
            await complete(tiny, HELLO, tools=[CLOCK, ToolSpec("t", "", parameters)])
        assert refused.value.field == "tools.1.function.parameters"


async def test_half_a_surrogate_pair_is_refused_and_the_model_goes_on(tiny: LocalChat) -> None:
    with pytest.raises(CallerError, match="surrogate"):
        await complete(tiny, [user("\ud83d")])
    assert (await complete(tiny, HELLO, params=GenerationParams(max_tokens=2))).usage.completion_tokens >= 1


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_generation_stops_within_a_token_when_its_reader_goes(
    tiny: LocalChat, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    model, steps, gone = tiny._model, 0, threading.Event()
    forward = model.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        if gone.is_set():
            steps += 1
        elif started.is_set():
            gone.wait(timeout=5)  # hold the model here until the reader is gone
        return forward(*args, **kwargs)

    started = threading.Event()
    monkeypatch.setattr(model, "forward", counting)
    stream = tiny.stream(HELLO, params=GenerationParams(max_tokens=300, temperature=1.0, seed=5))
    if how == "close":
        await anext(stream)
        started.set()
        await stream.aclose()  # type: ignore[attr-defined]  # an async generator
    else:
        read = asyncio.Event()

        async def reader() -> None:
            async for _ in stream:
                read.set()

        task = asyncio.create_task(reader())
        await read.wait()
        started.set()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    gone.set()
    await asyncio.wrap_future(tiny._worker.submit(lambda: None))  # the worker is free again
    assert steps <= 1


async def test_requests_at_once_are_served_in_turn_and_each_rightly(tiny: LocalChat) -> None:
    def asked(seed: int) -> GenerationParams:
        return GenerationParams(max_tokens=12, temperature=1.0, seed=seed)

    alone = [await complete(tiny, HELLO, params=asked(seed)) for seed in range(4)]
    together = await asyncio.gather(*(complete(tiny, HELLO, params=asked(seed)) for seed in range(4)))
    assert together == alone


async def test_a_request_cancelled_while_it_waits_never_runs(tiny: LocalChat) -> None:
    release = threading.Event()
    busy = tiny._worker.submit(release.wait, 5)
    waiting = asyncio.create_task(complete(tiny, HELLO))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release.set()
    assert busy.result()
    after = tiny._worker.submit(lambda: "free")
    assert after.result(timeout=1) == "free"


async def test_a_closed_model_says_so_to_those_who_wait_and_those_who_come(tiny_folder: Path) -> None:
    model, release = LocalChat(tiny_folder, "brief"), threading.Event()
    model._worker.submit(release.wait, 5)
    waiting = asyncio.create_task(complete(model, HELLO))
    await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(model.close))
    with pytest.raises(ModelUnavailable, match="closed before"):
        await waiting
    release.set()
    await closing
    with pytest.raises(ModelUnavailable, match="was closed"):
        await complete(model, HELLO)


async def test_a_reader_that_stalls_holds_nobody_up(tiny: LocalChat) -> None:
    stalled = tiny.stream(HELLO, params=GenerationParams(max_tokens=60, temperature=1.0, seed=2))
    await anext(stalled)
    assert (await complete(tiny, HELLO, params=GenerationParams(max_tokens=3))).usage.completion_tokens >= 1
    assert [delta async for delta in stalled][-1].finish_reason


def test_synchronous_callers_get_the_same(tiny: LocalChat) -> None:
    params = GenerationParams(max_tokens=12, temperature=1.0, seed=3)
    assert assemble(list(iterate_sync(tiny.stream(HELLO, params=params)))) == asyncio.run(
        complete(tiny, HELLO, params=params)
    )


async def test_a_template_that_hangs_fails_its_request_only(
    model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    model = LocalChat(model_folder(template="{% if messages[0].content == 'loop' %}" + loop + "{% endif %}x"), "odd")
    model._template._child.seconds = 0.5
    with pytest.raises(ModelUnavailable, match="did not end"):
        await complete(model, [user("loop")])
    assert (await complete(model, HELLO, params=GenerationParams(max_tokens=2))).usage.prompt_tokens == 1
    model._template.close()
    model.close()


async def test_code_that_comes_with_a_model_is_never_run(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder, proof = model_folder(), tmp_path / "proof"
    code = f"open({str(proof)!r}, 'w').close()\n"
    for name in ("modeling_evil.py", "custom_generate/generate.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code + "class Evil: pass\ndef generate(*a, **k): pass\n", encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert await complete(LocalChat(folder, "m"), HELLO, params=GenerationParams(max_tokens=2))
    config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelUnavailable, match="never run"):
        await complete(LocalChat(folder, "m"), HELLO)
    assert not proof.exists()


async def test_pickled_weights_are_refused(model_folder: Callable[..., Path]) -> None:
    import torch

    folder = model_folder()
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelUnavailable, match="safetensors"):
        await complete(LocalChat(folder, "m"), HELLO)


@pytest.mark.parametrize(("name", "content"), [("config.json", None), ("config.json", "{"), ("tokenizer.json", None)])
async def test_a_damaged_folder_is_named(model_folder: Callable[..., Path], name: str, content: str | None) -> None:
    folder = model_folder()
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(ModelUnavailable, match=name):
        await complete(LocalChat(folder, "m"), HELLO)


def test_tokens_are_counted_as_plain_text(tiny: LocalChat) -> None:
    assert tiny.count_tokens("<|im_end|>") == len("<|im_end|>")
    assert tiny.count_tokens("") == 0
    assert tiny.context_length == CONTEXT


def test_a_name_leads_to_an_endpoint_a_provider_or_the_catalog(tiny_folder: Path, tmp_path: Path) -> None:
    remote = EndpointConfig("http://127.0.0.1:1/v1", "big")
    config = ModelsConfig(chat="mine", endpoints={"mine": remote})
    found = load_chat(None, config)
    assert isinstance(found, OpenAICompatible)
    assert found.name == "mine"
    assert isinstance(load_chat(str(tiny_folder), config), LocalChat)
    PROVIDERS.register("scripted", scripted_from_file)
    script = tmp_path / "turns.jsonl"
    script.write_text('"Hello."\n', encoding="utf-8")
    assert isinstance(load_chat(f"scripted:{script}"), ScriptedChat)
    with pytest.raises(NotFound):
        load_chat("no-such-model")
    with pytest.raises(CallerError, match="not a chat model"):
        load_chat("all-minilm-l6-v2")


async def test_the_model_that_ships_answers_and_calls(chat_model: ChatModel) -> None:
    done = await complete(chat_model, [user("What is the capital of France?")], params=GenerationParams(max_tokens=12))
    assert "Paris" in done.message.content
    assert done.finish_reason == "stop"
    asked = [user("What is the weather in Paris? Use degrees C.")]
    called = await complete(
        chat_model, asked, tools=[WEATHER], tool_choice=REQUIRED, params=GenerationParams(max_tokens=100)
    )
    arguments = json.loads(called.message.tool_calls[0].arguments)
    assert arguments["city"] == "Paris"
    assert arguments["unit"] in {"C", "F"}
