from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.errors import ModelFault
from framework.messages import ToolCall, ToolSpec
from tools import Executor, Tool, ToolContext, ToolResult, Toolset, tool
from tools.decorator import MAX_STUCK


@tool
def add(a: int, b: int = 1) -> int:
    """Add."""
    return a + b


class Plain:
    """A tool of somebody else's making, with a schema and an outcome of its own."""

    timeout = 5.0

    def __init__(self, outcome: Any = "", schema: Mapping[str, Any] | None = None) -> None:
        self.spec = ToolSpec("plain", "", schema if schema is not None else {"type": "object"})
        self.outcome = outcome

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome  # type: ignore[no-any-return]  # a tool may lie about its type: that is under test


async def run(item: Tool, arguments: object = None, context: ToolContext | None = None, **options: Any) -> ToolResult:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    executor = Executor(Toolset([item]), **options)
    return await executor.run(ToolCall("call-1", item.spec.name, text), context or ToolContext(run_id="run-1"))


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets hanging functions go when the test is over."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_good_call_gives_its_result() -> None:
    assert await run(add, {"a": 2}) == ToolResult("3")


async def test_no_arguments_at_all_are_an_empty_object() -> None:
    assert (await run(Plain("fine"), "")).content == "fine"


async def test_an_unknown_tool_gets_close_names() -> None:
    executor = Executor(Toolset([add, Plain()]))
    result = await executor.run(ToolCall("1", "ad", "{}"), ToolContext())
    assert result == ToolResult("There is no tool 'ad'. Did you mean add?", error=True)
    result = await executor.run(ToolCall("1", "x" * 10_000, "{}"), ToolContext())
    assert result.error
    assert result.content.endswith("Tools: add, plain.")
    assert len(result.content) < 400


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("{", "not JSON"),
        ("{" * 100_000, "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": ' + "9" * 5_000 + "}", "not JSON"),
        ("[1]", "JSON list"),
        ('"a"', "JSON str"),
        ("null", "JSON NoneType"),
        ('{"a": "2"}', "a: '2' is not of type 'integer'"),
        ('{"a": 2.5}', "a: 2.5 is not of type 'integer'"),
        ('{"a": true}', "a: True is not of type 'integer'"),
        ('{"a": 1, "c": 2}', "'c' was unexpected"),
        ("{}", "'a' is a required property"),
        ("{" + ", ".join(f'"x{i}": 1' for i in range(20_000)) + "}", "'a' is a required property"),
        ('{"a": "' + "x" * 500_000 + '"}', "a: 'xxx"),
        ('{"a": "' + "x" * 1_000_001 + '"}', "1000000 are allowed"),
    ],
)
async def test_wrong_arguments_are_explained_to_the_model(arguments: str, told: str) -> None:
    result = await run(add, arguments)
    assert result.error
    assert told in result.content
    assert len(result.content) < 600


async def test_a_pattern_is_left_to_the_tool_and_cannot_hang_the_run() -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string", "pattern": "^(a+)+$"}}}
    assert (await run(Plain("fine", schema), {"text": "a" * 40 + "!"})).content == "fine"


async def test_a_reference_elsewhere_is_not_fetched() -> None:
    result = await run(Plain("fine", {"$ref": "http://127.0.0.1:9/schema.json"}), {})
    assert result.error


@given(st.text(), st.text())
async def test_no_name_and_no_arguments_make_it_raise(name: str, arguments: str) -> None:
    result = await Executor(Toolset([add])).run(ToolCall("1", name, arguments), ToolContext())
    assert result.error
    result.content.encode("utf-8")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
async def test_no_argument_value_makes_it_raise(value: object) -> None:
    result = await run(add, {"a": value})
    if not isinstance(value, float):
        assert result.error is (isinstance(value, bool) or not isinstance(value, int))


