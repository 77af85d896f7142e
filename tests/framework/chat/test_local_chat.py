from __future__ import annotations

import asyncio
import gc
import json
import math
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from framework.bridge import iterate_sync
from framework.engine.lora import identify
from framework.engine.statistics import Statistics
from framework.errors import CallerError, ModelUnavailable, NotFound
from framework.messages import Delta, Message, ToolSpec, Usage, assemble, user
from framework.models import engines
from framework.models.base import (
    AUTO,
    REQUIRED,
    TENANT,
    ChatModel,
    Choice,
    GenerationParams,
    JsonSchema,
    ToolChoice,
    complete,
)
from framework.models.chat import PROVIDERS, load_chat
from framework.models.config import EndpointConfig, EngineConfig, ModelsConfig
from framework.models.local_chat import LocalChat
from framework.models.openai_compatible import OpenAICompatible
from framework.testing.adapters import write_lora
from framework.testing.scripted import ScriptedChat, scripted_from_file
from framework.testing.tiny_chat import TEMPLATE

CONTEXT = 1024
HELLO = [user("Hello")]
FLOAT32 = EngineConfig(device="cpu", dtype="float32", kv_dtype="float32")
LONG = GenerationParams(max_tokens=400, temperature=1.0, seed=5, logit_bias={1: -100.0})  # it does not end by itself
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


def own(folder: Path, name: str = "brief", **settings: Any) -> LocalChat:
    """A chat with settings of its own, so that no other test's shares its engine."""
    return LocalChat(folder, name, config=replace(FLOAT32, **{"max_waiting": 99, **settings}))


async def deltas(model: ChatModel, messages: Sequence[Message] = HELLO, **options: Any) -> list[Delta]:
    return [delta async for delta in model.stream(messages, **options)]


@pytest.fixture(scope="session")
def peer(tiny_folder: Path) -> Any:
    """The same weights in transformers' own model."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_folder).eval()


def reference(peer: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding by whole forward passes: no cache, no generate."""
    import torch

    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, peer(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(prompt) :].tolist()


async def test_it_is_a_chat_model_and_says_what_plain_forward_passes_say(tiny: LocalChat, peer: Any) -> None:
    assert isinstance(tiny, ChatModel)
    done = await complete(tiny, HELLO, params=GenerationParams(max_tokens=24, logprobs=0))
    expected = reference(peer, tiny.prompt(HELLO), 24)
    ended = expected.index(1) if 1 in expected else len(expected)
    assert [entry.token for entry in done.logprobs] == [named(tiny, token) for token in expected[:ended]]
    assert done.usage == Usage(len(tiny.prompt(HELLO)), min(24, ended + 1))


def named(model: LocalChat, token: int) -> str:
    raw = model._text.vocabulary.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


