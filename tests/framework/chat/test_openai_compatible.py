from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from framework.errors import CallerError, ModelUnavailable
from framework.messages import Delta, Message, ToolCall, ToolSpec, Usage, assemble, user
from framework.models.base import (
    NONE,
    REQUIRED,
    ChatModel,
    Choice,
    GenerationParams,
    JsonSchema,
    Regex,
    ToolChoice,
    complete,
)
from framework.models.config import EndpointConfig
from framework.models.openai_compatible import OpenAICompatible

HELLO = [user("Hello")]
TOOL = ToolSpec("search", "Find.", {"type": "object", "properties": {"q": {"type": "string"}}})
OTHER = ToolSpec("clock", "Time.", {"type": "object", "properties": {}})


@dataclass
class Server:
    """A server on this machine that plays one answer after another; what it was asked is kept."""

    answers: list[Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]]
    port: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    connections: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length")
        )
        self.headers.append(head)
        self.bodies.append(json.loads(await reader.readexactly(length)))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        try:
            await answer(reader, writer)
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
            self.closed.set()

    def model(self, **options: Any) -> OpenAICompatible:
        return OpenAICompatible(EndpointConfig(f"http://127.0.0.1:{self.port}/v1", "m", **options), "remote")


@asynccontextmanager
async def serving(*answers: Any) -> AsyncIterator[Server]:
    server = Server(list(answers))
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


def raw(*pieces: bytes, status: str = "200 OK", kind: str = "text/event-stream", headers: str = "") -> Any:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{headers}Connection: close\r\n\r\n".encode())
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    return answer


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()) + b"\n\n"


def chunk(reason: str | None = None, logprobs: Any = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
    return event({"id": "x", "object": "chat.completion.chunk", "choices": [choice]})


def call(index: int | None = 0, id_: str | None = None, name: str | None = None, arguments: Any = "") -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"function": function} | ({"index": index} if index is not None else {}) | ({"id": id_} if id_ else {})


def failing(status: str, body: Any, headers: str = "") -> Any:
    return raw(json.dumps(body).encode(), status=status, kind="application/json", headers=headers)


USAGE = event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}})
DONE = event(b"[DONE]")
FINE = raw(chunk(role="assistant"), chunk(content="Good "), chunk(content="day"), chunk("stop"), USAGE, DONE)


async def deltas(model: ChatModel, messages: Sequence[Message] = HELLO, **options: Any) -> list[Delta]:
    return [delta async for delta in model.stream(messages, **options)]


async def test_an_answer_is_streamed_and_adds_up() -> None:
    async with serving(FINE) as server:
        model = server.model()
        assert isinstance(model, ChatModel)
        streamed = await deltas(model)
    assert [delta.content for delta in streamed] == ["Good ", "day", ""]
    whole = assemble(streamed)
    assert (whole.finish_reason, whole.usage) == ("stop", Usage(9, 2))


