"""What the tool adapter learns can be said when it is served: a free choice allows every trained token."""

from __future__ import annotations

import pytest

from framework.messages import Message, ToolCall, ToolSpec, assistant, user
from framework.models.base import AUTO, ChatModel
from framework.models.constraints import tool_grammar
from framework.models.local_chat import LocalChat
from framework.prompts.tool_formats import NO_TOOL
from framework.training.rendering import Renderer

CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}
TOOLS = (ToolSpec("get_weather", "The weather.", CITY), ToolSpec("stop", "Stop.", {"type": "object", "properties": {}}))


def calling(*calls: tuple[str, str]) -> Message:
    made = tuple(ToolCall(f"call_{n}", name, arguments) for n, (name, arguments) in enumerate(calls))
    return Message("assistant", "", tool_calls=made)


ANSWERS = [
    assistant(NO_TOOL),
    assistant("It is 3 < 4, and <tool is no call."),
    calling(("get_weather", '{"city": "São Paulo \\"Centro\\"", "days": -12}')),
    calling(("stop", "{}")),
    calling(("get_weather", '{"city": "Oslo"}'), ("get_weather", '{"city": "東京"}')),
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_every_trained_token_is_allowed_and_none_other_is_forced(chat_model: ChatModel, answer: Message) -> None:
    assert isinstance(chat_model, LocalChat)
    text = chat_model._text
    ids = Renderer(text).answer(answer, TOOLS)
    assert text.prompt([user("?")], TOOLS)
    grammar = tool_grammar(TOOLS, AUTO, max(1, len(answer.tool_calls)))
    assert grammar is not None
    matcher = text.vocabulary.matcher(grammar)
    for place, token in enumerate(ids[:-1]):
        forced = matcher.forced()
        assert tuple(forced) == tuple(ids[place : place + len(forced)])
        assert matcher.allowed()[token], text.vocabulary.token_bytes(token)
        matcher.consume(token)
    assert matcher.finished or matcher.allowed()[ids[-1]]
