"""The official client, unmodified, against a real server."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from framework.messages import Completion, Message, TokenLogprob, Usage
from framework.models.base import NONE, Choice, Embedder, GenerationParams, JsonSchema, Regex, ToolChoice
from framework.testing.scripted import ScriptedChat, tool_call

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def client_of(running: Any) -> OpenAI:
    return OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def hello(text: str = "Hello") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_an_answer_comes_whole(serving: Any) -> None:
    chat = ScriptedChat(["Good morning to you."])
    client = client_of(serving(chat=chat))
    answer = client.chat.completions.create(model="scripted", messages=hello(), temperature=0.5, seed=7, max_tokens=9)
    assert answer.choices[0].message.content == "Good morning to you."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5
    assert answer._request_id
    asked = chat.requests[0]
    assert asked.messages == (Message("user", "Hello"),)
    assert (asked.params.temperature, asked.params.seed, asked.params.max_tokens) == (0.5, 7, 9)


def test_a_streamed_answer_equals_the_whole_one(serving: Any) -> None:
    text = "Ein Satz,  mit zwei Leerzeichen\nund 漢字 🎉."
    client = client_of(serving(chat=ScriptedChat([text, text])))
    whole = client.chat.completions.create(model="scripted", messages=hello())
    stream = client.chat.completions.create(
        model="scripted", messages=hello(), stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert len(chunks) > 3
    assert last.choices == []
    assert last.usage == whole.usage


def test_without_include_usage_no_chunk_lacks_choices(serving: Any) -> None:
    client = client_of(serving(chat=ScriptedChat(["Yes."])))
    chunks = list(client.chat.completions.create(model="scripted", messages=hello(), stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_tools_go_to_the_model_and_calls_come_back(serving: Any) -> None:
    chat = ScriptedChat([tool_call("weather", city="Ulm"), "Sunny in Ulm."])
    client = client_of(serving(chat=chat))
    first = client.chat.completions.create(
        model="scripted", messages=hello("Weather in Ulm?"), tools=[WEATHER], tool_choice="required"
    )
    choice = first.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls
    call = choice.message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Ulm"}')

    reply = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    messages = [*hello("Weather in Ulm?"), choice.message, reply]
    second = client.chat.completions.create(model="scripted", messages=messages, tools=[WEATHER])
    assert second.choices[0].message.content == "Sunny in Ulm."
    _, turn, result = chat.requests[1].messages
    assert turn.tool_calls[0].id == result.tool_call_id == call.id
    assert result.content == "sunny"
    assert chat.requests[0].tool_choice == ToolChoice("required")


def test_tool_calls_stream_in_pieces(serving: Any) -> None:
    client = client_of(serving(chat=ScriptedChat([tool_call("weather", city="Ludwigshafen am Rhein")])))
    with client.chat.completions.stream(model="scripted", messages=hello(), tools=[WEATHER]) as stream:
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls
    assert calls[0].function.arguments == '{"city": "Ludwigshafen am Rhein"}'
    assert final.choices[0].finish_reason == "tool_calls"


def test_streamed_pieces_of_calls_are_the_calls_that_come_whole(serving: Any) -> None:
    """Also where two calls' texts come in small pieces, quotes and braces inside them."""
    calls = [tool_call("weather", city='Bad "Aibling" {\\ 漢字'), tool_call("weather", city="Ulm")]
    ids = [replace(call, id=f"call_{place}") for place, call in enumerate(calls)]
    client = client_of(serving(chat=ScriptedChat([ids, ids])))
    whole = client.chat.completions.create(model="scripted", messages=hello(), tools=[WEATHER])
    pieces: dict[int, dict[str, str]] = {}
    for chunk in client.chat.completions.create(model="scripted", messages=hello(), tools=[WEATHER], stream=True):
        for piece in chunk.choices[0].delta.tool_calls or ():
            call = pieces.setdefault(piece.index, {"id": piece.id, "name": piece.function.name, "arguments": ""})
            call["arguments"] += piece.function.arguments
    assert [
        {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
        for call in whole.choices[0].message.tool_calls
    ] == [pieces[index] for index in sorted(pieces)]
    assert json.loads(pieces[0]["arguments"]) == {"city": 'Bad "Aibling" {\\ 漢字'}


def test_how_to_sample_reaches_the_model(serving: Any) -> None:
    chat = ScriptedChat(["Yes."])
    client_of(serving(chat=chat)).chat.completions.create(
        model="scripted",
        messages=hello(),
        top_p=0.9,
        presence_penalty=0.5,
        frequency_penalty=-1,
        logit_bias={"42": -100, "7": 1},
        extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "stop_token_ids": [3, 4]},
    )
    assert chat.requests[0].params == GenerationParams(
        top_p=0.9,
        presence_penalty=0.5,
        frequency_penalty=-1.0,
        logit_bias={42: -100.0, 7: 1.0},
        top_k=5,
        min_p=0.1,
        repetition_penalty=1.2,
        stop_ids=frozenset({3, 4}),
    )


@pytest.mark.parametrize(
    ("wanted", "constraint"),
    [
        ({"regex": "[ab]+"}, Regex("[ab]+")),
        ({"choice": ["yes", "no"]}, Choice(("yes", "no"))),
        ({"json": {"type": "object"}}, JsonSchema({"type": "object"})),
    ],
)
def test_structured_outputs_constrain_the_answer(serving: Any, wanted: Any, constraint: Any) -> None:
    chat = ScriptedChat(["yes"])
    client = client_of(serving(chat=chat))
    client.chat.completions.create(model="scripted", messages=hello(), extra_body={"structured_outputs": wanted})
    assert chat.requests[0].constraint == constraint


