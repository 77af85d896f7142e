"""Rows are said once, documents stay on one side of a split, and what is held out is found wherever it hides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.errors import CallerError
from framework.messages import Message, ToolCall, ToolSpec, assistant, system, user
from framework.prompts.reading import reading_messages
from framework.training.cleaning import deduplicate, find_leaks, read_held_out, split_of, split_rows
from framework.training.datasets import ChatRow, PairRow, PreferenceRow, Provenance, Row, write_rows
from framework.training.leaks import held_out_row
from framework.training.row_parts import take_apart, words
from framework.training.tool_requests import calling_rows, read_toolboxes

OURS = Provenance("us", "Apache-2.0")
LEAVE = (
    "Full-time staff start with 24 days of paid leave a year. After five years of service this rises to 27 days, and "
    "after ten years to 30. Part-timers receive a share in proportion to their contracted hours. Requests of three "
    "days or more go to the line manager at least four weeks ahead, shorter ones two weeks ahead."
)
HEATING = (
    "The boiler is inspected every September by the caretaker. Radiators that stay cold are bled with the square key "
    "that hangs beside the meter. When the pressure falls below one bar the system is filled up slowly."
)


def reading(question: str, answer: str, passage: str = LEAVE, document: str = "leave.md") -> ChatRow:
    return ChatRow((*reading_messages(question, passage), assistant(answer)), document, OURS)


def plain(question: str, answer: str, document: str = "d") -> ChatRow:
    return ChatRow((user(question), assistant(answer)), document, OURS)


def test_a_row_that_differs_in_case_and_punctuation_is_dropped() -> None:
    rows = [plain("How long is it?", "Two days."), plain("how LONG is it", "two  days")]
    clean = deduplicate(rows, near=None)
    assert clean.rows == (rows[0],)
    assert [(r.place, r.of, r.reason) for r in clean.repetitions] == [(1, 0, "equal")]


def test_a_nearly_equal_row_is_dropped_with_its_reason() -> None:
    question = "How many days of paid leave do full-time staff get in their very first year at the mill?"
    rows = [
        reading(question, "24 days"),
        reading(question.replace("very ", ""), "24 days", LEAVE.replace("paid", "full")),
    ]
    assert [(r.place, r.of, r.reason) for r in deduplicate(rows).repetitions] == [(1, 0, "near")]
    assert not deduplicate(rows, near=None).repetitions


def test_different_questions_on_one_passage_stay() -> None:
    rows = [
        reading("How many days do staff start with?", "24 days"),
        reading("What do part-timers receive?", "a share"),
        reading("How many days do staff start with?", "unanswerable", HEATING, "heating.md"),
    ]
    assert deduplicate(rows).rows == tuple(rows)


def test_questions_that_differ_in_a_number_stay() -> None:
    rows = [plain(f"What is the sum of all the numbers from 1 to {n} inclusive, please?", "?") for n in range(30)]
    assert len(deduplicate(rows).rows) == 30


def test_the_same_question_with_another_answer_stays() -> None:
    question = "Is it true that requests of three days or more have to go to the line manager four weeks ahead?"
    assert len(deduplicate([plain(question, "Yes."), plain(question, "No."), plain(question, "yes")]).rows) == 2


def test_calls_count_as_what_is_said() -> None:
    tool = ToolSpec("sum", "", {"type": "object"})
    calls = [Message("assistant", tool_calls=(ToolCall("c", "sum", f'{{"n": {n}}}'),)) for n in (1, 1, 2)]
    rows = [ChatRow((user("Add."), call), "d", OURS, (tool,)) for call in calls]
    assert [r.place for r in deduplicate(rows).repetitions] == [1]


word = st.sampled_from(["leave", "days", "staff", "request", "manager", "weeks", "boiler", "key", "24", "27", "30"])
sentence = st.lists(word, min_size=1, max_size=8).map(" ".join)
chat_rows = st.builds(plain, sentence, sentence, st.sampled_from("abcd"))


@given(st.lists(chat_rows, max_size=25))
def test_every_row_stays_or_has_an_earlier_one_that_stays(rows: list[ChatRow]) -> None:
    clean = deduplicate(rows)
    dropped = {r.place: r.of for r in clean.repetitions}
    assert list(clean.rows) == [row for place, row in enumerate(rows) if place not in dropped]
    assert all(of < place and of not in dropped for place, of in dropped.items())
    assert deduplicate(clean.rows).rows == clean.rows


@given(st.lists(chat_rows, max_size=25), st.integers(0, 5))
def test_repeating_all_rows_adds_none(rows: list[ChatRow], seed: int) -> None:
    assert deduplicate([*rows, *rows]).rows == deduplicate(rows).rows


documents = st.lists(st.text(max_size=8), min_size=1, max_size=40)
shares = st.fixed_dictionaries({"validation": st.floats(0, 0.45), "test": st.floats(0, 0.45)})


@given(documents, documents, shares, st.integers())
def test_adding_documents_moves_no_row(first: list[str], more: list[str], shares: dict[str, float], seed: int) -> None:
    before = split_rows([plain("q", "a", name) for name in first], shares, seed)
    after = split_rows([plain("q", "a", name) for name in [*first, *more]], shares, seed)
    for name, rows in before.items():
        assert rows == after[name][: len(rows)]


@given(documents, shares, st.integers())
def test_a_document_is_in_one_split_and_nothing_is_lost(names: list[str], shares: dict[str, float], seed: int) -> None:
    splits = split_rows([plain("q", "a", name) for name in names], shares, seed)
    sides = [{row.document for row in rows} for rows in splits.values()]
    assert sum(len(side) for side in sides) == len(set(names))
    assert sum(len(rows) for rows in splits.values()) == len(names)


def test_shares_are_kept_over_many_documents_and_seeds_differ() -> None:
    names = [f"document {n}" for n in range(4000)]
    held = {seed: {name for name in names if split_of(name, {"validation": 0.1}, seed) != "train"} for seed in (0, 1)}
    assert all(320 < len(side) < 480 for side in held.values())
    assert held[0] != held[1]


@pytest.mark.parametrize("shares", [{"train": 0.1}, {"validation": 1.0}, {"validation": -0.1}, {"a": 0.6, "b": 0.5}])
def test_shares_that_leave_no_training_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(CallerError, match="less than 1"):
        split_rows([], shares)


HELD = held_out_row(
    reading("Who bleeds the radiators that stay cold in winter?", "nobody", HEATING, "heating.md"), "h:1"
)
LONG_WORDS = " ".join(HEATING.split()[9:26])
PLANTED = [
    (plain("q", "a", "heating.md"), "document", "heating.md"),
    (plain("Who bleeds the radiators THAT stay cold, in winter", "a"), "question", "Who bleeds"),
    (plain("Who bleeds all the radiators that stay cold in winter?", "a"), "near question", "Who bleeds"),
    (
        reading("What?", "x", f"Something else first. {LONG_WORDS} and more.", "copy.md"),
        "text",
        "radiators that stay cold",
    ),
    (PairRow("heating", f"before {LONG_WORDS}", "p", OURS), "text", "radiators that stay"),
    (PreferenceRow((user("?"),), assistant("no"), assistant(HEATING), "d", OURS), "text", "boiler is inspected"),
]


@pytest.mark.parametrize(("row", "reason", "shared"), PLANTED, ids=[f"{p[1]}-{n}" for n, p in enumerate(PLANTED)])
def test_a_planted_leak_is_found_with_its_reason(row: Row, reason: str, shared: str) -> None:
    innocent = reading("How long in advance do requests go to the manager?", "four weeks")
    leaks = find_leaks([innocent, row, innocent], [HELD])
    assert [(leak.place, leak.reason, leak.where) for leak in leaks] == [(1, reason, "h:1")]
    assert shared in leaks[0].shared


def test_what_only_looks_alike_is_no_leak() -> None:
    rows = [
        plain("Who bleeds the radiators that stay cold in winter 2024?", "a"),
        plain("Why?", "a"),
        reading("What?", "unanswerable", " ".join(HEATING.split()[9:20]), "eleven words.md"),
    ]
    rows.append(plain("When did it take place?", "a"))
    held = [HELD, held_out_row(plain("Why?", "b", "other"), "h:2")]
    held.append(held_out_row(plain("When did it take place?", "c", "another"), "h:3"))
    assert find_leaks(rows, held) == []


def test_how_all_rows_decline_is_no_leak() -> None:
    decline = "I can not answer this from the documents that I was given, so please ask someone who knows."
    rows = [plain(f"question number {n}", decline, str(n)) for n in range(30)]
    assert find_leaks(rows[:15], [held_out_row(row, "h") for row in rows[15:]]) == []


def test_between_splits_of_one_document_set_nothing_leaks_but_a_copy() -> None:
    rows = [reading(f"What does rule number {n} say?", str(n), f"Rule {n}: {LEAVE}", f"d{n}") for n in range(40)]
    splits = split_rows(rows, {"validation": 0.2})
    leaks = find_leaks(splits["train"], [held_out_row(row, "v") for row in splits["validation"]])
    assert {leak.reason for leak in leaks} == {"text"}
    assert len(leaks) == len(splits["train"])  # the passages were copied under new names


def test_held_out_files_may_be_rows_questions_passages_or_texts(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl.gz", [reading("Who bleeds radiators in the cellar?", "x", HEATING, "h.md")])
    question = {"_id": "1", "question": "Which key is used for the radiators?", "passage_id": "7"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question) + "\n")
    (tmp_path / "passages.jsonl").write_text(json.dumps({"_id": "7", "title": "Heating", "text": HEATING}) + "\n")
    (tmp_path / "plain.txt").write_text(HEATING)
    for name in ("rows.jsonl.gz", "passages.jsonl", "plain.txt", "."):
        assert find_leaks([plain("q", HEATING)], read_held_out(tmp_path / name)), name
    asked = plain("Which key is used for the radiators?", "the square one")
    assert [leak.reason for leak in find_leaks([asked], read_held_out(tmp_path / "questions.jsonl"))] == ["question"]


BLEEDS = "Who bleeds all the radiators that stay cold in winter?"
MEETS = "Where does the council of the old mill meet on Mondays?"


def near(question: str) -> ChatRow:
    return plain(question.replace("the ", "", 1), "a")


def asked_of(tmp_path: Path, held: object) -> list[str]:
    """Which of two questions count as leaks when near copies are trained on."""
    path = tmp_path / "held.jsonl"
    path.write_text(json.dumps(held) + "\n")
    leaks = find_leaks([near(BLEEDS), near(MEETS)], read_held_out(path))
    assert all(leak.reason == "near question" and leak.where == f"{path}:1" for leak in leaks)
    return [(BLEEDS, MEETS)[leak.place] for leak in leaks]


ASKED = [
    {"questions": [{"q": BLEEDS}, {"q": MEETS}]},
    {"question": [[{"role": "user", "content": BLEEDS}], [{"role": "user", "content": MEETS}]]},
    {"messages": [{"role": "user", "content": BLEEDS}, {"role": "user", "content": [{"text": f"{LEAVE}\n\n{MEETS}"}]}]},
    {"prompt": BLEEDS, "data": {"instruction": MEETS}},
    {"input": [BLEEDS], "unanswerable": [MEETS]},
]


@pytest.mark.parametrize("held", ASKED, ids=[next(iter(held)) for held in ASKED])
def test_every_question_of_a_held_out_line_is_compared(tmp_path: Path, held: object) -> None:
    assert asked_of(tmp_path, held) == [BLEEDS, MEETS]


def test_what_others_say_in_a_held_out_conversation_is_no_question(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": BLEEDS}, {"role": "assistant", "content": MEETS}]
    assert asked_of(tmp_path, {"question": [turns]}) == [BLEEDS]


def test_a_question_near_to_one_that_is_near_to_the_first_is_found() -> None:
    first = [f"word{'abcdefghijklmnopqrstuvwxyz'[n]}" for n in range(20)]
    second, third = [*first[:18], "x", "y"], ["v", "w", *first[2:18], "x", "y"]
    held = [held_out_row(plain(" ".join(asked), "a", f"h{n}"), str(n)) for n, asked in enumerate((first, second))]
    assert [leak.where for leak in find_leaks([plain(" ".join(third), "b")], held, near=0.75)] == ["1"]


def test_our_tool_requests_hold_none_of_those_we_measure_with(data: Path) -> None:
    folder = Path(__file__).parents[3] / "recipes/data/tools"
    rows = calling_rows([box for path in sorted(folder.glob("*.jsonl")) for box in read_toolboxes(path)], unrelated=0)
    held = [
        item for name in ("simple_python", "irrelevance") for item in read_held_out(data / "bfcl" / f"{name}.jsonl.gz")
    ]
    assert all(item.questions for item in held)
    assert find_leaks(rows, held) == []


@pytest.mark.parametrize("documents", [10, 30])
def test_a_held_out_passage_given_as_the_answer_is_found_however_many_give_it(documents: int) -> None:
    rows = [plain(f"question number {n}", HEATING, str(n)) for n in range(documents)]
    assert [leak.reason for leak in find_leaks(rows, [HELD])] == ["text"] * documents


def test_a_held_out_passage_in_a_system_message_is_found() -> None:
    told = [ChatRow((system(HEATING), user("q"), assistant("a")), str(n), OURS) for n in range(30)]
    assert [leak.reason for leak in find_leaks(told[:3], [HELD])] == ["text"] * 3
    assert find_leaks(told, [HELD]) == []  # a message that many documents share is how a model is asked
    assert find_leaks(told[:2], [held_out_row(told[2], "h")]) == []


def test_how_short_rows_and_conversations_decline_is_no_leak(tmp_path: Path) -> None:
    decline = "I can not answer this from the documents that I was given, so please ask someone who knows."
    rows = [plain(f"question number {n}", decline, str(n)) for n in range(30)]
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": decline}]
    for held in ({"question": "Who?", "answer": decline}, {"messages": turns}):
        (tmp_path / "held.jsonl").write_text(json.dumps(held))
        assert find_leaks(rows, read_held_out(tmp_path / "held.jsonl")) == []


def test_a_held_out_file_without_anything_in_it_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "picture.png").write_bytes(b"x")
    for name, message in (("empty.jsonl", "nothing in it"), ("picture.png", "is none of"), ("none.jsonl", "no")):
        with pytest.raises(CallerError, match=message):
            list(read_held_out(tmp_path / name))


def test_a_question_is_told_from_the_passage_it_stands_under() -> None:
    content = reading_messages("How long?", LEAVE)[-1].content
    assert take_apart(content)[0] == "How long?"
    assert take_apart("How long?") == ("How long?", "")
    assert take_apart(f"How long?\n\n{LEAVE}\n\n{HEATING}")[0] == "How long?"
    assert words("Ünïcode, 東京!") == ("ünïcode", "東", "京")
