"""n answers to one request: each a choice of its own, streamed side by side, counted once, ended together."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from framework.errors import CallerError
from framework.messages import Completion, Delta, Message, TokenLogprob, Usage
from framework.models.base import GenerationParams
from framework.testing.scripted import ScriptedChat, tool_call
from server.side_by_side import side_by_side

HELLO: Any = [{"role": "user", "content": "Hello there"}]
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def client_of(running: Any) -> OpenAI:
    return OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def test_each_answer_is_a_choice_and_the_prompt_counts_once(serving: Any) -> None:
    chat = ScriptedChat(["One.", "Two words.", tool_call("weather", city="Ulm")])
    answer = client_of(serving(chat=chat)).chat.completions.create(
        model="scripted", messages=HELLO, n=3, tools=[TOOL], seed=5, temperature=1.0
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == ["One.", "Two words.", None]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop", "tool_calls"]
    called = answer.choices[2].message.tool_calls
    assert called
    written = chat.count_tokens(called[0].function.name + called[0].function.arguments)  # type: ignore[union-attr]
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 2 + 3 + written)


def test_streamed_answers_are_the_whole_ones_with_their_index_in_each_chunk(serving: Any) -> None:
    def scripted(text: str) -> Completion:
        return Completion(Message("assistant", text), "stop", Usage(2, 3), (TokenLogprob(text[:3], -0.5),))

    turns = [scripted("One two three."), scripted("Eins zwei."), scripted("Un deux trois quatre.")] * 2
    client = client_of(serving(chat=ScriptedChat(turns)))
    whole = client.chat.completions.create(model="scripted", messages=HELLO, n=3, logprobs=True)
    *chunks, last = client.chat.completions.create(
        model="scripted", messages=HELLO, n=3, logprobs=True, stream=True, stream_options={"include_usage": True}
    )
    assert last.choices == []
    assert last.usage == whole.usage
    assert last.usage
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (2, 9)
    places = [chunk.choices[0].index for chunk in chunks]
    assert places != sorted(places), "side by side, not one after another"
    for choice in whole.choices:
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == choice.index]
        assert "".join(part.delta.content or "" for part in own) == choice.message.content
        assert [part.delta.role for part in own] == ["assistant"] + [None] * (len(own) - 1)
        assert [part.finish_reason for part in own] == [None] * (len(own) - 1) + ["stop"]
        told = [part.logprobs.content for part in own if part.logprobs]
        assert choice.logprobs
        assert told == [choice.logprobs.content]


def test_each_answer_has_a_seed_of_its_own_that_the_requests_gives(serving: Any) -> None:
    chat = ScriptedChat(["Yes."] * 12)
    client = client_of(serving(chat=chat))
    for seed in (7, 7, 8):
        client.chat.completions.create(model="scripted", messages=HELLO, n=3, seed=seed, temperature=1.0)
    client.chat.completions.create(model="scripted", messages=HELLO, n=3, temperature=1.0)
    seeds: list[int | None] = [request.params.seed for request in chat.requests]
    assert seeds[0] == 7
    assert seeds[:3] == seeds[3:6]
    assert len(set(seeds[:9])) == 6
    assert seeds[9:] == [None] * 3
    for seed in seeds:
        GenerationParams(seed=seed)


def test_one_answer_that_fails_fails_all(serving: Any) -> None:
    chat = ScriptedChat(["Yes.", CallerError("This one is wrong.", field="messages"), "No."])
    running = serving(chat=chat)
    with pytest.raises(openai.BadRequestError, match="This one is wrong"):
        client_of(running).chat.completions.create(model="scripted", messages=HELLO, n=3)


class Waiting(ScriptedChat):
    """Says one word, then waits for ever; counts what is asked and what is closed."""

    def __init__(self) -> None:
        super().__init__([], name="waiting")
        self.closed = threading.Semaphore(0)

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Delta]:
        try:
            yield Delta("One")
            await asyncio.Event().wait()
        finally:
            self.closed.release()


@pytest.mark.parametrize("taken", [1, 3])
def test_a_client_that_leaves_ends_all_answers(serving: Any, taken: int) -> None:
    model = Waiting()
    body = {"model": "waiting", "messages": HELLO, "n": 4, "stream": True}
    with httpx.stream("POST", f"{serving(chat=model).url}/v1/chat/completions", json=body, timeout=20) as answer:
        lines = (line for line in answer.iter_lines() if line)
        for _ in range(taken):
            assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["delta"]["content"] == "One"
    for _ in range(4):
        assert model.closed.acquire(timeout=20), "the client left and an answer went on"


async def numbers(count: int, closed: list[int], place: int, fails: bool = False) -> AsyncGenerator[int]:
    try:
        for number in range(count):
            yield number
            await asyncio.sleep(0)
        if fails:
            raise KeyError(place)
    finally:
        closed.append(place)


def streams(closed: list[int], counts: Sequence[int], failing: int | None = None) -> list[AsyncGenerator[int]]:
    return [numbers(count, closed, place, place == failing) for place, count in enumerate(counts)]


async def test_side_by_side_gives_everything_in_each_streams_order() -> None:
    closed: list[int] = []
    seen = [item async for item in side_by_side(streams(closed, [3, 0, 5]))]
    assert [number for place, number in seen if place == 0] == [0, 1, 2]
    assert [number for place, number in seen if place == 2] == [0, 1, 2, 3, 4]
    assert len(seen) == 8
    assert sorted(closed) == [0, 1, 2]


async def test_side_by_side_closes_all_streams_when_it_is_closed_or_one_fails() -> None:
    before = asyncio.all_tasks()
    for failing in (None, 1):
        closed: list[int] = []
        together = side_by_side(streams(closed, [1000, 1, 1000], failing))
        if failing is None:
            async with aclosing(together):
                await anext(together)
        else:
            with pytest.raises(KeyError):
                assert len([item async for item in together]) < 2000
        assert sorted(closed) == [0, 1, 2]
        assert asyncio.all_tasks() == before


async def test_side_by_side_is_not_ahead_of_its_reader() -> None:
    taken = 0

    async def endless() -> AsyncGenerator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    async with aclosing(side_by_side([endless(), endless()])) as together:
        await anext(together)
        for _ in range(100):
            await asyncio.sleep(0)
        assert taken <= 4