async def test_an_exception_is_named_without_a_traceback() -> None:
    @tool
    def broken() -> NoReturn:
        """Fail."""
        raise KeyError("no shelf 7")

    assert await run(broken) == ToolResult("broken failed: KeyError: 'no shelf 7'", error=True)


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModelFault("Wrong shelf.", hint="Try 8."), "Wrong shelf. Try 8."),
        (SystemExit(1), "plain failed: SystemExit: 1"),
        (RecursionError(), "plain failed: RecursionError: no message"),
        (Mute(), "plain failed: Mute: no message that can be shown"),
        (asyncio.CancelledError(), "plain was cancelled."),
        (TimeoutError("upstream"), "plain failed: TimeoutError: upstream"),
    ],
)
async def test_every_failure_becomes_a_result(error: BaseException, told: str) -> None:
    assert await run(Plain(error)) == ToolResult(told, error=True)


async def test_what_ends_a_program_or_an_iteration_in_a_plain_function_do_not_end_the_run() -> None:
    @tool
    def leaves() -> None:
        """Leave."""
        raise SystemExit(3)

    @tool
    def stops() -> None:
        """Stop."""
        raise StopIteration

    @tool
    def interrupts() -> None:
        """Interrupt."""
        raise KeyboardInterrupt

    assert (await run(leaves)).content == "leaves failed: SystemExit: 3"
    assert "KeyboardInterrupt" in (await run(interrupts)).content
    assert (await run(stops)).error


async def test_a_hanging_coroutine_is_given_up_in_time() -> None:
    @tool(timeout=0.05)
    async def hangs() -> None:
        """Hang."""
        await asyncio.Event().wait()

    result = await run(hangs)
    assert result == ToolResult("hangs did not answer within 0.05 seconds and was given up.", error=True)


async def test_a_coroutine_that_swallows_its_cancellation_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.executor.GRACE_SECONDS", 0.05)
    go = asyncio.Event()

    @tool(timeout=0.05)
    async def stubborn() -> str:
        """Refuse to end."""
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue
        return "late"

    assert "given up" in (await run(stubborn)).content
    go.set()


async def test_a_hanging_function_is_given_up_and_a_stuck_tool_is_not_called_for_ever(release: threading.Event) -> None:
    calls: list[int] = []

    @tool(timeout=0.05)
    def hangs(number: int) -> str:
        """Hang."""
        calls.append(number)
        release.wait()
        return "late"

    for number in range(MAX_STUCK):
        assert "given up" in (await run(hangs, {"number": number})).content
    result = await run(hangs, {"number": 99})
    assert f"{MAX_STUCK} earlier calls of hangs still hang" in result.content
    assert calls == list(range(MAX_STUCK))
    assert await run(add, {"a": 1}) == ToolResult("2")

    release.set()
    for thread in hangs._abandoned:
        thread.join(5)
    assert (await run(hangs, {"number": 100})).content == "late"


async def test_the_deadline_of_the_run_goes_before_the_tools_own_time() -> None:
    @tool(timeout=60)
    async def hangs() -> None:
        """Hang."""
        await asyncio.Event().wait()

    soon = ToolContext(deadline=time.monotonic() + 0.05)
    assert "given up" in (await run(hangs, context=soon)).content
    past = ToolContext(deadline=time.monotonic() - 1)
    assert (await run(hangs, context=past)).content == "There was no time left to call hangs."


async def test_cancelling_the_run_cancels_the_tool() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    @tool
    async def hangs() -> None:
        """Hang."""
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    work = asyncio.create_task(run(hangs))
    await started.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert ended.is_set()


async def test_a_hundred_megabytes_are_cut_with_a_notice_and_a_count() -> None:
    @tool
    def floods() -> str:
        """Flood."""
        return "x" * 100_000_000

    started = time.monotonic()
    result = await run(floods, max_chars=1_000)
    assert time.monotonic() - started < 5
    assert result.truncated == 100_000_000 - 1_000
    assert result.content.startswith("x" * 1_000 + "\n[Cut here: 99999000 of 100000000 characters")
    assert len(result.content) < 1_100
    assert not result.error


