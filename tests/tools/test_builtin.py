from __future__ import annotations

import math
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.documents import Chunk, Hit
from framework.errors import CallerError, ModelFault
from tools import Tool, ToolContext, load_tools
from tools.builtin.calculator import calculator
from tools.builtin.clock import current_time
from tools.builtin.retrieve import RetrieveTool


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 2 * 3", "8"),
        ("2 * 3^2", "18"),
        ("-2^2", "-4"),
        ("0.1 + 0.2", "0.3"),
        ("15% of 80", "12"),
        ("50%", "0.5"),
        ("7 % 3", "1"),
        ("7%3", "1"),
        ("(10 - 4)%", "0.06"),
        ("10 / 4", "2.5"),
        ("10 // 4", "2"),
        ("3 × 4 − 2 ÷ 1", "10"),
        ("sqrt(16) + max(1, 2)", "6"),
        ("round(3.14159, 2)", "3.14"),
        ("2**200", str(2**200)),
        ("factorial(30)", str(math.factorial(30))),
        ("(-8)^3", "-512"),
        ("sin(pi/2)", "1"),
        ("(" * 200 + "1" + ")" * 200, "1"),
    ],
)
def test_the_calculator_computes(expression: str, value: str) -> None:
    assert calculator(expression) == value


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("9**9**9**9", "too large"),
        ("2 ** -99999999", "too large"),
        ("10.0 ** 400", "too large"),
        ("1e308 * 10", "too large"),
        ("factorial(100000)", "factorial must be a whole number from 0 to 1000"),
        ("round(10**2000, -10**9)", "digits must be"),
        ("(-1) ** 0.5", "not real"),
        ("1 / 0", "divides by zero"),
        ("1,234 + 5", "thousands separators"),
        ("x + 1", "'x' is unknown"),
        ("__import__('os').system('id')", "only arithmetic"),
        ("().__class__", "only arithmetic"),
        ("'a' * 9", "only arithmetic"),
        ("[1 for _ in range(9)]", "only arithmetic"),
        ("True + 1", "not numbers"),
        ("1j", "only arithmetic"),
        ("max(key=1)", "'max' is unknown"),
        ("sqrt(-1)", "math domain error"),
        ("min()", "can't be computed"),
        ("(1", "not a complete"),
        ("", "not a complete"),
        ("1\x00", "can't be computed"),
        ("1+" * 300 + "1", "601 characters"),
        ("-" * 499 + "1", None),
    ],
)
def test_what_the_calculator_refuses_is_said_clearly(expression: str, told: str | None) -> None:
    if told is None:
        assert calculator(expression) == "-1"
        return
    with pytest.raises(ModelFault, match=told):
        calculator(expression)


@given(st.text(alphabet="0123456789.+-*/%^() ,epi", max_size=40))
def test_no_expression_hangs_or_fails_otherwise(expression: str) -> None:
    with suppress(ModelFault, OverflowError):  # a whole number can be beyond a float's reach
        assert math.isfinite(float(calculator(expression)))


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_whole_numbers_are_exact(a: int, b: int) -> None:
    assert calculator(f"({a}) * ({b}) + {abs(a)}") == str(a * b + abs(a))


def test_the_clock_tells_the_zones_own_time() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    weekday, moment, zone = current_time("Asia/Tokyo").replace(", ", " ").split(" ")
    told = datetime.fromisoformat(moment)
    assert before <= told <= datetime.now(UTC)
    assert told.utcoffset() == timedelta(hours=9)
    assert (weekday, zone) == (f"{told:%A}", "(Asia/Tokyo)")
    assert current_time().endswith("(UTC)")


@pytest.mark.parametrize(
    ("zone", "told"),
    [("Berlin", "Europe/Berlin"), ("../../etc/passwd", "IANA name"), ("", "IANA name"), ("a\x00b", "IANA name")],
)
def test_an_unknown_time_zone_is_told_with_close_ones(zone: str, told: str) -> None:
    with pytest.raises(ModelFault, match=told):
        current_time(zone)


def test_the_built_in_tools_come_by_entry_point() -> None:
    assert load_tools(["calculator", "current_time"]).names == ("calculator", "current_time")


class Shelf:
    """A searcher over prepared hits."""

    def __init__(self, hits: tuple[Hit, ...] = (), notices: tuple[str, ...] = ()) -> None:
        self.hits = hits
        self.notices = notices
        self.asked: list[tuple[str, int | None]] = []

    async def search(self, query: str, *, k: int | None = None) -> Shelf:
        self.asked.append((query, k))
        return self


def hit(text: str, title: str = "", source: str = "", path: tuple[str, ...] = (), page: int | None = None) -> Hit:
    return Hit("id", Chunk("d", text, 0, len(text), 0, heading_path=path, page=page), "v", 1.0, {}, title, source)


async def test_passages_are_numbered_with_their_origin_and_in_full() -> None:
    long = "Tea is hot. " * 200
    shelf = Shelf(
        (
            hit(long, "Tea", "tea.md", ("Tea", "Serving", "Hot")),
            hit("Coffee.", "", "c.pdf", page=3),
            hit("Water.", "Water", "Water"),
        ),
        ("2 of 5 results: nothing else matches.",),
    )
    search = RetrieveTool(shelf, k=5)
    assert isinstance(search, Tool)
    result = await search.call({"query": "tea"}, ToolContext())
    assert shelf.asked == [("tea", 5)]
    assert result.hits == shelf.hits
    assert result.data == {"notices": ("2 of 5 results: nothing else matches.",)}
    head, first, second, third = result.content.split("\n\n")
    assert head == "3 passages found for 'tea':\nNote: 2 of 5 results: nothing else matches."
    assert first == f"[1] Tea > Serving > Hot (tea.md)\n{long.strip()}"
    assert second == "[2] c.pdf, page 3\nCoffee."
    assert third == "[3] Water\nWater."


async def test_nothing_found_is_said() -> None:
    result = await RetrieveTool(Shelf()).call({"query": "tea"}, ToolContext())
    assert result.content == "Nothing was found for 'tea'."
    assert not result.hits
    assert not result.error


def test_a_search_tool_has_a_closed_schema_and_a_checked_k() -> None:
    search = RetrieveTool(Shelf(), name="search_manuals")
    assert search.spec.name == "search_manuals"
    assert search.spec.parameters["required"] == ["query"]
    assert search.spec.parameters["additionalProperties"] is False
    with pytest.raises(CallerError, match="k must be 1 or more"):
        RetrieveTool(Shelf(), k=0)
