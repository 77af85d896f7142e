"""Files of rows: what is written is read again, and whatever is wrong is named with its file and line."""

from __future__ import annotations

import gzip
import hashlib
import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.errors import CallerError, OperatorError
from framework.messages import Message, ToolCall, ToolSpec, assistant, system, user
from framework.training.cards import card_path, read_card
from framework.training.datasets import (
    ChatRow,
    PairRow,
    PreferenceRow,
    Provenance,
    Row,
    detect_kind,
    read_rows,
    write_rows,
)

OURS = Provenance("handbook", "Apache-2.0", synthetic=False)
MADE = Provenance("handbook", "Apache-2.0", True, {"model": "large", "seed": 3})
WEATHER = ToolSpec("weather", "Tells it.", {"type": "object", "properties": {"place": {"type": "string"}}})
CALL = ToolCall("c1", "weather", '{"place": "Ghent"}')
TRACE = ChatRow(
    (
        system("Be brief."),
        user("Rain in Ghent?"),
        Message("assistant", tool_calls=(CALL,)),
        Message("tool", "dry", tool_call_id="c1", name="weather"),
        assistant("No."),
    ),
    "ghent.md",
    OURS,
    (WEATHER,),
)
BETTER = PreferenceRow(
    (user("Rain?"),), assistant("No."), Message("assistant", tool_calls=(CALL,)), "d", MADE, (WEATHER,)
)
PAIR = PairRow("rain in ghent", "It is dry in Ghent.", "ghent.md", OURS, ("Paris is in France.",))


def chat(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}],
        "document": "a.md",
        "provenance": {"source": "us", "licence": "MIT", "synthetic": False},
    }
    return {key: value for key, value in {**row, **changes}.items() if value is not None}


def written(folder: Path, *lines: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
@pytest.mark.parametrize("row", [TRACE, BETTER, PAIR], ids=["chat", "preference", "pair"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str, row: Row) -> None:
    path = tmp_path / name
    assert write_rows(path, [row, row]) == 2
    assert read_rows(path, detect_kind(path)) == [row, row]


texts = st.text(min_size=1).filter(lambda text: text.strip())


@given(st.lists(st.builds(PairRow, texts, texts, texts, st.builds(Provenance, texts, texts, st.booleans()))))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, rows: list[PairRow]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    if rows:
        write_rows(path, rows)
        assert read_rows(path, "pair") == rows


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_rows(tmp_path / name, [TRACE])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_the_card_tells_what_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [PAIR, PairRow("q", "p", "other.md", MADE)])
    card = read_card(path)
    assert card is not None
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (card["rows"], card["documents"], card["synthetic"]) == (2, 2, 0.5)
    assert card["licences"] == {"Apache-2.0": 2}
    assert card["makers"] == {"large": 1}
    assert "50.0% are synthetic" in card_path(path).read_text()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [PAIR])
    with pytest.raises(CallerError, match="several kinds"):
        write_rows(path, [PAIR, TRACE])
    with pytest.raises(CallerError, match="no rows"):
        write_rows(path, [])
    assert read_rows(path, "pair") == [PAIR]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.card.md", "rows.jsonl"]


def test_a_full_disk_leaves_the_old_rows_with_their_card(tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk's: a row's source is long, and the card says it several times."""
    path = tmp_path / "rows.jsonl"
    write_rows(path, [PAIR])
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    long = PairRow("q", "p", "d", Provenance("x" * 3000, "MIT"))
    with file_limit(4000), pytest.raises(OperatorError, match="can't be written"):
        write_rows(path, [long])
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may grow beyond that many bytes."""
    limits, action = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, action)


def test_a_question_and_its_answer_are_a_row(tmp_path: Path) -> None:
    path = written(
        tmp_path, {"question": "Who?", "answer": "We."}, {"question": "Why?", "answer": "So.", "document": "b"}
    )
    first, second = read_rows(path, "chat")
    assert first.messages == (user("Who?"), assistant("We."))
    assert first.document.startswith("rows.jsonl:1 ")
    assert (first.provenance.licence, first.provenance.source) == ("NOASSERTION", "rows.jsonl")
    assert second.document == "b"