async def test_the_request_says_what_was_asked_for() -> None:
    params = GenerationParams(max_tokens=7, temperature=0.5, top_p=0.9, stop=("END",), seed=3, logprobs=2)
    messages = [
        user("x"),
        Message("assistant", "", (ToolCall("c1", "search", '{"q": "y"}'),)),
        Message("tool", "found", tool_call_id="c1"),
    ]
    async with serving(FINE) as server:
        await complete(server.model(), messages, tools=[TOOL, OTHER], params=params)
        await complete(server.model(), HELLO, tools=[TOOL], tool_choice=NONE)
    body = server.bodies[0]
    assert {key: body[key] for key in ("model", "max_tokens", "temperature", "top_p", "stop", "seed")} == {
        "model": "m",
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["END"],
        "seed": 3,
    }
    assert (body["logprobs"], body["top_logprobs"], body["stream"]) == (True, 2, True)
    assert body["stream_options"] == {"include_usage": True}
    assert body["messages"][1]["content"] == "", "some servers refuse null"
    assert body["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"q": "y"}'
    assert body["messages"][2] == {"role": "tool", "content": "found", "tool_call_id": "c1"}
    assert [tool["function"]["name"] for tool in body["tools"]] == ["search", "clock"]
    assert body["tool_choice"] == "auto"
    assert server.bodies[1]["tool_choice"] == "none"
    assert not {"max_tokens", "top_p", "stop", "seed", "logprobs"} & set(server.bodies[1])


async def test_how_to_sample_is_told_by_openais_names_and_vllms() -> None:
    params = GenerationParams(
        top_k=5,
        min_p=0.1,
        presence_penalty=0.5,
        frequency_penalty=-1.0,
        repetition_penalty=1.2,
        logit_bias={42: -100.0},
        stop_ids=frozenset({4, 3}),
    )
    told = {
        "top_k": 5,
        "min_p": 0.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -1.0,
        "repetition_penalty": 1.2,
        "logit_bias": {"42": -100.0},
        "stop_token_ids": [3, 4],
    }
    async with serving(FINE) as server:
        await complete(server.model(), HELLO, params=params)
        await complete(server.model(), HELLO)
    assert told.items() <= server.bodies[0].items()
    assert not {*told, "top_p"} & set(server.bodies[1]), "what is neutral is left out: not every server knows it"


@pytest.mark.parametrize(
    ("choice", "tools", "sent"),
    [
        (REQUIRED, [TOOL, OTHER], "required"),
        (REQUIRED, [TOOL], {"type": "function", "function": {"name": "search"}}),
        (ToolChoice.named("clock"), [TOOL, OTHER], {"type": "function", "function": {"name": "clock"}}),
    ],
)
async def test_a_required_call_is_named_where_it_can_be(choice: ToolChoice, tools: list[ToolSpec], sent: Any) -> None:
    answer = raw(chunk(tool_calls=[call(0, "a", "search", "{}")]), chunk("tool_calls"), DONE)
    async with serving(answer) as server:
        await complete(server.model(), HELLO, tools=tools, tool_choice=choice)
    assert server.bodies[0]["tool_choice"] == sent


async def test_calls_come_in_pieces_and_ids_once_whatever_the_server_repeats() -> None:
    answer = raw(
        chunk(tool_calls=[call(0, "a", "search", "{")]),
        chunk(tool_calls=[call(0, "a", "search", '"q": 1}')]),
        chunk(tool_calls=[call(1, "b", "clock", "{}")]),
        chunk("stop"),
        DONE,
    )
    async with serving(answer) as server:
        streamed = await deltas(server.model(), tools=[TOOL, OTHER])
    whole = assemble(streamed)
    assert whole.message.tool_calls == (ToolCall("a", "search", '{"q": 1}'), ToolCall("b", "clock", "{}"))
    assert whole.finish_reason == "tool_calls"
    pieces = [piece for delta in streamed for piece in delta.tool_calls]
    assert [(piece.id, piece.name) for piece in pieces] == [("a", "search"), (None, None), ("b", "clock")]


async def test_calls_without_index_or_id_or_with_arguments_as_an_object_are_understood() -> None:
    answer = raw(
        chunk(tool_calls=[call(0, "a", "search", {"q": "x"}), call(0, "b", "search", "{}")]),
        chunk("tool_calls"),
        DONE,
    )
    bare = raw(chunk(tool_calls=[call(None, None, "clock", "{}")]), chunk("tool_calls"), DONE)
    async with serving(answer, bare) as server:
        both = await complete(server.model(), HELLO, tools=[TOOL])
        alone = await complete(server.model(), HELLO, tools=[OTHER])
    assert [(c.id, c.arguments) for c in both.message.tool_calls] == [("a", '{"q": "x"}'), ("b", "{}")]
    assert alone.message.tool_calls[0].name == "clock"
    assert alone.message.tool_calls[0].id


async def test_logprobs_are_read() -> None:
    entry = {"token": "Hi", "logprob": -0.5, "top_logprobs": [{"token": "Hi", "logprob": -0.5}]}
    async with serving(raw(chunk(content="Hi", logprobs={"content": [entry]}), chunk("stop"), DONE)) as server:
        done = await complete(server.model(), HELLO, params=GenerationParams(logprobs=1))
    assert done.logprobs[0].token == "Hi"
    assert done.logprobs[0].top == (("Hi", -0.5),)


async def test_events_may_be_cut_anywhere_and_hold_any_line_separator() -> None:
    text = "a\u2028b\u0085c 😀"
    body = b": alive\r\n\r\n" + chunk(content=text).replace(b"\n\n", b"\r\n\r\n") + chunk("stop")
    async with serving(raw(*(body[i : i + 1] for i in range(len(body))))) as server:
        done = await complete(server.model(), HELLO)
    assert done.message.content == text


async def test_usage_is_estimated_where_the_server_is_silent() -> None:
    async with serving(raw(chunk(content="Good day"), chunk("stop"), DONE)) as server:
        usage = (await complete(server.model(), HELLO)).usage
    assert usage.prompt_tokens > 0
    assert usage.completion_tokens >= 2


GARBAGE = {
    "a web page": (raw(b"<html>hello</html>", kind="text/html"), "sent no answer"),
    "no JSON": (raw(event(b"{oops")), "no part of a chat completion"),
    "a list": (raw(event([1])), "no part of a chat completion"),
    "the wrong shape": (raw(event({"choices": [{"delta": {"content": 5}}]})), "no part of a chat completion"),
    "calls of the wrong shape": (raw(chunk(tool_calls=[{"function": {}}])), "no part of a chat completion"),
    "an error event": (raw(chunk(content="a"), event({"error": {"message": "out of memory"}})), "out of memory"),
    "an end in the middle": (raw(chunk(content="a")), "in the middle"),
    "no event at all": (raw(), "sent no answer"),
    "a broken chunk": (
        raw(b"5\r\nab", headers="Transfer-Encoding: chunked\r\n"),
        "broke in the middle",
    ),
}


@pytest.mark.parametrize(("answer", "told"), GARBAGE.values(), ids=GARBAGE.keys())
async def test_what_is_no_answer_is_an_error_that_says_so(answer: Any, told: str) -> None:
    async with serving(answer) as server:
        with pytest.raises(ModelUnavailable) as failed:
            await complete(server.model(max_retries=0), HELLO)
    assert told in str(failed.value)
    assert failed.value.hint or "out of memory" in told


async def test_an_endless_line_is_cut_off() -> None:
    async with serving(raw(b"data: ", *(b"x" * (1 << 20),) * 12)) as server:
        with pytest.raises(ModelUnavailable, match="no part of a chat completion"):
            await complete(server.model(), HELLO)


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()  # until the other side has had enough


async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await raw(chunk(content="one"))(reader, writer)
    await silence(reader, writer)


async def test_a_server_that_accepts_and_stays_silent_is_given_up_once() -> None:
    async with serving(silence) as server:
        with pytest.raises(ModelUnavailable, match=r"sent nothing for 0.2 seconds before it answered"):
            await complete(server.model(timeout=0.2), HELLO)
        assert server.connections == 1, "it may be working on the first request still"


async def test_a_server_that_stops_in_the_middle_is_given_up() -> None:
    async with serving(stall) as server:
        with pytest.raises(ModelUnavailable, match="in the middle of an answer"):
            await complete(server.model(timeout=0.2), HELLO)


async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


@pytest.mark.parametrize("first", [drop, failing("503 Busy", {}), failing("429 Slow", {}, "Retry-After: 0\r\n")])
async def test_before_the_first_byte_it_tries_again(first: Any) -> None:
    async with serving(first, FINE) as server:
        assert (await complete(server.model(max_retries=1), HELLO)).message.content == "Good day"
        assert server.connections == 2


async def test_tries_are_bounded_and_the_servers_words_are_passed_on() -> None:
    async with serving(failing("503 Busy", {"error": {"message": "model is loading"}})) as server:
        with pytest.raises(ModelUnavailable, match="503: model is loading"):
            await complete(server.model(max_retries=1), HELLO)
        assert server.connections == 2


async def test_after_the_first_byte_it_never_tries_again() -> None:
    async with serving(raw(chunk(content="a")), FINE) as server:
        with pytest.raises(ModelUnavailable):
            await complete(server.model(max_retries=5), HELLO)
        assert server.connections == 1


async def test_nobody_listening() -> None:
    async with serving(FINE) as server:
        model = server.model(max_retries=0)
    await asyncio.sleep(0)
    with pytest.raises(ModelUnavailable, match="can't be reached"):
        await complete(model, HELLO)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("400 Bad", CallerError),
        ("422 Bad", CallerError),
        ("401 No", ModelUnavailable),
        ("404 No", ModelUnavailable),
        ("302 Elsewhere", ModelUnavailable),
    ],
)
async def test_a_refusal_is_told_to_whom_it_concerns(status: str, kind: type[Exception]) -> None:
    async with serving(failing(status, {"error": {"message": "too long: 9000 of 4096"}})) as server:
        with pytest.raises(kind, match="too long"):
            await complete(server.model(max_retries=3), HELLO)
        assert server.connections == 1


