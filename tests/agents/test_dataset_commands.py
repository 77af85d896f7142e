"""`lectern dataset` and `lectern feedback`: rows are made, cleaned and split, and nothing leaves without being told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agents.dataset_commands import dataset
from agents.dataset_making import _model
from agents.feedback_commands import feedback
from agents.finish import DECLINED
from agents.search_traces import search_trace
from framework.config import Settings
from framework.errors import CallerError, Conflict
from framework.messages import assistant, user
from framework.models.adapter_files import linears_of
from framework.models.adapters import AdapterStore
from framework.models.catalog import Catalog
from framework.prompts.reading import UNANSWERABLE
from framework.testing.adapters import write_lora
from framework.testing.scripted import ScriptedChat
from framework.testing.tiny_chat import write_tiny_chat
from framework.training.cards import read_card
from framework.training.datasets import ChatRow, Provenance, read_rows, write_rows
from framework.training.passages import Passage

START = "from framework.cli import main; main()"
OURS = Provenance("us", "MIT")
LEAVE = (
    "Full-time staff start with 24 days of paid leave a year. After five years of service this rises to 27 days, and "
    "after ten years to 30. Requests of three days or more go to the line manager at least four weeks ahead."
)
BOILER = (
    "The boiler is inspected every September by the caretaker. Radiators that stay cold are bled with the square key "
    "that hangs beside the meter. The system is filled up when the pressure falls below 2 bar."
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LECTERN_LECTERN__HOME", str(tmp_path / "home"))
    return tmp_path


def lectern(group: Any, *words: str, fails: type[Exception] | None = None) -> Result:
    result = CliRunner().invoke(group, words, standalone_mode=False)
    if fails is not None:
        assert isinstance(result.exception, fails), result.output
    elif result.exception is not None:
        raise result.exception
    return result


def rows(path: Path, *documents: str) -> Path:
    write_rows(path, [ChatRow((user(f"What is kept in {d}?"), assistant(f"It is {d}.")), d, OURS) for d in documents])
    return path


def test_check_tells_what_is_in_a_file_and_whether_its_card_is_true(folder: Path) -> None:
    path = rows(folder / "a.jsonl", "one", "two")
    found = lectern(dataset, "check", str(path))
    assert "2 chat rows from 2 documents, 0.0% synthetic." in found.output
    assert found.return_value == 0
    with path.open("a") as file:
        file.write(path.read_text().splitlines()[0] + "\n")
    assert lectern(dataset, "check", str(path), "--json").return_value == 1
    lectern(dataset, "card", str(path), "--write")
    assert lectern(dataset, "check", str(path)).return_value == 0
    assert "3 chat rows from 2 documents" in lectern(dataset, "card", str(path)).output


def test_clean_joins_files_and_counts_what_it_drops(folder: Path) -> None:
    a, b = rows(folder / "a.jsonl", "one", "two"), rows(folder / "b.jsonl", "two", "three")
    held = rows(folder / "held.jsonl", "three")
    found = lectern(dataset, "clean", str(a), str(b), "-o", "out.jsonl", "--exclude", str(held))
    assert "dropped 1: equal to another row" in found.output
    assert "dropped 1: shares something with what is held out" in found.output
    assert [row.document for row in read_rows(Path("out.jsonl"), "chat")] == ["one", "two"]
    lectern(dataset, "clean", str(a), "-o", "out.jsonl", fails=Conflict)
    lectern(dataset, "clean", str(a), "-o", "out.jsonl", "--overwrite")


def test_split_writes_files_that_share_no_document(folder: Path) -> None:
    path = rows(folder / "a.jsonl", *(f"folder {n}" for n in range(50)))
    found = lectern(dataset, "split", str(path), "--validation", "0.3", "--test", "0.2")
    assert (found.return_value, "No row leaks." in found.output) == (0, True)
    parts = [read_rows(folder / f"a.{name}.jsonl", "chat") for name in ("train", "validation", "test")]
    assert sum(map(len, parts)) == 50
    assert len({row.document for part in parts for row in part}) == 50


def test_documents_with_questions_count_as_the_rows_that_training_makes_of_them(folder: Path) -> None:
    document = {"id": "boiler", "text": BOILER, "unanswerable": ["Who made the boiler?"], "licence": "MIT"}
    asked = [{"q": "Who inspects the boiler?", "short": "the caretaker", "full": "It is the caretaker."}]
    Path("asked.jsonl").write_text(json.dumps({**document, "questions": asked}) + "\n")
    Path("held.jsonl").write_text(json.dumps({"question": "Who inspects the boiler?"}) + "\n")
    assert "3 chat rows from 1 documents" in lectern(dataset, "check", "asked.jsonl").output
    found = lectern(dataset, "leaks", "asked.jsonl", "--against", "held.jsonl")
    assert (found.return_value, "2 of 3 rows share" in found.output) == (1, True)
    lectern(dataset, "clean", "asked.jsonl", "-o", "rows.jsonl")
    assert len(read_rows(Path("rows.jsonl"), "chat")) == 3


def test_a_split_without_documents_is_refused(folder: Path) -> None:
    refused = lectern(dataset, "split", str(rows(folder / "a.jsonl", "one")), fails=CallerError)
    assert "falls into validation" in str(refused.exception)
    assert not list(folder.glob("a.*.jsonl"))


def test_leaks_names_the_row_and_ends_with_1(folder: Path) -> None:
    path, held = rows(folder / "a.jsonl", "one", "two"), rows(folder / "held.jsonl", "two")
    found = lectern(dataset, "leaks", str(path), "--against", str(held))
    assert found.return_value == 1
    assert "Row 2: the same document as" in found.output
    assert "1 of 2 rows share" in found.output
    lines = lectern(dataset, "leaks", str(path), "--against", str(held), "--json").output.splitlines()
    assert {json.loads(line)["reason"] for line in lines} == {"document", "question"}
    assert lectern(dataset, "leaks", str(path), "--against", str(rows(folder / "c.jsonl", "nine"))).return_value == 0


@pytest.fixture
def documents(folder: Path) -> Path:
    place = folder / "handbook"
    place.mkdir()
    (place / "leave.md").write_text(f"# Leave\n\n{LEAVE}\n")
    (place / "boiler.md").write_text(f"# Heating\n\n{BOILER}\n")
    (place / "broken.pdf").write_bytes(b"no PDF")
    return place


def test_generate_makes_rows_by_rule_from_a_folder(documents: Path) -> None:
    found = lectern(dataset, "generate", str(documents), "-o", "made.jsonl", "--licence", "MIT", "--by-rule")
    assert "handbook/broken.pdf was left out" in found.output
    made = read_rows(Path("made.jsonl"), "chat")
    assert {row.document for row in made} == {"handbook/leave.md", "handbook/boiler.md"}
    assert all(row.provenance.synthetic for row in made)
    card = read_card(Path("made.jsonl"))
    assert card is not None
    assert (card["synthetic"], list(card["makers"])) == (1.0, ["lectern-rules"])
    assert not Path("made.jsonl.journal").exists()


def script(path: Path) -> str:
    """A model that writes a question on each passage, and reads it right on the first."""
    written = {
        "questions": [{"question": "How much holiday at first?", "answer": "24 days", "sentence": "At first 24 days."}],
        "follow_ups": [],
        "unanswerable": [],
    }
    replies = [json.dumps(written), json.dumps({**written, "questions": []}), "24 days"]
    turns = [replies[1], replies[0], replies[2]]  # boiler.md comes first
    path.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    return f"scripted:{path}"


def test_generate_asks_a_model_and_shows_it_searching(documents: Path, folder: Path) -> None:
    words = [str(documents), "-o", "made.jsonl", "--licence", "MIT", "--concurrency", "1", "--traces"]
    lectern(dataset, "generate", *words, "-m", script(folder / "script.jsonl"))
    strange, brief, sentence, trace = read_rows(Path("made.jsonl"), "chat")
    assert (strange.document, strange.messages[-1].content) == ("handbook/boiler.md", UNANSWERABLE)
    assert [row.messages[-1].content for row in (brief, sentence)] == ["24 days", "At first 24 days."]
    assert trace.messages[2].tool_calls[0].name == "search_docs"
    number = trace.messages[-1].content.removeprefix("At first 24 days. ")
    assert f"{number} Leave" in trace.messages[3].content


def test_generate_makes_pairs_for_retrieval(documents: Path, folder: Path) -> None:
    words = [str(documents), "-o", "made.jsonl.gz", "--licence", "MIT", "--concurrency", "1", "--kind", "pair"]
    lectern(dataset, "generate", *words, "-m", script(folder / "script.jsonl"))
    (row,) = read_rows(Path("made.jsonl.gz"), "pair")
    assert (row.query, "24 days of paid leave" in row.positive) == ("How much holiday at first?", True)


def test_generate_without_anything_usable_says_why(documents: Path, folder: Path) -> None:
    (folder / "mute.jsonl").write_text('"Sorry."\n"Sorry."\n')
    words = [str(documents), "-o", "made.jsonl", "--licence", "MIT", "-m", f"scripted:{folder / 'mute.jsonl'}"]
    found = lectern(dataset, "generate", *words, fails=CallerError)
    assert "2 x reply is no such JSON" in str(found.exception)
    assert not Path("made.jsonl").exists()


def test_generate_goes_on_after_a_kill_and_makes_the_same(documents: Path, folder: Path) -> None:
    for n in range(150):
        (documents / f"{n}.md").write_text(f"# Rule {n}\n\n{LEAVE.replace('24', str(n))}\n")
    command = [sys.executable, "-c", START, "dataset", "generate", str(documents), "--by-rule"]
    options = ["--licence", "MIT", "-o", str(folder / "made.jsonl")]
    journal = folder / "made.jsonl.journal"
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 20:
        with suppress(subprocess.TimeoutExpired):
            pytest.fail(f"it ended with {process.wait(0.002)}")
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = journal.read_bytes()
    lectern(dataset, "generate", str(documents), *options, "--by-rule")
    lectern(dataset, "generate", str(documents), "--licence", "MIT", "-o", "whole.jsonl", "--by-rule")
    assert 20 <= done.count(b"\n") < 152
    assert Path("made.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_a_run_under_an_adapter_is_known_by_its_content(folder: Path, settings: Settings) -> None:
    model, store = write_tiny_chat(folder / "model"), AdapterStore.open(settings)
    base = Catalog().resolve(str(model))
    digests = [_model(str(model), settings)[1]]
    for name, seed in (("a", 1), ("a", 2), ("b", 2)):
        own = write_lora(folder / f"{name}-{seed}", linears_of(model), seed=seed)
        store.add(name, own, base, settings.core.tenant, overwrite=True)
        digests.append(_model(f"{model}:{name}", settings)[1])
    assert digests[2] == digests[3]
    assert len(set(digests)) == 3


def test_generate_wants_files_or_a_collection(folder: Path) -> None:
    refused = lectern(dataset, "generate", "-o", "made.jsonl", "--licence", "MIT", fails=CallerError)
    assert "collection" in str(refused.exception)
    assert not Path("made.jsonl").exists()


def test_a_trace_that_finds_nothing_says_so() -> None:
    messages, tools = search_trace("Who?", [Passage("a.md", LEAVE, 0, "A > B")], None, "")
    assert messages[-1].content == DECLINED
    assert "[1] A > B (a.md)" in messages[3].content
    assert ChatRow(messages, "a.md", OURS, tools).to_json()["tools"][0]["function"]["name"] == "search_docs"


def test_feedback_on_a_thread_becomes_rows(folder: Path) -> None:
    from agents import Agent

    with Agent("guide", model=ScriptedChat(["Nine days."])) as agent:
        agent.run("How long is leave?", thread_id="t")
    shown = lectern(feedback, "add", "t", "down", "--correction", "It is 24 days.", "--comment", "wrong number").output
    assert shown.startswith("Stored: down, on the run ")
    assert "How long is leave?" in lectern(feedback, "list").output
    (line,) = lectern(feedback, "list", "--json").output.splitlines()
    assert json.loads(line)["comment"] == "wrong number"
    words = ["from-feedback", "--chat", "chat.jsonl", "--preference", "better.jsonl", "--licence", "CC0-1.0"]
    lectern(dataset, *words)
    (learned,), (preferred,) = read_rows(Path("chat.jsonl"), "chat"), read_rows(Path("better.jsonl"), "preference")
    assert learned.messages[-1].content == "It is 24 days."
    assert (preferred.chosen.content, preferred.rejected.content) == ("It is 24 days.", "Nine days.")
    assert learned.document == "thread t"
    Path("chat.jsonl").unlink()
    lectern(dataset, *words, fails=Conflict)  # for the other file, which is there
    assert not Path("chat.jsonl").exists()
    lectern(feedback, "remove", json.loads(line)["run_id"])
    lectern(dataset, *words, "--overwrite", fails=CallerError)


def test_from_feedback_wants_a_file_to_write(folder: Path) -> None:
    refused = lectern(dataset, "from-feedback", "--licence", "MIT", fails=CallerError)
    assert "--chat" in str(refused.exception)
