from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from framework.messages import Completion, Delta, Message, ToolCall, ToolCallDelta, Usage, assemble, canonical_json

CALL = ToolCall("call_1", "add", '{"a": 1, "b": 2}')


def test_a_message_survives_the_wire() -> None:
    for message in (
        Message("user", "hello"),
        Message("assistant", "", (CALL,)),
        Message("tool", "3", tool_call_id="call_1", name="add"),
    ):
        assert Message.from_openai(message.to_openai()) == message


def test_an_assistants_turn_of_calls_alone_has_no_content_on_the_wire() -> None:
    assert Message("assistant", "", (CALL,)).to_openai()["content"] is None


@given(st.text(max_size=40), st.lists(st.integers(0, 40), max_size=5))
def test_a_stream_adds_up_to_the_same_answer_however_it_is_cut(text: str, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    deltas = [Delta(text[a:b]) for a, b in pairwise(places)]
    whole = assemble([*deltas, Delta(finish_reason="stop", usage=Usage(3, 4))])
    assert whole == Completion(Message("assistant", text), "stop", Usage(3, 4))


def test_tool_calls_are_put_together_by_index() -> None:
    deltas = [
        Delta(tool_calls=(ToolCallDelta(0, "call_1", "add", '{"a": 1'), ToolCallDelta(1, "call_2", "now"))),
        Delta(tool_calls=(ToolCallDelta(1, arguments="{}"), ToolCallDelta(0, arguments=', "b": 2}'))),
        Delta(finish_reason="tool_calls"),
    ]
    assert assemble(deltas).message.tool_calls == (CALL, ToolCall("call_2", "now", "{}"))


def test_a_stream_that_was_cut_off_says_so() -> None:
    assert assemble([Delta("half")]).finish_reason == "cancelled"


def test_canonical_json_is_the_same_for_equal_values() -> None:
    assert canonical_json({"b": 1, "a": "ü"}) == canonical_json({"a": "ü", "b": 1}) == '{"a":"ü","b":1}'
