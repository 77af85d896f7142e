"""Wrong requests: each gets a 4xx in OpenAI's shape that names the field, and the model is never asked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from framework.config import Settings
from framework.models.base import Embedder
from framework.testing.scripted import ScriptedChat
from server.app import create_app

HELLO = [{"role": "user", "content": "Hello"}]
Post = Callable[..., Any]


@pytest.fixture
def chat() -> ScriptedChat:
    return ScriptedChat(["Yes."] * 3, context_length=50)


@pytest.fixture
async def client(settings: Settings, chat: ScriptedChat, library: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings, chat=chat, library=library)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client


def problem(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error, after a look at its shape."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert answer.headers["x-request-id"]
    return dict(body["error"])


async def ask(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    """Send a request that is right but for what is given; NaN and the like go over the wire as Python writes them."""
    content = json.dumps({"model": "scripted", "messages": HELLO, **body})
    return await client.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", 0),
        ("max_tokens", 10**12),
        ("max_tokens", 1e12),
        ("max_tokens", "5"),
        ("max_tokens", True),
        ("max_completion_tokens", 0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("top_p", 0),
        ("top_p", 2),
        ("top_p", float("nan")),
        ("stop", [""]),
        ("seed", 1.5),
        ("seed", 2**63),
        ("n", -1),
        ("n", 0),
        ("n", 17),
        ("top_k", -1),
        ("top_k", 2.5),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", float("nan")),
        ("frequency_penalty", 2.1),
        ("frequency_penalty", float("nan")),
        ("presence_penalty", -2.1),
        ("repetition_penalty", 0),
        ("repetition_penalty", -1),
        ("repetition_penalty", float("inf")),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"1.0": 1}),
        ("logit_bias", {"\u0661": 1}),
        ("logit_bias", {"9" * 5000: 1}),
        ("logit_bias", {"5": 100.5}),
        ("logit_bias", {str(n): 1 for n in range(1025)}),
        ("logit_bias", [5]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", 7),
        ("stop_token_ids", list(range(1025))),
        ("modalities", ["text", "audio"]),
        ("reasoning_effort", "high"),
        ("top_logprobs", 5),
        ("stream_options", {"include_usage": True}),
        ("tool_choice", "required"),
        ("tool_choice", "sometimes"),
        ("model", None),
        ("model", 7),
    ],
)
async def test_a_value_out_of_range_is_named(
    client: httpx.AsyncClient, chat: ScriptedChat, field: str, value: Any
) -> None:
    error = problem(await ask(client, **{field: value}))
    assert error["param"] == field
    assert field in error["message"]
    assert error["type"] == "invalid_request_error"
    assert chat.requests == []


async def test_top_logprobs_out_of_range_is_named(client: httpx.AsyncClient) -> None:
    error = problem(await ask(client, logprobs=True, top_logprobs=21))
    assert error["param"] == "top_logprobs"
    assert "top_logprobs must be" in error["message"]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "user", "content": ""}], "messages.0.content"),
        ([{"role": "user", "content": "  \n"}], "messages.0.content"),
        ([{"role": "user", "content": []}], "messages.0.content"),
        ([{"role": "robot", "content": "x"}], "messages.0.role"),
        ([{"content": "x"}], "messages.0.role"),
        ([*HELLO, {"role": "user"}], "messages.1.content"),
        ([{"role": "user", "content": None}], "messages.0.content"),
        ([{"role": "user", "content": "x", "mood": "sad"}], "messages.0.mood"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages.0.content.0.type"),
        ([*HELLO, {"role": "tool", "content": "x", "tool_call_id": "c1"}], "messages.1.tool_call_id"),
        ([*HELLO, {"role": "tool", "content": "x"}], "messages.1.tool_call_id"),
        (HELLO * 5000, "messages"),
        ("Hello", "messages"),
        (["Hello"], "messages.0"),
        ([{"role": "user", "content": [7]}], "messages.0.content.0"),
    ],
)
async def test_a_wrong_conversation_is_refused(client: httpx.AsyncClient, messages: Any, param: str) -> None:
    assert problem(await ask(client, messages=messages))["param"] == param


async def test_a_prompt_beyond_the_context_is_refused_with_both_lengths(client: httpx.AsyncClient) -> None:
    for stream in (False, True):
        error = problem(await ask(client, messages=[{"role": "user", "content": "word " * 70}], stream=stream))
        assert "70" in error["message"]
        assert "50" in error["message"]


@pytest.mark.parametrize("key", ["chat_template_kwargs", "chat_template", "foo", "web_search_options", "functions"])
async def test_an_unknown_key_is_named(client: httpx.AsyncClient, chat: ScriptedChat, key: str) -> None:
    error = problem(await ask(client, **{key: {"x": 1}}))
    assert (error["param"], error["code"]) == (key, "unknown_parameter")
    assert chat.requests == []


async def test_what_can_not_alter_the_answer_is_taken(client: httpx.AsyncClient) -> None:
    harmless = {
        "user": "u1",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "n": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "top_k": 0,
        "min_p": 0,
        "repetition_penalty": 1,
        "stop_token_ids": [],
        "modalities": ["text"],
        "response_format": {"type": "text"},
        "stream": False,
        "tools": [],
    }
    answer = await ask(client, **harmless)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "missing"),
        (b"{", "not valid JSON"),
        (b"[" * 10_000 + b"]" * 10_000, "recursion limit"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "recursion limit"),
        (b'{"model": "scripted", "messages": [{"role": "user", "content": "\\ud800"}]}', "not valid JSON"),
        (b'{"model": "scripted", "messages": [{"role": "user", "content": "\xed\xa0\x80"}]}', "not valid JSON"),
        (b'{"model": "scripted", "messages": [{"role": "user", "content": "\xff"}]}', "not valid JSON"),
        (b'{"seed": ' + b"9" * 100_000 + b"}", "out of range"),
        (b"[]", "Invalid body"),
        (b'"x"', "Invalid body"),
        (b"null", "Invalid body"),
    ],
)
async def test_a_body_that_is_no_request_is_refused(client: httpx.AsyncClient, body: bytes, what: str) -> None:
    headers = {"Content-Type": "application/json"}
    assert what in problem(await client.post("/v1/chat/completions", content=body, headers=headers))["message"]


async def test_a_body_of_another_type_is_refused(client: httpx.AsyncClient) -> None:
    body = json.dumps({"model": "scripted", "messages": HELLO})
    answer = await client.post("/v1/chat/completions", content=body, headers={"Content-Type": "text/plain"})
    assert "application/json" in problem(answer)["message"]


async def test_thousands_of_unknown_keys_make_one_small_error(client: httpx.AsyncClient) -> None:
    many = {f"k{n}": 1 for n in range(50_000)}
    for body in (many, {"messages": [many] * 2}, {"tools": [{"type": "function", "function": many}]}):
        answer = await ask(client, **body)
        problem(answer)
        assert len(answer.content) < 1000


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"type": "nonsense"}, "nonsense"),
        ({"$ref": "#"}, ""),
        ({"$ref": "https://example.org/schema.json"}, ""),
        ({"type": "string", "pattern": "(a+"}, ""),
        ({"type": "object", "properties": {"a": {"type": "integer", "minimum": float("nan")}}}, "number"),
    ],
)
async def test_a_schema_that_can_not_be_kept_is_refused(client: httpx.AsyncClient, schema: Any, what: str) -> None:
    function = {"name": "f", "parameters": schema}
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    error = problem(await ask(client, tools=[{"type": "function", "function": function}]))
    assert error["param"] == "tools.0.function.parameters"
    assert what in error["message"]
    error = problem(await ask(client, response_format=wanted))
    assert error["param"] == "response_format.json_schema.schema"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "bad name"}}]}, "tools.0.function.name"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [TOOL], "response_format": SCHEMA}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"logit_bias": {"5": "x"}}, "logit_bias.5"),
        ({"logit_bias": {"5": float("nan")}}, "logit_bias.5"),
        ({"stop_token_ids": ["x"]}, "stop_token_ids.0"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "start: a"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"regex": "a"}, "response_format": SCHEMA}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "tools": [TOOL]}, "structured_outputs"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "(a{1000}){1000}"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a"] * 1025}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json": {"type": "nonsense"}}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": {"$ref": "#"}}}, "structured_outputs.json"),
    ],
)
async def test_parts_that_do_not_fit_together_are_refused(client: httpx.AsyncClient, body: Any, param: str) -> None:
    assert problem(await ask(client, **body))["param"] == param


async def test_unknown_paths_and_methods_have_the_shape_too(client: httpx.AsyncClient) -> None:
    assert "GET /v1/chat" in problem(await client.get("/v1/chat"), 404)["message"]
    refused = await client.get("/v1/chat/completions")
    problem(refused, 405)
    assert refused.headers["allow"] == "POST"
    problem(await client.get("/docs"), 404)
    problem(await client.put("/v1/models"), 405)


async def test_an_unexpected_failure_tells_nothing_of_its_inside(
    settings: Settings, library: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> str:
        raise ZeroDivisionError("secret inside")

    app = create_app(settings, chat=ScriptedChat([fail]), library=library)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client,
    ):
        answer = await ask(client)
    error = problem(answer, 500)
    assert error["type"] == "server_error"
    assert "secret" not in answer.text
    assert "secret inside" in caplog.text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["x", " "]}, "input.1"),
        ({"input": [1, 2]}, "input"),
        ({"input": [[1, 2]]}, "input"),
        ({"input": ["x"] * 3000}, "input"),
        ({"input": ["x", "word " * 400]}, "input.1"),
        ({"input": "x", "dimensions": 64}, "dimensions"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "x", "model": "other"}, "model"),
        ({"input": "x", "truncate": True}, "truncate"),
    ],
)
async def test_wrong_embedding_requests_are_named(
    client: httpx.AsyncClient, embedder: Embedder, body: Any, param: str
) -> None:
    answer = await client.post("/v1/embeddings", json={"model": "all-minilm-l6-v2", **body})
    assert problem(answer, 404 if param == "model" else 400)["param"] == param


async def test_the_access_log_holds_no_contents(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    await ask(client, messages=[{"role": "user", "content": "my-secret-words"}])
    await client.get("/v1/models?key=my-secret-words")
    lines = [record for record in caplog.records if record.name == "lectern.access"]
    assert len(lines) == 2
    assert lines[0].fields["status"] == 200  # type: ignore[attr-defined]
    assert not any("my-secret-words" in str(vars(record)) for record in caplog.records if record.name != "httpx")


async def test_a_request_id_is_kept_where_it_is_plain(client: httpx.AsyncClient) -> None:
    kept = await client.get("/health", headers={"X-Request-ID": "abc-1.2_3"})
    made = await client.get("/health", headers={"X-Request-ID": "a b\tc"})
    assert kept.headers["x-request-id"] == "abc-1.2_3"
    assert made.headers["x-request-id"].startswith("req_")


async def test_another_host_name_is_refused(client: httpx.AsyncClient) -> None:
    problem(await client.get("/v1/models", headers={"Host": "evil.example:8000"}), 421)
    problem(await client.get("/v1/models", headers={"Host": ""}), 421)
    for name in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        assert (await client.get("/health", headers={"Host": name})).status_code == 200


async def test_every_route_is_described(client: httpx.AsyncClient) -> None:
    described = (await client.get("/openapi.json")).json()
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            assert route["summary"], (path, method)
            assert "4XX" in route["responses"]
    names = described["components"]["schemas"]
    assert {"ChatRequest", "ChatCompletion", "ChatChunk", "EmbeddingList", "ErrorBody"} <= set(names)
    referred = set(json.dumps(described).split('"#/components/schemas/')[1:])
    assert {name.partition('"')[0] for name in referred} <= set(names)
