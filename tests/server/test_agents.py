"""Agents under models' names: cited answers, steps while streaming, history, and what an agent does not take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from agents import Agent
from framework.config import Settings
from framework.testing.scripted import ScriptedChat
from indexers.library import Library
from server.config import ServerConfig

REFUNDS = """# Refunds

Refunds are paid within five days of the return. The money goes to the card that was used.

# Shipping

Parcels leave the warehouse every morning at eight.
"""
QUESTION = [{"role": "user", "content": "How long do refunds take?"}]


@pytest.fixture
def docs(library: Library, tmp_path: Path) -> Library:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "refunds.md").write_text(REFUNDS)
    assert library.index([folder], "shop").ok
    return library


@pytest.fixture
def client(serving: Any, docs: Library) -> OpenAI:
    running = serving(chat=ScriptedChat([], name="silent"))
    return OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def test_a_collection_answers_in_the_configured_manner(serving: Any, docs: Library, settings: Settings) -> None:
    settings.values = {**settings.values, "agent": {"quoting": {"threshold": 1.0}}}
    running = serving(chat=ScriptedChat([], name="silent"))
    client = OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(model="collection:shop", messages=QUESTION)
    assert answer.run["stop"] == "declined"  # type: ignore[attr-defined]


def test_a_collection_answers_with_checked_citations(client: OpenAI, docs: Library) -> None:
    answer = client.chat.completions.create(model="collection:shop", messages=QUESTION)
    message = answer.choices[0].message
    assert message.content
    assert "five days" in message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.run["supported"] is True  # type: ignore[attr-defined]
    citation = message.citations[0]  # type: ignore[attr-defined]
    document = docs.corpus.document(docs.tenant, "shop", citation["document_id"], citation["version"])
    assert document.text[citation["start"] : citation["end"]] == citation["quote"]
    assert message.annotations
    marker = message.annotations[0].url_citation
    assert message.content[marker.start_index : marker.end_index] == f"[{citation['number']}]"
    assert marker.url == citation["source"]


def test_a_streamed_answer_has_steps_and_equals_the_whole_one(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="collection:shop", messages=QUESTION)
    chunks = list(client.chat.completions.create(model="collection:shop", messages=QUESTION, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    steps = [chunk.step for chunk in chunks if hasattr(chunk, "step")]
    assert [step["type"] for step in steps] == ["tool_call", "tool_result"]
    assert [step["type"] for step in whole.run["steps"]] == ["tool_call", "tool_result"]  # type: ignore[attr-defined]
    assert steps[1]["hits"] >= 1
    last = chunks[-1]
    assert last.choices[0].finish_reason == "stop"
    assert last.choices[0].delta.citations == whole.choices[0].message.citations  # type: ignore[attr-defined]
    assert last.run["stop"] == "answered"  # type: ignore[attr-defined]


def test_an_answer_without_support_says_so(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="collection:shop", messages=[{"role": "user", "content": "Who composed the opera Fidelio?"}]
    )
    assert answer.run["supported"] is False  # type: ignore[attr-defined]
    assert answer.choices[0].message.citations == []  # type: ignore[attr-defined]


def test_an_answer_can_be_handed_back_as_history(serving: Any, docs: Library, settings: Settings) -> None:
    chat = ScriptedChat(["Good day.", "You said hello."])
    agent = Agent("greeter", model=chat, settings=settings)
    running = serving(chat=ScriptedChat([], name="silent"), agents={"greeter": agent})
    client = OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
    messages: list[Any] = [{"role": "user", "content": "Hello"}]
    first = client.chat.completions.create(model="greeter", messages=messages)
    messages += [first.choices[0].message, {"role": "user", "content": "What did I say?"}]
    second = client.chat.completions.create(model="greeter", messages=messages)
    assert second.choices[0].message.content == "You said hello."
    said = [message.content for message in chat.requests[1].messages if message.role != "system"]
    assert said == ["Hello", "Good day.", "What did I say?"]


def test_what_was_not_applied_is_told(client: OpenAI) -> None:
    messages: Any = [{"role": "system", "content": "Be rude."}, *QUESTION]
    answer = client.chat.completions.create(
        model="collection:shop", messages=messages, temperature=0.7, top_p=0.9, max_tokens=5
    )
    notices = " ".join(answer.run["notices"])  # type: ignore[attr-defined]
    for name in ("system message", "temperature", "top_p", "max_tokens"):
        assert name in notices


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"stop": ["x"]}, "stop"),
        ({"n": 2}, "n"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"extra_body": {"top_k": 5}}, "top_k"),
        ({"extra_body": {"min_p": 0.1}}, "min_p"),
        ({"extra_body": {"repetition_penalty": 1.1}}, "repetition_penalty"),
        ({"extra_body": {"stop_token_ids": [5]}}, "stop_token_ids"),
        ({"extra_body": {"structured_outputs": {"regex": "a+"}}}, "structured_outputs"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": "Yes"}]}, "messages.1"),
        ({"model": "collection:none"}, "model"),
    ],
)
def test_what_an_agent_does_not_take_is_refused(client: OpenAI, given: Any, param: str) -> None:
    for stream in (False, True):
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as refused:
            client.chat.completions.create(
                **{"model": "collection:shop", "messages": QUESTION, "stream": stream, **given}
            )
        assert refused.value.param == param


def test_agents_are_listed_before_models(client: OpenAI, docs: Library) -> None:
    listed = [(model.id, model.kind) for model in client.models.list()]  # type: ignore[attr-defined]
    assert listed[0] == ("collection:shop", "agent")
    assert client.models.retrieve("collection:shop").id == "collection:shop"
    docs.remove_collection("shop")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("collection:shop")


def test_a_section_agent_and_chosen_collections(
    serving: Any, docs: Library, tmp_path: Path, settings: Settings
) -> None:

    settings.values = {**settings.values, "agent": {"name": "helpdesk", "collections": ["shop"]}}
    running = serving(ServerConfig(collections=("other",)), chat=ScriptedChat([], name="silent"))
    names = [model["id"] for model in httpx.get(f"{running.url}/v1/models").json()["data"]]
    assert "helpdesk" in names
    assert "collection:shop" not in names
    body = {"model": "helpdesk", "messages": QUESTION}
    answer = httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=20).json()
    assert "five days" in answer["choices"][0]["message"]["content"]