async def test_logprobs_are_those_of_a_plain_forward_pass(tiny: LocalChat, peer: Any) -> None:
    import torch

    done = await complete(tiny, HELLO, params=GenerationParams(max_tokens=8, logprobs=5))
    prompt = tiny.prompt(HELLO)
    tokens = reference(peer, prompt, 8)
    with torch.no_grad():
        rows = peer(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
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


@pytest.mark.parametrize("wrong", ["Hello", [{"role": "user", "content": "Hello"}]])
async def test_what_is_no_message_is_refused_by_its_type(tiny: LocalChat, wrong: Any) -> None:
    with pytest.raises(CallerError, match=r"Message objects, got (str|dict)") as refused:
        await complete(tiny, wrong)
    assert refused.value.field == "messages.0"


async def test_keys_and_values_beyond_the_memory_say_what_to_set(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("framework.engine.torch_decoder.TorchDecoder.allocate", allocate)
    model = own(tiny_folder, kernels=False, kv_memory_mb=3)
    with pytest.raises(ModelUnavailable, match=r"no memory for 3 MB of keys and values: .*Cannot allocate") as refused:
        await complete(model, HELLO)
    assert "kv_memory_mb" in str(refused.value.hint)
    model.close()


async def test_a_prompt_longer_than_the_context_is_refused_before_the_model_is_loaded(tiny_folder: Path) -> None:
    model = own(tiny_folder)
    long = [user("word " * CONTEXT)]
    with pytest.raises(CallerError) as refused:
        await complete(model, long)
    assert refused.value.field == "messages"
    assert str(len(model.prompt(long))) in str(refused.value)
    assert str(CONTEXT) in str(refused.value)
    assert model._lease.engine._thread is None
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


async def settled(model: LocalChat) -> Statistics:
    """The engine's figures once it has followed all that was ordered before."""
    await complete(model, HELLO, params=GenerationParams(max_tokens=1))
    return model._lease.engine.statistics()


async def test_an_answer_that_a_stop_string_ends_is_finished_not_cancelled(tiny: LocalChat) -> None:
    whole = (await complete(tiny, HELLO, params=GenerationParams(max_tokens=30))).message.content
    before = (await settled(tiny)).total
    await complete(tiny, HELLO, params=GenerationParams(max_tokens=30, stop=(whole[3:5],)))
    after = (await settled(tiny)).total
    assert (after.finished - before.finished, after.cancelled - before.cancelled) == (2, 0)  # `settled` asks too


@pytest.mark.parametrize("how", ["close", "cancel", "leave"])
async def test_an_answer_whose_reader_goes_leaves_nothing_behind(tiny: LocalChat, how: str) -> None:
    before, tasks = (await settled(tiny)).total.cancelled, len(asyncio.all_tasks())
    stream = tiny.stream(HELLO, params=LONG)
    if how == "close":
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]  # an async generator
    else:
        begun = asyncio.Event()
        task = asyncio.create_task(until_the_end(stream, begun))
        await (begun.wait() if how == "cancel" else asyncio.sleep(0))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    after = await settled(tiny)
    assert (after.running, after.waiting, after.blocks_used) == (0, 0, 0)
    assert after.total.cancelled - before == (0 if how == "leave" else 1)
    assert len(asyncio.all_tasks()) == tasks


async def until_the_end(stream: AsyncIterator[Delta], begun: asyncio.Event) -> list[Delta]:
    read = []
    async for delta in stream:
        begun.set()
        read.append(delta)
    return read


async def test_a_thousand_abandoned_answers_leave_nothing_behind(tiny: LocalChat) -> None:
    await asyncio.gather(*(settled(tiny) for _ in range(16)))  # all threads that prepare requests are there
    tasks, threads = len(asyncio.all_tasks()), threading.active_count()

    async def leave(number: int) -> None:
        stream = tiny.stream([user(f"Hello {number}")], params=LONG)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]  # an async generator

    for start in range(0, 1000, 50):
        await asyncio.gather(*(leave(number) for number in range(start, start + 50)))
    after = await settled(tiny)
    assert (after.running, after.waiting, after.blocks_used) == (0, 0, 0)
    assert len(asyncio.all_tasks()) == tasks
    assert threading.active_count() <= threads


async def test_64_requests_at_once_are_each_served_as_if_alone(tiny: LocalChat) -> None:
    def asked(number: int) -> tuple[list[Message], dict[str, Any]]:
        params = GenerationParams(max_tokens=8 + number % 16, temperature=0.5 * (number % 3), seed=number)
        tools = {"tools": [WEATHER], "tool_choice": REQUIRED} if number % 4 == 0 else {}
        return [user("Hello " * (number % 7))], {"params": params, **tools}

    alone = [await complete(tiny, messages, **options) for messages, options in map(asked, range(64))]
    together = await asyncio.gather(*(complete(tiny, m, **options) for m, options in map(asked, range(64))))
    assert together == alone


async def test_a_closed_model_says_so_to_those_who_are_there_and_those_who_come(tiny_folder: Path) -> None:
    model = own(tiny_folder)
    await settled(model)
    begun = asyncio.Event()
    waiting = [asyncio.create_task(until_the_end(model.stream(HELLO, params=LONG), begun)) for _ in range(40)]
    await begun.wait()
    await asyncio.to_thread(model.close)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, ModelUnavailable) and "was closed" in str(outcome) for outcome in outcomes)
    assert any("closed before" in str(outcome) for outcome in outcomes)
    with pytest.raises(ModelUnavailable, match="was closed"):
        await complete(model, HELLO)