async def test_the_key_comes_from_the_environment_and_shows_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", "sk-hush\n")
    async with serving(FINE, failing("401 No", {"error": {"message": "wrong key sk-hush"}})) as server:
        model = server.model(api_key_env="MY_KEY")
        await complete(model, HELLO)
        with pytest.raises(ModelUnavailable, match="MY_KEY") as refused:
            await complete(model, HELLO)
    assert "Bearer sk-hush\r\n" in server.headers[0]
    assert "sk-hush" not in f"{refused.value}{refused.value.message}{model!r}{vars(model)}{caplog.text}"
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ModelUnavailable, match="Set the variable MY_KEY"):
        await complete(model, HELLO)


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_a_cancelled_answer_closes_its_connection(how: str) -> None:
    async with serving(stall, FINE) as server:
        stream = server.model().stream(HELLO)
        assert (await anext(stream)).content == "one"
        if how == "close":
            await stream.aclose()  # type: ignore[attr-defined]  # an async generator
        else:
            task = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.wait_for(server.closed.wait(), 5)
        assert (await complete(server.model(), HELLO)).message.content == "Good day"
        assert server.connections == 2


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def saying(text: str, reason: str = "stop") -> Any:
    return raw(chunk(content=text), chunk(reason), DONE)


@pytest.mark.parametrize(
    ("constraint", "text", "sent"),
    [
        (JsonSchema(SCHEMA), '{"n": 1}', {"response_format"}),
        (Choice(("yes", "no")), "yes", {"structured_outputs", "guided_choice", "regex"}),
        (Regex("[0-9]{4}"), "1984", {"structured_outputs", "guided_regex", "regex"}),
    ],
)
async def test_constraints_are_sent_in_the_fields_that_servers_know(constraint: Any, text: str, sent: set[str]) -> None:
    async with serving(saying(text)) as server:
        assert (await complete(server.model(), HELLO, constraint=constraint)).message.content == text
    assert sent <= set(server.bodies[0])


