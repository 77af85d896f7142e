from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.errors import CallerError, ConfigError, ModelUnavailable
from framework.messages import Completion, Delta, Message, ToolCall, ToolSpec, Usage, assemble, user
from framework.models.base import NONE, ChatModel, Choice, GenerationParams, ToolChoice, complete
from framework.testing.scripted import ScriptedChat, scripted_from_file, tool_call

SEARCH = ToolSpec("search", "Find documents.", {"type": "object", "properties": {"query": {"type": "string"}}})


async def deltas(model: ChatModel, text: str = "Hello") -> list[Delta]:
    return [delta async for delta in model.stream([user(text)])]


def test_it_is_a_chat_model() -> None:
    assert isinstance(ScriptedChat([]), ChatModel)


@given(st.text())
def test_any_text_comes_back_whole(text: str) -> None:
    assert asyncio.run(complete(ScriptedChat([text]), [user("?")])).message == Message("assistant", text)


async def test_text_is_streamed_in_pieces_and_only_the_last_delta_has_reason_and_usage() -> None:
    streamed = await deltas(ScriptedChat(["one two  three."]))
    assert [d.content for d in streamed[:-1]] == ["one", " two", "  three."]
    assert [d.finish_reason for d in streamed] == [None, None, None, "stop"]
    assert streamed[-1].usage == Usage(1, 4)


async def test_calls_are_streamed_in_pieces_and_get_ids() -> None:
    calls = [tool_call("search", query="a rather long question"), tool_call("search", query="ü")]
    streamed = await deltas(ScriptedChat([calls]))
    first = [piece for delta in streamed for piece in delta.tool_calls if piece.index == 0]
    assert (first[0].id, first[0].name, first[0].arguments) == ("call_1", "search", "")
    assert len(first) > 3
    whole = assemble(streamed)
    assert whole.finish_reason == "tool_calls"
    assert [json.loads(call.arguments) for call in whole.message.tool_calls] == [
        {"query": "a rather long question"},
        {"query": "ü"},
    ]
    assert [call.id for call in whole.message.tool_calls] == ["call_1", "call_2"]


async def test_a_function_sees_the_conversation_and_the_tools() -> None:
    def turn(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> ToolCall:
        return tool_call(tools[0].name, query=messages[-1].content)

    done = await complete(ScriptedChat([turn]), [user("refunds")], tools=[SEARCH])
    assert json.loads(done.message.tool_calls[0].arguments) == {"query": "refunds"}


async def test_an_exception_is_raised_and_the_script_goes_on() -> None:
    model = ScriptedChat([ModelUnavailable("down"), "up"])
    with pytest.raises(ModelUnavailable, match="down"):
        await complete(model, [user("?")])
    assert (await complete(model, [user("?")])).message.content == "up"


async def test_a_completion_is_given_as_it_is() -> None:
    wanted = Completion(Message("assistant", "cut"), "length", Usage(7, 3))
    assert await complete(ScriptedChat([wanted]), [user("?")]) == wanted


async def test_requests_are_kept() -> None:
    model = ScriptedChat(["a", "b"])
    await complete(model, [user("one")], tools=[SEARCH], tool_choice=NONE, params=GenerationParams(max_tokens=5))
    await complete(model, [user("two")], constraint=Choice(("b",)))
    assert [r.messages[-1].content for r in model.requests] == ["one", "two"]
    assert model.requests[0].tools == (SEARCH,)
    assert model.requests[0].tool_choice == NONE
    assert model.requests[0].params.max_tokens == 5
    assert model.requests[1].constraint == Choice(("b",))


async def test_it_fails_the_test_when_asked_too_often() -> None:
    with pytest.raises(AssertionError, match=r"more often.*Hello"):
        await deltas(ScriptedChat([]))


async def test_wrong_requests_are_refused_as_a_real_model_would() -> None:
    model = ScriptedChat(["never"], context_length=3)
    for messages, tools, choice, field in [
        ([], (), ToolChoice(), "messages"),
        ([Message("robot", "x")], (), ToolChoice(), "messages.0.role"),  # type: ignore[arg-type]  # the fault
        ([Message("tool", "x")], (), ToolChoice(), "messages.0.tool_call_id"),
        ([user("x")], (SEARCH, SEARCH), ToolChoice(), "tools"),
        ([user("x")], (SEARCH,), ToolChoice.named("sing"), "tool_choice"),
        ([user("x")], (), ToolChoice("required"), "tool_choice"),
        ([user("one two three four")], (), ToolChoice(), "messages"),
    ]:
        with pytest.raises(CallerError) as refused:
            await complete(model, messages, tools=tools, tool_choice=choice)
        assert refused.value.field == field
    assert model.requests == []


async def test_a_script_can_be_a_file(tmp_path: Path) -> None:
    script = tmp_path / "script.jsonl"
    script.write_text('[{"name": "search", "arguments": {"query": "x"}}]\n"Done."\n', encoding="utf-8")
    model = scripted_from_file(str(script))
    assert (await complete(model, [user("?")])).message.tool_calls[0].name == "search"
    assert (await complete(model, [user("?")])).message.content == "Done."
    script.write_text("7\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="one turn a line"):
        scripted_from_file(str(script))