async def test_draining_lets_answers_end(tiny_folder: Path) -> None:
    model = own(tiny_folder)
    expected, begun = await deltas(model, params=LONG), asyncio.Event()
    running = asyncio.create_task(until_the_end(model.stream(HELLO, params=LONG), begun))
    await begun.wait()
    await model.drain(20)
    assert await running == expected
    with pytest.raises(ModelUnavailable, match="was closed"):
        await complete(model, HELLO)


async def test_chats_of_one_folder_share_an_engine_and_the_last_one_ends_it(tiny_folder: Path) -> None:
    one, other, apart = own(tiny_folder, "one"), own(tiny_folder, "other"), own(tiny_folder, "apart", max_sequences=3)
    engine = one._lease.engine
    assert engine is other._lease.engine is not apart._lease.engine
    await complete(one, HELLO, params=GenerationParams(max_tokens=2))
    one.close()
    assert (await complete(other, HELLO, params=GenerationParams(max_tokens=2))).usage.completion_tokens
    other.close()
    assert engine.closed
    assert (await complete(apart, HELLO, params=GenerationParams(max_tokens=2))).usage.completion_tokens
    await apart.drain(5)
    assert not [name for name, _ in engines.statistics() if name in ("one", "other", "apart")]


async def test_a_folder_whose_files_changed_is_another_model(model_folder: Callable[..., Path]) -> None:
    folder = model_folder()
    before = LocalChat(folder, "m", config=FLOAT32)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "note": "changed"}), encoding="utf-8")
    assert LocalChat(folder, "m", config=FLOAT32)._lease.engine is not before._lease.engine
    before.close()


async def test_a_chat_that_is_dropped_takes_its_engine_along(tiny_folder: Path) -> None:
    model = own(tiny_folder)
    await settled(model)
    engine = model._lease.engine
    thread = engine._thread
    assert thread is not None
    del model
    gc.collect()
    await asyncio.to_thread(thread.join, 10)
    assert engine.closed


async def test_two_models_answer_in_one_process(tiny: LocalChat, model_folder: Callable[..., Path]) -> None:
    other = LocalChat(model_folder(seed=1), "other", config=FLOAT32)
    params = GenerationParams(max_tokens=30)
    alone = [await complete(model, HELLO, params=params) for model in (tiny, other)]
    assert alone[0] != alone[1]
    pairs = [asyncio.gather(*(complete(model, HELLO, params=params) for model in (tiny, other))) for _ in range(5)]
    assert await asyncio.gather(*pairs) == [alone] * 5
    other.close()


async def test_an_adapter_answers_and_one_replaced_while_in_use_goes_on(tiny_folder: Path, tmp_path: Path) -> None:
    linears = {f"layers.{layer}.self_attn.{name}_proj": (32, 32) for layer in range(2) for name in "qo"}
    old, new = (identify(write_lora(tmp_path / str(seed), linears, seed=seed)) for seed in range(2))
    name = {"assistant": old}
    model = LocalChat(tiny_folder, "tiny", config=FLOAT32, adapter=lambda: name["assistant"])
    plain = LocalChat(tiny_folder, "tiny", config=FLOAT32)
    params = GenerationParams(max_tokens=40, temperature=1.0, seed=3)
    expected = await complete(model, HELLO, params=params)
    stream = model.stream(HELLO, params=params)
    first = await anext(stream)
    name["assistant"] = new
    replaced = await complete(model, HELLO, params=params)
    base = await complete(plain, HELLO, params=params)
    assert assemble([first, *[delta async for delta in stream]]) == expected
    assert len({done.message.content for done in (expected, replaced, base)}) == 3
    assert set(model._lease.engine.statistics().adapters) >= {old.digest, new.digest}