def test_short_rows_of_two_files_with_one_name_are_two_documents_wherever_the_folder_is(tmp_path: Path) -> None:
    documents = {}
    for folder, question in (("here/x", "Who?"), ("here/y", "Why?"), ("there/x", "Who?")):
        (tmp_path / folder).mkdir(parents=True)
        (row,) = read_rows(written(tmp_path / folder, {"question": question, "answer": "We."}), "chat")
        documents[folder] = row.document
    assert documents["here/x"] != documents["here/y"]
    assert documents["here/x"] == documents["there/x"]


def calling(**function: Any) -> list[dict[str, Any]]:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}", **function}}
    return [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]


USER, ANSWER = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
TOOLS = [WEATHER.to_openai()]
WRONG = [
    (chat(messages=[]), "messages must be a list of messages"),
    (chat(messages=[USER]), "ends with the role 'user'"),
    (chat(messages=[ANSWER]), r"messages\[0\] is an assistant's turn that answers nothing"),
    (chat(messages=[{"role": "bot", "content": "x"}, ANSWER]), r"messages\[0\]\.role must be one of .*'bot'"),
    (chat(messages=[USER, {"role": "assistant", "content": " "}]), r"messages\[1\]\.content is empty"),
    (chat(messages=[USER, {"role": "system", "content": "x"}, ANSWER]), "comes first or not at all"),
    (chat(messages=[{**USER, "weight": 1}, ANSWER]), r"messages\[0\]\.weight is no key"),
    (chat(messages=calling()), "'weather', which the row's 'tools' does not list"),
    (chat(messages=calling(arguments={"place": 1}), tools=TOOLS), "arguments must be JSON as a text"),
    (chat(messages=calling(arguments="[]"), tools=TOOLS), "arguments must be a JSON object"),
    (chat(messages=[*calling(), ANSWER], tools=TOOLS), "before the call 'c1' is answered"),
    (chat(messages=[USER, {"role": "tool", "content": "x", "tool_call_id": "c9"}, ANSWER]), "answers no open call"),
    (
        chat(messages=[USER, {"role": "tool", "content": "x", "tool_call_id": ["a"]}, ANSWER]),
        r"messages\[1\]\.tool_call_id must be a text",
    ),
    (chat(tools=[{"name": "x"}]), r"tools\[0\] must be"),
    (chat(document=""), "document must be a text"),
    (chat(provenance={"source": "us", "synthetic": True}), "provenance.licence must be"),
    (chat(provenance={"source": "us", "licence": "MIT", "synthetic": "yes"}), "synthetic must be true or false"),
    (chat(comment="x"), "comment is no key of a row"),
    ("[]", "is no JSON object"),
    ("{", "is no JSON"),
    ('{"document": NaN}', "NaN is no JSON value"),
]


@pytest.mark.parametrize(("row", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_row_is_named_with_file_and_line(tmp_path: Path, row: object, message: str) -> None:
    path = written(tmp_path, chat(), "", row)
    with pytest.raises(CallerError, match=rf"rows\.jsonl:3\b.*{message}"):
        read_rows(path, "chat")


def test_a_preference_needs_two_answers_that_differ(tmp_path: Path) -> None:
    given = {"prompt": [USER], "chosen": "a", "document": "d", "provenance": OURS.to_json()}
    for rejected, message in (("a", "nothing to prefer"), (USER, "must be 'assistant'"), ("", "not empty")):
        with pytest.raises(CallerError, match=message):
            read_rows(written(tmp_path, {**given, "rejected": rejected}), "preference")


def test_files_that_are_none_of_ours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CallerError, match="There is no file"):
        read_rows(tmp_path / "none.jsonl", "chat")
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(gzip.compress(json.dumps(chat()).encode() * 50)[:-9])
    with pytest.raises(CallerError, match="can't be read"):
        read_rows(broken, "chat")
    packed = bytearray(gzip.compress(b"".join(json.dumps(chat(document=str(n))).encode() + b"\n" for n in range(999))))
    packed[100:120] = bytes(20)
    broken.write_bytes(packed)
    with pytest.raises(CallerError, match="can't be read"):
        read_rows(broken, "chat")
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"question": "é"}'.encode("latin-1"))
    with pytest.raises(CallerError, match="not UTF-8"):
        read_rows(latin, "chat")
    with pytest.raises(CallerError, match="is no row"):
        detect_kind(written(tmp_path, {"text": "x"}))