@given(st.integers(0, 50), st.integers(0, 60))
async def test_what_is_shown_and_what_is_cut_add_up(limit: int, size: int) -> None:
    result = await run(Plain("y" * size), max_chars=limit)
    assert result.content.count("y") + result.truncated == size


async def test_bytes_and_odd_objects_of_a_careless_tool_are_shown() -> None:
    assert (await run(Plain(b"\xff\x00"))).content == "The tool returned 2 bytes that are not text."
    assert (await run(Plain({"a": 1}))).content == '{"a":1}'
    assert (await run(Plain(ToolResult(b"abc")))).content == "abc"  # type: ignore[arg-type]  # the fault under test


async def test_nul_escapes_and_lone_surrogates_are_replaced() -> None:
    result = await run(Plain("a\x00b\ud800c\x1b[31md\tline\r\n"))
    assert result.content == "a\ufffdb\ufffdc\ufffd[31md\tline\r\n"


async def test_a_lone_surrogate_in_the_arguments_is_no_crash() -> None:
    @tool
    def repeat(text: str) -> str:
        """Repeat."""
        return text

    result = await run(repeat, '{"text": "\\ud800"}')
    result.content.encode("utf-8")


SECRETS = [
    "sk-proj-abcdefghijklmnopqrstuvwxyz0123",
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_" + "a1" * 20,
    "hf_" + "b2" * 16,
    "xoxb-123456789012-abcdefghij",
    "AIza" + "c3" * 17 + "d",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9.SflKxwRJSMeKKF2QT4",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nAAAA\n-----END RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("secret", SECRETS)
async def test_strings_in_the_shape_of_keys_are_not_shown(secret: str) -> None:
    assert (await run(Plain(f"key: {secret} end"))).content == "key: [redacted] end"


async def test_secret_values_of_the_environment_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_API_KEY", "correct horse battery")
    monkeypatch.setenv("SHOP_TOKEN", "short")
    monkeypatch.setenv("SHOP_COLOUR", "ultramarine")

    @tool
    def leaks() -> NoReturn:
        """Leak."""
        raise ValueError("correct horse battery, short, ultramarine")

    assert (await run(leaks)).content == "leaks failed: ValueError: [redacted], short, ultramarine"


async def test_a_secret_across_the_cut_is_not_shown_by_halves() -> None:
    result = await run(Plain("z " * 45 + SECRETS[0] + " z" * 250), max_chars=100)
    assert "sk-" not in result.content
    assert result.content.startswith("z " * 45 + "[redacted]\n")


async def test_passwords_in_addresses_are_not_shown() -> None:
    result = await run(Plain("postgres://admin:hunter22@db:5432/x and user@example.org"))
    assert result.content == "postgres://[redacted]@db:5432/x and user@example.org"


async def test_a_repetition_has_the_same_idempotency_key_and_nothing_else_has() -> None:
    keys: list[str] = []

    @tool
    def note(text: str, context: ToolContext) -> None:
        """Note."""
        keys.append(context.idempotency_key)
        assert context.call_id

    executor = Executor(Toolset([note]))
    for run_id, call_id in [("r", "1"), ("r", "1"), ("r", "2"), ("s", "1"), ("r1", ""), ("r", "1")]:
        await executor.run(ToolCall(call_id or "0", "note", '{"text": "x"}'), ToolContext(run_id=run_id))
    assert keys[0] == keys[1] == keys[5]
    assert len(set(keys)) == 4


async def test_the_duration_is_logged_and_the_arguments_are_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tools.executor"):
        await run(add, {"a": 41_234})
    assert "tool add: ok in 0." in caplog.text
    assert "41234" not in caplog.text


async def test_hits_and_data_pass_unchanged() -> None:
    made = ToolResult("text", data={"n": 1})
    assert await run(Plain(made)) == made