async def test_tenants_share_nothing_that_is_cached(tiny: LocalChat) -> None:
    asked = [user("Is this known already? " * 4)]

    async def cached(tenant: str) -> int:
        TENANT.set(tenant)
        before = (await settled(tiny)).total.cached_tokens
        TENANT.set(tenant)
        await complete(tiny, asked, params=GenerationParams(max_tokens=2))
        return tiny._lease.engine.statistics().total.cached_tokens - before

    length = len(tiny.prompt(asked))
    seen = [await asyncio.create_task(cached(tenant)) for tenant in ("one", "two", "one")]
    assert max(seen[:2]) < length - 1  # at most what every prompt of that tenant begins with
    assert seen[2] == length - 1


async def test_a_reader_that_stalls_holds_nobody_up_and_little_is_kept_for_it(tiny: LocalChat) -> None:
    expected = await complete(tiny, HELLO, params=LONG)
    stalled = tiny.stream(HELLO, params=LONG)
    first = await anext(stalled)
    assert (await complete(tiny, [user("Others go on.")], params=LONG)).usage.completion_tokens == LONG.max_tokens
    assert tiny._lease.engine.statistics().paused == 1
    assert assemble([first, *[delta async for delta in stalled]]) == expected


def test_transformers_is_not_imported_for_a_model_of_ours(tiny_folder: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from framework.messages import user;"
        "from framework.models.base import GenerationParams, complete;"
        "from framework.models.local_chat import LocalChat;"
        "assert 'torch' not in sys.modules;"
        f"model = LocalChat(Path({str(tiny_folder)!r}), 'tiny');"
        "done = asyncio.run(complete(model, [user('Hello')], params=GenerationParams(max_tokens=3)));"
        "print(done.usage.completion_tokens, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["3", "False"]


def test_synchronous_callers_get_the_same(tiny: LocalChat) -> None:
    params = GenerationParams(max_tokens=12, temperature=1.0, seed=3)
    assert assemble(list(iterate_sync(tiny.stream(HELLO, params=params)))) == asyncio.run(
        complete(tiny, HELLO, params=params)
    )


async def test_a_template_that_hangs_fails_its_request_only(
    model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    model = LocalChat(
        model_folder(template="{% if messages[0].content == 'loop' %}" + loop + "{% endif %}x"), "odd", config=FLOAT32
    )
    model._text.template._child.seconds = 0.5
    with pytest.raises(ModelUnavailable, match="did not end"):
        await complete(model, [user("loop")])
    assert (await complete(model, HELLO, params=GenerationParams(max_tokens=2))).usage.prompt_tokens == 1
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
    assert await complete(LocalChat(folder, "m", config=FLOAT32), HELLO, params=GenerationParams(max_tokens=2))
    config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelUnavailable, match="without code of the folder's own"):
        await complete(LocalChat(folder, "m", config=FLOAT32), HELLO)
    assert not proof.exists()


async def test_pickled_weights_are_refused(model_folder: Callable[..., Path]) -> None:
    import torch

    folder = model_folder()
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelUnavailable, match="safetensors"):
        await complete(LocalChat(folder, "m", config=FLOAT32), HELLO)


@pytest.mark.parametrize(("name", "content"), [("config.json", None), ("config.json", "{"), ("tokenizer.json", None)])
async def test_a_damaged_folder_is_named(model_folder: Callable[..., Path], name: str, content: str | None) -> None:
    folder = model_folder()
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(ModelUnavailable, match=name):
        await complete(LocalChat(folder, "m", config=FLOAT32), HELLO)


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


async def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(model_folder: Callable[..., Path]) -> None:
    folder = model_folder(template=TEMPLATE.replace("assistant", "<far>assistant"))
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    last = max(words, key=lambda word: int(words[word]))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    del words[last]
    tokenizer["model"]["merges"] = [pair for pair in tokenizer["model"]["merges"] if "".join(pair) != last]
    words["<far>"] = 10**6
    tokenizer["added_tokens"].append({"id": 10**6, "content": "<far>", **flags})
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(ModelUnavailable, match=r"token 1000000.* tokens 0 to \d+.*different models"):
        await complete(LocalChat(folder, "far", config=FLOAT32), HELLO, params=GenerationParams(max_tokens=2))
    words[last] = 10**6 + 1
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 200}), encoding="utf-8")
    with pytest.raises(ModelUnavailable, match="different models"):
        _ = LocalChat(folder, "far", config=FLOAT32)._text.vocabulary
