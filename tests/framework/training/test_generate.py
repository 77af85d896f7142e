"""Questions from passages: only what holds up stays, what was dropped is counted, and a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from framework.documents import Document, Section
from framework.errors import CallerError, ModelUnavailable
from framework.messages import Message, ToolSpec
from framework.prompts.reading import UNANSWERABLE
from framework.testing.scripted import ScriptedChat
from framework.training.asked import find_span, same_answer
from framework.training.generate import Made, Plan, generate, pairs_of, rows_of
from framework.training.passages import Passage, all_passages, passages_of
from framework.training.rows import ChatRow, Provenance

LEAVE = (
    "Full-time staff start with 24 days of paid leave a year. After five years of service this rises to 27 days, and "
    "after ten years to 30. Requests of three days or more go to the line manager at least four weeks ahead."
)
BOILER = (
    "The boiler is inspected every September by the caretaker, Maria Lund Jensen. Radiators that stay cold are bled "
    "with the square key that hangs beside the meter. The system is filled up when the pressure falls below 2 bar."
)
STAFF, HEATING = Passage("leave.md", LEAVE, 0, "Leave"), Passage("boiler.md", BOILER, 0, "Heating")
MADE_BY = Provenance("docs", "Apache-2.0", True, {"model": "scripted", "digest": "d"})


def written(**changes: Any) -> dict[str, Any]:
    questions = [
        {"question": "How much holiday is there at first?", "answer": "24 days", "sentence": "At first 24 days."},
        {"question": "How much holiday is there in Peru?", "answer": "12 days", "sentence": ""},
        {"question": "Is 24 days what staff start with?", "answer": "24 days", "sentence": ""},
        {
            "question": "Do requests of three days or more go to the line manager?",
            "answer": "four weeks",
            "sentence": "",
        },
        {"question": "What does the passage call long?", "answer": "ten years", "sentence": ""},
        {"question": "How early must a long absence be asked for?", "answer": "Four  weeks", "sentence": "Early."},
    ]
    follow = {"after": 0, "standalone": "How much holiday is there after a decade?", "question": "And after a decade?"}
    follow_ups = [
        {**follow, "answer": "30", "sentence": "After a decade 30 days."},
        {**follow, "after": 9, "answer": "30"},
    ]
    return {"questions": questions, "follow_ups": follow_ups, "unanswerable": ["Who pays for sick leave?"], **changes}


READ = {
    "How much holiday is there at first?": "24 days of leave",
    "How early must a long absence be asked for?": "three weeks",
    "And after a decade?": "30",
    "Who pays for sick leave?": UNANSWERABLE,
}


class Model:
    """Writes the same for every passage and reads as it is told; counts what it is asked."""

    def __init__(self, reply: object = None, read: dict[str, str] = READ, fail_after: int = 10_000) -> None:
        self.asked: list[str] = []
        self.reply = json.dumps(written()) if reply is None else reply
        self.read, self.fail_after = read, fail_after
        self.chat = ScriptedChat([self._turn] * 10_000)

    def _turn(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> Any:
        self.asked.append(messages[-1].content)
        if len(self.asked) > self.fail_after:
            return ModelUnavailable("The server is gone.")
        if "Question: " not in messages[-1].content:
            return self.reply
        question = messages[-1].content.rpartition("Question: ")[2].splitlines()[0]
        return self.read.get(question, UNANSWERABLE)


async def made(model: Model | None, folder: Path, *passages: Passage, **plan: Any) -> Made:
    chat = model.chat if model else None
    return await generate(passages or (STAFF,), chat, folder / "journal", Plan(**{"concurrency": 1, **plan}))


async def test_what_holds_up_stays_and_the_rest_is_counted(tmp_path: Path) -> None:
    found = await made(Model(), tmp_path)
    assert [(item.kind, item.question, item.short) for item in found.items[0][1]] == [
        ("answer", "How much holiday is there at first?", "24 days"),
        ("follow_up", "And after a decade?", "30"),
        ("unanswerable", "Who pays for sick leave?", ""),
    ]
    assert found.dropped == {
        "answer is not in the passage": 1,
        "question gives the answer away": 1,
        "question copies the passage": 1,
        "question speaks of the passage": 1,
        "sentence without the answer (its brief form stays)": 1,
        "read again, the answer is another": 1,
        "follow-up of nothing": 1,
    }


async def test_rows_ask_as_a_reader_is_asked_and_are_marked_synthetic(tmp_path: Path) -> None:
    rows = [row for row in rows_of(await made(Model(), tmp_path), MADE_BY) if isinstance(row, ChatRow)]
    answers = [row.messages[-1].content for row in rows]
    assert answers == ["24 days", "At first 24 days.", "30", "After a decade 30 days.", UNANSWERABLE]
    assert all(row.provenance.synthetic and row.provenance.details["model"] == "scripted" for row in rows)
    assert "Earlier question: How much holiday is there at first?" in rows[2].messages[1].content
    start, end = (int(rows[0].provenance.details[key]) for key in ("start", "end"))
    assert LEAVE[start:end] == "24 days"


async def test_a_question_is_asked_of_a_passage_of_another_document_that_does_not_hold_its_answer(
    tmp_path: Path,
) -> None:
    found = await made(Model(), tmp_path, HEATING, STAFF, Passage("leave.md", f"{BOILER} It is so.", 500))
    rows = [row for row in rows_of(found, MADE_BY) if row.provenance.details["kind"] == "wrong passage"]
    assert [row.document for row in rows] == ["boiler.md"]
    assert isinstance(rows[0], ChatRow)
    assert "How much holiday is there at first?" in rows[0].messages[1].content
    assert rows[0].messages[-1].content == UNANSWERABLE


async def test_pairs_are_questions_that_are_understood_alone(tmp_path: Path) -> None:
    rows = pairs_of(await made(Model(), tmp_path), MADE_BY)
    asked = ["How much holiday is there at first?", "How much holiday is there after a decade?"]
    assert [row.query for row in rows if not isinstance(row, ChatRow) and hasattr(row, "query")] == asked


async def test_an_unanswerable_question_that_is_answered_after_all_is_dropped(tmp_path: Path) -> None:
    found = await made(Model(read={**READ, "Who pays for sick leave?": "staff"}), tmp_path)
    assert found.dropped["unanswerable question was answered"] == 1
    assert all(item.kind != "unanswerable" for _, items in found.items for item in items)


@pytest.mark.parametrize("reply", ["I can't.", "[1, 2]", '{"questions": ['])
async def test_a_reply_that_is_no_json_is_counted(tmp_path: Path, reply: str) -> None:
    found = await made(Model(reply), tmp_path)
    assert (found.count, found.dropped) == (0, {"reply is no such JSON": 1})


async def test_words_around_the_json_do_no_harm(tmp_path: Path) -> None:
    found = await made(Model(f"Here it is:\n```json\n{json.dumps(written())}\n```"), tmp_path)
    assert found.count == 3


async def test_odd_json_is_dropped_and_not_fatal(tmp_path: Path) -> None:
    odd = {
        "questions": [1, {"question": None, "answer": []}],
        "follow_ups": "none",
        "unanswerable": [{}, "Why is it so?"],
    }
    found = await made(Model(json.dumps(odd), {"Why is it so?": UNANSWERABLE}), tmp_path)
    assert [item.question for item in found.items[0][1]] == ["Why is it so?"]
    assert sum(found.dropped.values()) == 3


async def test_a_run_that_was_cut_short_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    passages = [Passage(f"d{n}.md", LEAVE.replace("manager", f"manager number {n}"), 0) for n in range(6)]
    whole = Model()
    expected = await made(whole, tmp_path / "whole", *passages)
    first, second = Model(fail_after=13), Model()
    with pytest.raises(ModelUnavailable, match="server is gone"):
        await made(first, tmp_path, *passages)
    with (tmp_path / "journal").open("ab") as journal:
        journal.write(b'{"key": "cut o')
    found = await made(second, tmp_path, *passages)
    assert found == expected
    done = 2  # of 5 requests each
    assert len(second.asked) == len(whole.asked) - 5 * done


async def test_a_passage_that_the_model_fails_on_is_counted_while_the_model_lives(tmp_path: Path) -> None:
    model = Model()
    broken = [ModelUnavailable("broken reply")] * 3
    model.chat = ScriptedChat([*broken, "Hello.", *[model._turn] * 100])
    found = await made(model, tmp_path, HEATING, STAFF)
    assert found.dropped["model failed 3 times"] == 1
    assert [len(items) for _, items in found.items] == [0, 3]


async def test_another_model_does_not_continue_a_journal(tmp_path: Path) -> None:
    await made(Model(), tmp_path)
    with pytest.raises(CallerError, match="another model or other settings"):
        await generate([STAFF], Model().chat, tmp_path / "journal", Plan(concurrency=1), digest="other weights")
    (tmp_path / "journal").write_text("{}\n")
    with pytest.raises(CallerError, match="no line of a journal"):
        await made(Model(), tmp_path)


async def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, ...]] = []
    passages = [STAFF, HEATING, STAFF]
    found = await generate(passages, None, tmp_path / "journal", progress=lambda *state: told.append(state))
    assert [state[:2] for state in told] == [(1, 2), (2, 2)]
    assert told[-1][2] == found.count
    assert found.dropped == {"passage given twice": 1}


async def test_rules_make_gaps_headings_and_questions_on_the_wrong_passage(tmp_path: Path) -> None:
    found = await made(None, tmp_path, STAFF, HEATING)
    kinds = {item.kind for _, items in found.items for item in items}
    assert kinds == {"cloze", "heading", "unanswerable"}
    for passage, items in found.items:
        for item in items:
            assert item.kind == "unanswerable" or passage.text[item.start :].startswith(item.short)
    gaps = [item for _, items in found.items for item in items if item.kind == "cloze"]
    assert any(item.short == "24 days" for item in gaps)
    assert all("____" in item.question and item.short not in item.question for item in gaps)


async def test_no_passage_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match="no passage"):
        await generate([], None, tmp_path / "journal")


def test_passages_are_spans_of_their_section() -> None:
    text = f"# One\n\n{LEAVE}\n\n{LEAVE}\n\n# Two\n\n{BOILER}\n\nToo short.\n\n" + BOILER * 5
    two = text.index("# Two")
    sections = (Section(("One",), 0, two), Section(("Two",), two, len(text)))
    found = list(passages_of(Document("d", text, "Title", sections=sections)))
    assert {passage.heading for passage in found} == {"Title > One", "Title > Two"}
    assert all(text[p.start : p.start + len(p.text)] == p.text for p in found)
    assert all(25 <= len(p.text.split()) <= 180 for p in found)
    assert list(all_passages([Document("e", "Hardly anything.")])) == []


def test_spans_are_found_as_the_passage_writes_them() -> None:
    assert find_span("After  Ten\nyears.", "ten years.") == ("Ten\nyears", 7)
    assert find_span("It is 240 days", "24") is None
    assert find_span("x", " ") is None


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [("24 days", "24 days of leave", True), ("24 days", "27 days", False), ("Ghent", "in Paris", False)],
)
def test_answers_are_compared_by_words_and_numbers(a: str, b: str, same: bool) -> None:
    assert same_answer(a, b) is same
