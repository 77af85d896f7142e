"""What answers are judged by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from framework.errors import ConfigError
from framework.messages import Message, ToolCall, ToolSpec, assistant, user
from framework.models.chat_text import shared_text
from framework.prompts.reading import UNANSWERABLE, Style, reading_messages
from framework.prompts.tool_formats import format_call
from framework.training.recipes.grpo import cases
from framework.training.rewards import BUILT_IN, PLUGINS, call, declines, f1, files, find, read_answer, verbatim
from framework.training.rows import ChatRow, Provenance

HERE = Provenance("tests", "MIT")
TOOL = ToolSpec(
    "weather",
    "Tells it.",
    {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]},
)
OTHER = ToolSpec("news", "Tells it.", {"type": "object", "properties": {}})


def read(right: str, style: Style = Style.BRIEF) -> ChatRow:
    asked = reading_messages("Who built it?", "It was built by Anna Petersen in 1820.", style=style)
    return ChatRow((*asked, assistant(right)), "d", HERE)


def calls(*made: tuple[str, object]) -> Message:
    return Message(
        "assistant", "", tuple(ToolCall(f"call_{n}", name, json.dumps(a)) for n, (name, a) in enumerate(made))
    )


def asked(right: Message) -> ChatRow:
    return ChatRow((user("Weather in Oslo for 3 days?"), right), "d", HERE, (TOOL, OTHER))


@pytest.mark.parametrize(
    ("said", "value"),
    [("Anna Petersen", 1), ("the Anna Petersen.", 1), ("Anna", 2 / 3), ("by Anna", 0.5), ("Karl", 0), ("", 0)],
)
def test_f1_is_of_the_words_without_articles(said: str, value: float) -> None:
    assert f1(read("Anna Petersen"), assistant(said)) == pytest.approx(value)


def test_verbatim_is_for_brief_answers_in_the_passages_words() -> None:
    assert verbatim(read("Anna Petersen"), assistant("built by anna petersen")) == 1
    assert verbatim(read("Anna Petersen"), assistant("Petersen, Anna")) == 0
    assert verbatim(read("Anna Petersen"), assistant("")) == 0
    assert verbatim(read("yes"), assistant("yes")) is None
    assert verbatim(read("Anna did.", Style.SENTENCE), assistant("Anna")) is None


def test_declining_is_right_where_there_is_no_answer_and_wrong_elsewhere() -> None:
    assert declines(read(UNANSWERABLE), assistant("Unanswerable.")) == 1
    assert declines(read(UNANSWERABLE), assistant("Karl")) == 0
    assert declines(read("Anna Petersen"), assistant(UNANSWERABLE)) == 0
    assert declines(read("Anna Petersen"), assistant("Karl")) == 1


@pytest.mark.parametrize(
    ("made", "value"),
    [
        ([("weather", {"city": "Oslo", "days": 3})], 1),
        ([("weather", {"city": "Oslo"})], 0.75),
        ([("weather", {"city": "Bergen", "days": 4})], 0.5),
        ([("weather", {"days": "three"})], 0.25),
        ([("news", {})], 0),
        ([], 0),
        ([("weather", {"city": "Oslo", "days": 3}), ("news", {})], 0.5),
    ],
)
def test_a_call_counts_by_its_tool_its_form_and_its_arguments(made: Sequence[tuple[str, object]], value: float) -> None:
    assert call(asked(calls(("weather", {"city": "Oslo", "days": 3}))), calls(*made)) == value


def test_where_no_tool_serves_no_call_is_right() -> None:
    row = asked(assistant("None of my tools can do that."))
    assert call(row, assistant("No.")) == 1
    assert call(row, calls(("news", {}))) == 0
    assert call(row, assistant("<tool_call>\n{broken")) == 0


def test_rewards_do_not_apply_to_rows_of_other_forms() -> None:
    row = ChatRow((user("Hello"), assistant("Hi")), "d", HERE)
    assert [reward(row, assistant("Hi")) for reward in BUILT_IN.values()] == [None] * 4


def test_a_right_answer_gets_the_best_of_every_reward() -> None:
    for row in (read("Anna Petersen"), read(UNANSWERABLE), asked(calls(("weather", {"city": "Oslo"})))):
        assert {reward(row, row.messages[-1]) for reward in BUILT_IN.values()} <= {None, 1.0}


def test_generated_tokens_are_read_as_serving_reads_them(tiny_base: Path) -> None:
    text = shared_text(tiny_base, "tiny")
    right = calls(("weather", {"city": "Oslo"})).tool_calls[0]
    written = format_call(right, text.tokens.guard)
    end = min(text.ends)
    assert read_answer([*text.tokens.encode(written), end, 5, 6], text, (TOOL,)) == Message("assistant", "", (right,))
    assert read_answer([*text.tokens.encode(written), end], text, ()).content == written
    broken = written.replace("weather", "wether")
    assert read_answer(text.tokens.encode(broken), text, (TOOL,)) == assistant(broken)
    assert read_answer([end], text, (TOOL,)) == assistant("")


def test_each_turn_that_a_reward_can_judge_is_a_case() -> None:
    trace = ChatRow(
        (
            user("Weather in Oslo?"),
            calls(("weather", {"city": "Oslo"})),
            Message("tool", "rain", tool_call_id="call_0", name="weather"),
            assistant("Rain."),
        ),
        "d",
        HERE,
        (TOOL,),
    )
    assert [len(case.messages) for case in cases([trace, read("Anna Petersen")], [call, f1])] == [2, 3]


def test_a_reward_is_found_in_a_file_or_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def half(row, answer):\n    return 0.5\n", encoding="utf-8")
    assert find("mine.py:half", tmp_path)(read("x"), assistant("y")) == 0.5
    assert files(["f1", "mine.py:half"], tmp_path) == [tmp_path / "mine.py"]
    point = EntryPoint("plugged", "framework.training.rewards:declines", "lectern.rewards")
    monkeypatch.setitem(PLUGINS._plugins, "plugged", [point])
    assert find("plugged", tmp_path) is declines
    assert find("f1", tmp_path) is f1


def test_a_file_that_can_not_be_imported_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.py can't be imported: ZeroDivisionError"):
        find("broken.py:f", tmp_path)
    with pytest.raises(ConfigError, match="There is no file"):
        files(["gone.py:f"], tmp_path)