def test_at_most_one_call_where_parallel_ones_are_not_wanted(serving: Any) -> None:
    calls = [tool_call("weather", city="Ulm"), tool_call("weather", city="Bonn")]
    client = client_of(serving(chat=ScriptedChat([calls, calls])))
    ask = lambda **given: client.chat.completions.create(  # noqa: E731
        model="scripted", messages=hello(), tools=[WEATHER], **given
    )
    assert len(ask().choices[0].message.tool_calls) == 2
    assert len(ask(parallel_tool_calls=False).choices[0].message.tool_calls) == 1


def test_a_tool_choice_of_none_or_by_name_reaches_the_model(serving: Any) -> None:
    chat = ScriptedChat(["No.", tool_call("weather", city="Ulm")])
    client = client_of(serving(chat=chat))
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("none", named):
        client.chat.completions.create(model="scripted", messages=hello(), tools=[WEATHER], tool_choice=choice)
    assert [request.tool_choice for request in chat.requests] == [NONE, ToolChoice.named("weather")]


class Point(BaseModel):
    x: int
    y: int


def test_a_response_format_constrains_and_parses(serving: Any) -> None:
    chat = ScriptedChat(['{"x": 1, "y": 2}', '{"a": 1}'])
    client = client_of(serving(chat=chat))
    answer = client.chat.completions.parse(model="scripted", messages=hello(), response_format=Point)
    assert answer.choices[0].message.parsed == Point(x=1, y=2)
    client.chat.completions.create(model="scripted", messages=hello(), response_format={"type": "json_object"})
    first, second = (request.constraint for request in chat.requests)
    assert isinstance(first, JsonSchema)
    assert set(first.schema["properties"]) == {"x", "y"}
    assert second == JsonSchema({"type": "object"})


def test_logprobs_come_with_alternatives(serving: Any) -> None:
    token = TokenLogprob("Ja", math.log(0.5), (("Ja", math.log(0.5)), ("Né", -math.inf)))
    turn = Completion(Message("assistant", "Ja"), "stop", Usage(1, 1), (token,))
    client = client_of(serving(chat=ScriptedChat([turn])))
    answer = client.chat.completions.create(model="scripted", messages=hello(), logprobs=True, top_logprobs=2)
    assert answer.choices[0].logprobs
    assert answer.choices[0].logprobs.content
    first = answer.choices[0].logprobs.content[0]
    assert (first.token, first.logprob) == ("Ja", math.log(0.5))
    assert first.top_logprobs[1].bytes == list("Né".encode())


def test_a_cut_answer_says_so(serving: Any) -> None:
    turn = Completion(Message("assistant", "One two"), "length", Usage(1, 2))
    client = client_of(serving(chat=ScriptedChat([turn])))
    answer = client.chat.completions.create(model="scripted", messages=hello(), max_completion_tokens=2)
    assert answer.choices[0].finish_reason == "length"


def test_content_parts_and_developer_messages_are_read(serving: Any) -> None:
    chat = ScriptedChat(["Yes."])
    client = client_of(serving(chat=chat))
    parts = [{"type": "text", "text": "A"}, {"type": "text", "text": "B\x00"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    client.chat.completions.create(model="scripted", messages=messages)
    assert chat.requests[0].messages == (Message("system", "Be brief."), Message("user", "A\nB\x00"))


def test_embeddings_are_those_of_the_embedder_in_both_encodings(serving: Any, embedder: Embedder) -> None:
    client = client_of(serving(chat=ScriptedChat([])))
    texts = ["A cat sat.", "Der Hund schläft."]
    packed = client.embeddings.create(model="all-minilm-l6-v2", input=texts)
    plain = client.embeddings.create(model="all-minilm-l6-v2", input=texts, encoding_format="float", dimensions=384)
    expected = embedder.embed_documents(texts)
    for answer in (packed, plain):
        np.testing.assert_allclose([row.embedding for row in answer.data], expected, atol=1e-6)
    assert [row.index for row in packed.data] == [0, 1]
    assert packed.usage.prompt_tokens == sum(embedder.count_tokens(texts))


def test_models_are_listed_and_looked_up(serving: Any) -> None:
    client = client_of(serving(chat=ScriptedChat([])))
    kinds = {model.id: model.kind for model in client.models.list()}  # type: ignore[attr-defined]
    assert kinds["scripted"] == "chat"
    assert kinds["all-minilm-l6-v2"] == "embedding"
    assert client.models.retrieve("scripted").id == "scripted"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


def test_errors_are_typed(serving: Any) -> None:
    client = client_of(serving(chat=ScriptedChat([])))
    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt-5'") as missing:
        client.chat.completions.create(model="gpt-5", messages=hello())
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="scripted", messages=hello(), temperature=3)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="no embedding model"):
        client.embeddings.create(model="scripted", input="x")
    with pytest.raises(openai.BadRequestError, match="is an embedding model"):
        client.chat.completions.create(model="all-minilm-l6-v2", messages=hello())


def test_a_stream_that_fails_midway_raises_in_the_client(serving: Any) -> None:
    class Breaks(ScriptedChat):
        async def stream(self, *args, **kwargs):  # type: ignore[no-untyped-def, override]
            async for delta in super().stream(*args, **kwargs):
                yield delta
                raise ZeroDivisionError("secret inside")

    running = serving(chat=Breaks(["One two."], name="breaks"))
    stream = client_of(running).chat.completions.create(model="breaks", messages=hello(), stream=True)
    assert next(stream).choices[0].delta.content
    with pytest.raises(openai.APIError, match="failed to answer") as failed:
        list(stream)
    assert "secret" not in str(failed.value)
