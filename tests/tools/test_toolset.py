from __future__ import annotations

import pytest

from framework.errors import CallerError
from tools import Tool, ToolContext, Toolset, tool


def named(name: str) -> Tool:
    @tool(name=name)
    def function(text: str) -> str:
        """Repeat."""
        return f"{name} {text}"

    return function


def test_tools_keep_their_order_and_are_found_by_name() -> None:
    tools = Toolset([named("b"), named("a")])
    assert tools.names == ("b", "a")
    assert [spec.name for spec in tools.specs] == ["b", "a"]
    assert tools.get("c") is None
    assert "a" in tools
    assert len(tools) == 2


def test_sets_add_up_and_are_not_changed() -> None:
    left, right = Toolset([named("a")]), Toolset([named("b")])
    assert (left + right).names == ("a", "b")
    assert left.names == ("a",)


def test_equal_names_are_refused_with_the_way_out() -> None:
    with pytest.raises(CallerError, match=r"Two tools are named 'a'.*prefixed"):
        Toolset([named("a")]) + Toolset([named("a")])


def test_filtered_keeps_what_is_asked_for() -> None:
    assert Toolset([named("a"), named("b")]).filtered(lambda spec: spec.name != "a").names == ("b",)


async def test_prefixed_tools_are_called_by_their_new_name() -> None:
    tools = Toolset([named("a")]).prefixed("shop_") + Toolset([named("a")])
    assert tools.names == ("shop_a", "a")
    inner = tools.get("shop_a")
    assert inner is not None
    assert inner.timeout == 30.0
    assert (await inner.call({"text": "x"}, ToolContext())).content == "a x"


@pytest.mark.parametrize("prefix", ["shop/", "x" * 64, "ü"])
def test_a_prefix_that_makes_no_name_is_refused(prefix: str) -> None:
    with pytest.raises(CallerError, match="is no name for a tool"):
        Toolset([named("a")]).prefixed(prefix)


def test_a_plain_function_is_refused_with_the_way_out() -> None:
    with pytest.raises(CallerError, match=r"not a tool.*@tool"):
        Toolset([print])  # type: ignore[list-item]  # the fault under test


@pytest.mark.parametrize("timeout", [0, None, "30", float("nan")])
def test_a_tool_that_could_never_be_timed_is_refused(timeout: object) -> None:
    item = named("a")
    item.timeout = timeout  # type: ignore[misc, assignment]  # the fault under test
    with pytest.raises(CallerError, match=r"'a' has the timeout"):
        Toolset([item])
