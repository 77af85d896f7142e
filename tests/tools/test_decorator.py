from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from framework.errors import CallerError, ModelFault
from tools import Tool, ToolContext, ToolResult, tool
from tools.rendering import NOTHING, render


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: int
    title: str = "origin"


class Pair(TypedDict):
    left: int
    right: int


class Order(BaseModel):
    title: str = Field(description="What is ordered.")
    tags: list[str] = []


class Opaque:
    pass


@tool
def everything(
    query: str,
    _count: int,
    copy: Literal["a", "b"],
    colour: Colour,
    point: Point,
    pair: Pair,
    order: Order,
    maybe: int | None = None,
    ratio: Annotated[float, Field(gt=0, description="From Field.")] = 1.0,
    note: Annotated[str, "From Annotated."] = "none",
    *,
    context: ToolContext,
) -> dict[str, Any]:
    """Take one of each.

    A second paragraph.

    Args:
        query: what to look for,
            over two lines.
        _count (int): how many: a number.
        note: hidden by the annotation.

    Returns:
        all of it.
    """
    return {**locals(), "context": context.run_id}


VALID = {
    "query": "q",
    "_count": 3,
    "copy": "a",
    "colour": "red",
    "point": {"x": 1},
    "pair": {"left": 1, "right": 2},
    "order": {"title": "tea"},
}


def refused(function: Any) -> str:
    with pytest.raises(CallerError) as caught:
        tool(function)
    return str(caught.value)


def test_a_function_becomes_a_tool_and_stays_callable() -> None:
    @tool
    def double(number: int) -> int:
        """Double it."""
        return 2 * number

    assert isinstance(double, Tool)
    assert double(4) == 8
    assert double.spec.name == "double"
    assert double.spec.description == "Double it."
    assert double.timeout == 30.0
    assert double.__name__ == "double"


async def test_an_async_function_stays_awaitable() -> None:
    @tool(name="triple-it", description="Other words.", timeout=2.5)
    async def triple(number: int) -> int:
        """Triple it."""
        return 3 * number

    assert await triple(4) == 12
    assert (triple.spec.name, triple.spec.description, triple.timeout) == ("triple-it", "Other words.", 2.5)
    assert (await triple.call({"number": 5}, ToolContext())).content == "15"


def test_the_schema_is_closed_at_every_level_and_free_of_titles() -> None:
    schema = everything.spec.parameters
    Draft202012Validator.check_schema(dict(schema))
    assert schema["additionalProperties"] is False
    assert schema["required"] == list(VALID)
    for part in schema["$defs"].values():
        assert part.get("additionalProperties", False) is False
        assert "title" not in part
    assert schema["$defs"]["Point"]["properties"]["title"] == {"default": "origin", "type": "string"}
    assert "argument" not in json.dumps(schema)
    assert "context" not in schema["properties"]


def test_descriptions_come_from_field_then_annotation_then_docstring() -> None:
    described = {name: part.get("description") for name, part in everything.spec.parameters["properties"].items()}
    assert everything.spec.description == "Take one of each.\n\nA second paragraph."
    assert described["query"] == "what to look for, over two lines."
    assert described["_count"] == "how many: a number."
    assert described["ratio"] == "From Field."
    assert described["note"] == "From Annotated."
    assert described["copy"] is None


async def test_arguments_arrive_as_the_annotated_types_and_defaults_hold() -> None:
    seen: dict[str, Any] = {}

    @tool
    def look(colour: Colour, point: Point, order: Order, maybe: int | None = 7) -> None:
        """Look."""
        seen.update(locals())

    result = await look.call({"colour": "blue", "point": {"x": 2}, "order": {"title": "tea"}}, ToolContext())
    assert result.content == NOTHING
    assert seen["colour"] is Colour.BLUE
    assert seen["point"] == Point(2)
    assert seen["order"] == Order(title="tea")
    assert seen["maybe"] == 7


async def test_the_context_is_filled_in() -> None:
    result = await everything.call(VALID, ToolContext(run_id="run-1"))
    shown = json.loads(result.content)
    assert shown["context"] == "run-1"
    assert shown["point"] == {"x": 1, "title": "origin"}


async def test_what_only_the_annotation_forbids_is_the_models_fault() -> None:
    with pytest.raises(ModelFault, match=r"ratio: .*greater than 0") as caught:
        await everything.call({**VALID, "ratio": -1}, ToolContext())
    assert caught.value.field == "ratio"


async def test_a_bound_method_is_a_tool() -> None:
    class Shop:
        def stock(self, item: str) -> str:
            """Count."""
            return f"3 of {item}"

    assert (await tool(Shop().stock).call({"item": "tea"}, ToolContext())).content == "3 of tea"


def test_a_parameter_without_annotation_is_refused_by_name() -> None:
    def untyped(city) -> str:  # type: ignore[no-untyped-def]  # the fault under test
        return str(city)

    message = refused(untyped)
    assert "untyped" in message
    assert "'city' has no annotation" in message


def test_an_unbound_method_says_how_to_pass_it() -> None:
    class Shop:
        def stock(self, item: str) -> str:
            return item

    assert "tool(thing.method)" in refused(Shop.stock)


def test_any_number_of_arguments_is_refused() -> None:
    def many(*words: str) -> str:
        return " ".join(words)

    def keyed(**words: str) -> str:
        return " ".join(words)

    def first(word: str, /) -> str:
        return word

    assert "'words' takes any number of values" in refused(many)
    assert "'words' takes any keyword" in refused(keyed)
    assert "'word' is positional-only" in refused(first)


def test_a_type_that_json_cannot_carry_is_refused() -> None:
    def odd(thing: Opaque) -> str:
        return str(thing)

    assert "'thing' has the type" in refused(odd)
    assert "Opaque" in refused(odd)


def test_an_annotation_that_cannot_be_resolved_is_refused() -> None:
    class Local:
        pass

    def odd(thing: Local) -> str:
        return str(thing)

    assert "'Local', which can't be resolved" in refused(odd)


def test_generators_lambdas_and_classes_are_refused() -> None:
    def several(n: int) -> Any:
        yield n

    assert "Return a list" in refused(several)
    assert "'<lambda>' is no name" in refused(lambda: "x")
    assert "not a Python function" in refused(Opaque)


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_that_can_never_be_kept_is_refused(timeout: float) -> None:
    with pytest.raises(CallerError, match="timeout must be above 0"):
        tool(timeout=timeout)(lambda: "x")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        (None, NOTHING),
        (True, "true"),
        (1.5, "1.5"),
        (float("nan"), '"NaN"'),
        ([1, "zwei", None], '[1,"zwei",null]'),
        (Point(1), '{"x":1,"title":"origin"}'),
        (Order(title="Tee"), '{"title":"Tee","tags":[]}'),
        ({"path": Path("/a"), "odd": {1}}, '{"path":"/a","odd":[1]}'),
        (b"text \xc3\xa9", "text é"),
        (b"\xff\xfe\x00", "The tool returned 3 bytes that are not text."),
        ({"raw": b"\xff"}, '{"raw":"_w=="}'),
        (ToolResult("kept", error=True), "kept"),
    ],
)
def test_whatever_is_returned_becomes_text(value: object, text: str) -> None:
    assert render(value).content == text


def test_a_circular_value_and_a_foreign_object_are_shown_somehow() -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert render(circle).content == "[[...]]"
    assert "Opaque object" in render(Opaque()).content
    assert render({"x": "\ud800"}).content
