"""The model that ships, through the official client: what the scripted one can't prove."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai import OpenAI

from framework.messages import user
from framework.models.base import ChatModel, GenerationParams, complete

MODEL = "smollm2-135m-instruct"
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def client(serving: Any, chat_model: ChatModel) -> OpenAI:
    running = serving(chat=chat_model)
    return OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.mark.slow
async def test_served_answers_are_the_models_own(client: OpenAI, chat_model: ChatModel) -> None:
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    direct = await complete(
        chat_model, [user("What is the capital of France?")], params=GenerationParams(max_tokens=12)
    )
    whole = client.chat.completions.create(model=MODEL, messages=question, max_tokens=12, logprobs=True)
    assert whole.choices[0].message.content == direct.message.content
    assert whole.usage
    assert whole.usage.completion_tokens == direct.usage.completion_tokens
    stream = client.chat.completions.create(model=MODEL, messages=question, max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == direct.message.content


@pytest.mark.slow
def test_calls_and_formats_are_always_valid(client: OpenAI) -> None:
    asked: Any = [{"role": "user", "content": "Weather in Paris for the next 3 days?"}]
    answer = client.chat.completions.create(
        model=MODEL, messages=asked, tools=[WEATHER], tool_choice="required", max_tokens=80
    )
    assert answer.choices[0].message.tool_calls
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "weather"
    arguments = json.loads(call.function.arguments)
    assert isinstance(arguments["city"], str)
    assert isinstance(arguments["days"], int)
    schema = WEATHER["function"]["parameters"]
    formatted: Any = {"type": "json_schema", "json_schema": {"name": "w", "schema": schema}}
    parsed = client.chat.completions.create(model=MODEL, messages=asked, response_format=formatted, max_tokens=80)
    assert set(json.loads(parsed.choices[0].message.content or "")) == {"city", "days"}


@pytest.mark.slow
def test_a_prompt_beyond_the_context_gives_both_lengths(client: OpenAI) -> None:
    long: Any = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(openai.BadRequestError, match=r"9\d\d\d.*8192"):
        client.chat.completions.create(model=MODEL, messages=long, stream=True)
