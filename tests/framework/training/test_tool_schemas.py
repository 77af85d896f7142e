"""Schemas of tools from data files are judged where they are read, and nothing is fetched for them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from framework.errors import CallerError
from framework.messages import Message, ToolCall, ToolSpec, assistant, user
from framework.models.json_schema import misfit
from framework.training.contrast_calls import wrong_call
from framework.training.datasets import ChatRow, Provenance, read_rows
from framework.training.rewards import call
from framework.training.tool_requests import Call, Request, Tool, Toolbox, calling_rows, read_toolboxes
from framework.training.tool_schemas import schema_fault

OURS = Provenance("us", "MIT")
OUTSIDE = "http://127.0.0.1:9/x"
DRAFT = "http://json-schema.org/draft-{}/schema#"


def holding(schema: Any, **rest: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"place": schema}, **rest}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"$ref": OUTSIDE}, "refers to 'http"),
    ({"$ref": "#"}, "without end"),
    ({"$ref": "#/$defs/none"}, "not in the schema"),
    (holding({"$ref": "#/$defs/none"}), "not in the schema"),
    ({"type": "dict"}, "'dict' is not valid"),
    (holding({"type": "string", "pattern": "("}), r"pattern '\(' can't be read"),
    ({"type": "object", "patternProperties": {"(": {}}}, r"pattern '\(' can't be read"),
    (holding(None), "is not valid JSON schema"),
    (holding({"$schema": DRAFT.format("07")}), "dialect"),
    (holding({}, **{"$schema": DRAFT.format("03")}), "dialect"),
    (holding({}, **{"$schema": ["x"]}), "dialect"),
]
WRONG_IDS = [json.dumps(schema)[:60] for schema, _ in WRONG]


def toolbox(folder: Path, parameters: object, arguments: object = None) -> Path:
    tools = [{"name": "weather", "description": "", "parameters": parameters}]
    requests = [{"q": "Rain in Ghent?", "calls": [{"name": "weather", "arguments": arguments or {"place": "Ghent"}}]}]
    path = folder / "tools.jsonl"
    path.write_text("\n" + json.dumps({"id": "box", "tools": tools, "requests": requests}))
    return path


def called(parameters: dict[str, Any], **arguments: Any) -> ChatRow:
    made = Message("assistant", tool_calls=(ToolCall("c", "weather", json.dumps(arguments)),))
    return ChatRow((user("Rain in Ghent today?"), made), "d", OURS, (ToolSpec("weather", "", parameters),))


@pytest.mark.parametrize(("parameters", "message"), WRONG, ids=WRONG_IDS)
def test_a_wrong_schema_is_named_with_file_and_line(tmp_path: Path, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(CallerError, match=rf"tools\.jsonl:2: weather: .*{message}"):
        read_toolboxes(toolbox(tmp_path, parameters))
    (tmp_path / "rows.jsonl").write_text("\n" + json.dumps(called(parameters, place="Ghent").to_json()))
    with pytest.raises(CallerError, match=rf"rows\.jsonl:2: tools\[0\]\.function\.parameters .*{message}"):
        read_rows(tmp_path / "rows.jsonl", "chat")


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """The address of a server, and what it was asked for."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", paths
        finally:
            server.shutdown()
            thread.join()


def test_no_reference_is_fetched(tmp_path: Path, asked: tuple[str, list[str]]) -> None:
    address, paths = asked
    outside = {"$ref": f"{address}/x"}
    for schema in (outside, holding(outside), {"type": "object", "propertyNames": {"enum": ["place"], **outside}}):
        with pytest.raises(CallerError, match=r"tools\.jsonl:2"):
            read_toolboxes(toolbox(tmp_path, schema))
        row = called(schema, place="Ghent")
        assert call(row, row.messages[-1]) == 0.25
        wrong_call(row.messages, row.tools, random.Random(0))
    assert paths == []


def test_a_schema_that_has_no_end_for_a_value_fits_none() -> None:
    endless = {"anyOf": [{"$ref": "#"}, {"type": "object"}]}
    assert "without end" in misfit({}, endless)
    assert misfit(
        {"place": "x"},
        {"type": "object", "patternProperties": {"(?i)a": {}, "(?i)b": {}}, "additionalProperties": False},
    )


def test_truth_values_and_references_within_are_schemas(tmp_path: Path) -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#/$defs/tree"}, "any": True}}
    schema = holding({"$ref": "#/$defs/tree"}, **{"$defs": {"tree": tree}, "$schema": DRAFT.format("07")})
    schema["properties"] |= {"other": True, "list": {"type": "array", "items": True}}
    schema["required"] = ["other", "list"]
    assert schema_fault(schema) == ""
    arguments = {"list": [1], "other": {"a": 1}, "place": {"next": {"any": "x"}}}
    (row,) = calling_rows(read_toolboxes(toolbox(tmp_path, schema, arguments)))
    assert call(row, row.messages[-1]) == 1
    for seed in range(10):
        assert wrong_call(row.messages, row.tools, random.Random(seed)) is not None
        assert wrong_call((row.messages[-2], assistant("No.")), row.tools, random.Random(seed)) is not None


def test_a_value_that_does_not_fit_is_named_with_its_tool(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match=r"tools\.jsonl:2: .*weather: 'Ghent' is not of type 'integer'"):
        read_toolboxes(toolbox(tmp_path, holding({"type": "integer"})))


def box(id: str, name: str, *requests: str) -> Toolbox:
    return Toolbox(
        id=id,
        tools=(Tool(name=name, description="Does it.", parameters={"type": "object", "properties": {}}),),
        requests=tuple(Request(q=q, calls=(Call(name=name, arguments={}),)) for q in requests),
    )


def test_a_request_that_another_box_might_serve_too_is_not_refused_there() -> None:
    boxes = [box("a", "get_weather", "rain?"), box("b", "weatherNow", "sun?"), box("c", "toll.get", "to Bari?")]
    refused = [
        (row.tools[0].name, row.messages[-2].content)
        for seed in range(10)
        for row in calling_rows(boxes, unrelated=2, seed=seed)
        if not row.messages[-1].tool_calls
    ]
    boxes.append(box("d", "webSearch", "anything?"))
    assert "webSearch" not in {
        row.tools[0].name for row in calling_rows(boxes, unrelated=2) if not row.messages[-1].tool_calls
    }
    assert set(refused) == {
        ("get_weather", "to Bari?"), ("weatherNow", "to Bari?"), ("toll.get", "rain?"), ("toll.get", "sun?")
    }  # fmt: skip


def test_all_requests_of_some_boxes_are_asked_again_among_tools_of_others() -> None:
    boxes = [box(str(n), name, f"{name} 1", f"{name} 2") for n, name in enumerate(("toll", "radio", "bread", "moon"))]
    among = [
        (row.document, row.messages[-1].tool_calls[0].name)
        for seed in range(10)
        for row in calling_rows(boxes, unrelated=0, seed=seed)
        if len(row.tools) == 3
    ]
    assert among
    assert all(boxes[int(document)].tools[0].name == name for document, name in among)
    assert len(among) == 2 * len({(place // 2, document) for place, (document, _) in enumerate(among)})
