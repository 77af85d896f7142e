"""Worse answers and calls by rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from framework.errors import CallerError
from framework.messages import Message, ToolCall, ToolSpec, assistant, user
from framework.prompts.reading import UNANSWERABLE, Style, reading_messages, taken_apart
from framework.training.config import DataConfig
from framework.training.contrast import kind_of_answer, preference_rows, spans
from framework.training.data import Material
from framework.training.rows import ChatRow, PreferenceRow, Provenance

HERE = Provenance("tests", "MIT")
MILL = (
    "The mill in Corby was built in 1820 by Anna Petersen and sold for 400 pounds in 1856. It burned down on 3 May"
    " 1901. Her son Karl rebuilt it with the help of the town of Stroud, which paid 900 pounds. Flour is sold there on"
    " Mondays."
)
QUESTIONS = {
    "Who built the mill?": "Anna Petersen",
    "Who rebuilt it?": "Karl",
    "When was it built?": "1820",
    "When did it burn down?": "3 May 1901",
    "What is sold there?": "Flour",
    "Is it still standing?": "yes",
    "How deep is the river?": UNANSWERABLE,
    "Who owned the bakery?": UNANSWERABLE,
}
BOOK = ToolSpec(
    "book",
    "Books a table.",
    {
        "type": "object",
        "properties": {
            "place": {"type": "string"},
            "people": {"type": "integer", "minimum": 1},
            "day": {"type": "string", "enum": ["today", "tomorrow"]},
            "outside": {"type": "boolean"},
        },
        "required": ["place", "people", "day"],
    },
)
CANCEL = ToolSpec(
    "cancel", "Cancels.", {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
)


def reading_row(question: str, answer: str, style: Style = Style.BRIEF, document: str = "mill") -> ChatRow:
    return ChatRow((*reading_messages(question, MILL, "Mills", style), assistant(answer)), document, HERE)


def calling_row(arguments: dict[str, object] | None, tools: tuple[ToolSpec, ...] = (BOOK, CANCEL)) -> ChatRow:
    call = Message("assistant", "", (ToolCall("call_0", "book", json.dumps(arguments)),))
    turn = assistant("None of my tools can do that.") if arguments is None else call
    return ChatRow((user("A table at Luigi's for 4 people, tomorrow evening please"), turn), "tables", HERE, tools)


def reading(seeds: range = range(30)) -> list[PreferenceRow]:
    rows = [reading_row(question, answer) for question, answer in QUESTIONS.items()]
    return [pair for seed in seeds for pair in preference_rows(rows, seed)]


def question(pair: PreferenceRow) -> str:
    asked = taken_apart(pair.prompt)
    assert asked is not None
    return asked.question


def test_what_reading_puts_together_is_taken_apart_again() -> None:
    for style in Style:
        for before in (None, ("Who?", "Anna\n\nQuestion: x")):
            asked = taken_apart(reading_messages("Is it\n\nso?", f"{MILL}\n\nQuestion: no?", "Mills", style, before))
            assert asked is not None
            assert (asked.question, asked.style) == ("Is it\n\nso?", style) or "\n\nQuestion" in asked.passage
    plain = taken_apart(reading_messages("Who?", MILL, "Mills"))
    assert plain is not None
    assert (plain.passage, plain.question) == (f"Mills\n{MILL}", "Who?")
    assert taken_apart((user("Who?"),)) is None


def test_every_reading_row_gets_a_worse_answer() -> None:
    pairs = reading(range(1))
    assert [pair.chosen.content for pair in pairs] == list(QUESTIONS.values())
    assert all(pair.rejected != pair.chosen for pair in pairs)
    assert all(pair.document == "mill" for pair in pairs)


def test_the_same_rows_and_seed_give_the_same_pairs() -> None:
    assert reading(range(2)) == reading(range(2))
    assert reading(range(1)) != reading(range(1, 2))


def test_a_wrong_span_is_of_the_answers_type_and_stands_in_the_passage() -> None:
    wrong = [pair for pair in reading() if pair.provenance.details["rejected"] == "another span of the same type"]
    assert len(wrong) > 50
    for pair in wrong:
        if pair.chosen.content != "yes":
            assert pair.rejected.content in MILL or pair.rejected.content in QUESTIONS.values()
            assert kind_of_answer(pair.rejected.content) == kind_of_answer(pair.chosen.content)
            assert pair.chosen.content not in pair.rejected.content


def test_yes_becomes_no() -> None:
    assert {p.rejected.content for p in reading() if p.chosen.content == "yes"} == {"no", UNANSWERABLE}


def test_what_has_no_answer_is_answered_with_what_looks_like_one() -> None:
    guesses = {p.rejected.content for p in reading() if question(p) == "How deep is the river?"}
    assert guesses
    assert all(kind_of_answer(guess) == "number" for guess in guesses)


def test_a_quarter_of_the_worse_answers_decline() -> None:
    pairs = [pair for pair in reading(range(200)) if pair.chosen.content != UNANSWERABLE]
    share = sum(pair.rejected.content == UNANSWERABLE for pair in pairs) / len(pairs)
    assert 0.22 < share < 0.28


def test_a_sentence_is_exchanged_for_one_with_another_number_or_another_sentence() -> None:
    rows = [reading_row("When was it built?", "The mill was built in 1820.", Style.SENTENCE)]
    found = {pair.rejected.content for seed in range(40) for pair in preference_rows(rows, seed)}
    assert "The mill was built in 1856." in found
    assert "The mill was built in 1820." not in found


def test_spans_by_type() -> None:
    assert spans(MILL, "number", "1820") == ["1820", "400", "1856", "3 May 1901", "900"]
    assert "900 pounds" in spans(MILL, "number", "5 pounds")
    assert {"Anna Petersen", "Stroud"} <= set(spans(MILL, "name"))


# Calls


def test_a_wrong_call_fits_its_schema_and_is_not_the_right_one() -> None:
    right = {"place": "Luigi's", "people": 4, "day": "tomorrow", "outside": True}
    rules = set()
    for seed in range(60):
        (pair,) = preference_rows([calling_row(right)], seed)
        (call,) = pair.rejected.tool_calls
        schema = {"book": BOOK, "cancel": CANCEL}[call.name].parameters
        assert Draft202012Validator(schema).is_valid(json.loads(call.arguments))
        assert (call.name, json.loads(call.arguments)) != ("book", right)
        rules.add(pair.provenance.details["rejected"])
    assert rules == {"a wrong argument", "the wrong tool"}


def test_with_one_tool_an_argument_is_wrong() -> None:
    right = {"place": "Luigi's", "people": 4, "day": "tomorrow"}
    for seed in range(20):
        (pair,) = preference_rows([calling_row(right, (BOOK,))], seed)
        made = json.loads(pair.rejected.tool_calls[0].arguments)
        assert sum(made.get(name) != value for name, value in right.items()) == 1


def test_where_no_tool_serves_the_worse_answer_calls_one() -> None:
    (pair,) = preference_rows([calling_row(None)])
    assert pair.chosen.content == "None of my tools can do that."
    assert pair.rejected.tool_calls[0].name in ("book", "cancel")


def test_rows_of_no_known_form_are_passed_over() -> None:
    assert preference_rows([ChatRow((user("Hello"), assistant("Hi")), "d", HERE)]) == []


# As data of a run


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_documents_with_questions_and_toolboxes_are_preferences_too(tmp_path: Path) -> None:
    asked = [{"q": q, "short": a} for q, a in QUESTIONS.items() if a in MILL]
    document = {"id": "mill", "text": MILL, "questions": asked, "unanswerable": ["How deep is the river?"]}
    request = {"q": "Cancel Luigi's.", "calls": [{"name": "cancel", "arguments": {"place": "Luigi's"}}]}
    tools = [{"name": t.name, "description": t.description, "parameters": dict(t.parameters)} for t in (BOOK, CANCEL)]
    box = {"id": "tables", "tools": tools, "requests": [request], "irrelevant": ["Sing."]}
    chat = calling_row(None).to_json()
    ready = reading(range(1))[0].to_json()
    files = [
        write(tmp_path / name, row)
        for name, row in (("d.jsonl", document), ("b.jsonl", box), ("c.jsonl", chat), ("p.jsonl", ready))
    ]
    rows = Material.read(files, "preference").rows(DataConfig(), 0)
    assert all(isinstance(row, PreferenceRow) for row in rows)
    assert len(rows) == len(asked) + 1 + 2 + 1 + 1
    with pytest.raises(CallerError, match="learns from chat rows"):
        Material.read(files[3:], "chat")


def test_the_command_writes_pairs_and_tells_how_they_were_made(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from agents.dataset_commands import dataset
    from framework.training.datasets import read_rows

    rows = write(tmp_path / "rows.jsonl", *(reading_row(q, a, document=q).to_json() for q, a in QUESTIONS.items()))
    out = tmp_path / "pairs.jsonl"
    done = CliRunner().invoke(dataset, ["contrast", str(rows), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert f"Wrote {len(QUESTIONS)} preference rows" in done.output
    assert "declines what the passage answers" in done.output
    assert [row.chosen.content for row in read_rows(out, "preference")] == list(QUESTIONS.values())