@pytest.mark.parametrize(
    ("constraint", "text", "reason"),
    [
        (JsonSchema(SCHEMA), "Well, n is 1.", "stop"),
        (JsonSchema(SCHEMA), '{"n": "1"}', "stop"),
        (Choice(("yes", "no")), "Yes, certainly", "stop"),
        (Choice(("yes", "no")), "Yes, certain", "length"),
        (Regex("[0-9]{4}"), "in 1984", "stop"),
        (Regex("(a+)+"), "a" * 60 + "!", "stop"),
    ],
)
async def test_an_answer_outside_its_constraint_is_an_error(constraint: Any, text: str, reason: str) -> None:
    async with serving(saying(text, reason)) as server:
        with pytest.raises(ModelUnavailable, match="outside the constraint"):
            await complete(server.model(), HELLO, constraint=constraint)


async def test_an_answer_cut_by_its_budget_says_length() -> None:
    async with serving(saying('{"n": ', "length")) as server:
        assert (await complete(server.model(), HELLO, constraint=JsonSchema(SCHEMA))).finish_reason == "length"


async def test_a_server_of_an_older_dialect_gets_the_schema_its_way() -> None:
    refusal = failing("500 Error", {"error": {"message": "Input should be 'text' or 'json_object'"}})
    async with serving(refusal, saying('{"n": 1}')) as server:
        model = server.model(max_retries=0)
        await complete(model, HELLO, constraint=JsonSchema(SCHEMA))
        await complete(model, HELLO, constraint=JsonSchema(SCHEMA))
    kinds = [body["response_format"]["type"] for body in server.bodies]
    assert kinds == ["json_schema", "json_object", "json_object"]
    assert server.bodies[1]["response_format"]["schema"] == SCHEMA


async def test_a_required_call_that_does_not_come_is_an_error() -> None:
    async with serving(FINE) as server:
        with pytest.raises(ModelUnavailable, match="called no tool"):
            await complete(server.model(), HELLO, tools=[TOOL], tool_choice=REQUIRED)


async def test_wrong_requests_never_leave_the_house() -> None:
    async with serving(FINE) as server:
        for options in ({"constraint": JsonSchema({"$ref": "#"})}, {"tool_choice": REQUIRED}):
            with pytest.raises(CallerError):
                await complete(server.model(), HELLO, **options)
        with pytest.raises(CallerError):
            await complete(server.model(), [])
        with pytest.raises(CallerError, match="surrogate"):
            await complete(server.model(), [user("\ud800")])
        assert server.connections == 0


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox jumps over the lazy dog, and nobody minds; refunds take five working days.",
        "def f(x: int) -> list[int]:\n    return [x**2 for _ in range(10)]  # squares\n",
        "2024-05-17T12:30:45Z 192.168.0.1 3.14159",
        "Die Überprüfung der Größenverhältnisse erforderte außerordentliche Sorgfalt.",
        "人工智能是计算机科学的一个分支。",
        "Привет, как дела? 😀👩‍🚀",
        "| a | b |\n|---|---|\n| 1 | 2 |\n",
        "internationalization counterrevolutionary uncharacteristically",
    ],
)
def test_the_estimate_of_tokens_is_not_too_low(chat_model: ChatModel, text: str) -> None:
    exact = chat_model.count_tokens(text)
    endpoint = EndpointConfig("http://127.0.0.1:1/v1", "m")
    assert OpenAICompatible(endpoint).count_tokens(text) >= 0.9 * exact
    assert OpenAICompatible(replace(endpoint, context_length=77)).context_length == 77
    assert OpenAICompatible(endpoint).name == "m"
