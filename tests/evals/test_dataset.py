from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from evals.dataset import BeirConfig, QuestionsConfig, load_dataset
from framework.errors import ConfigError


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def beir(folder: Path, qrels: str = "q1\td1\t2\nq1\td2\t0\n", name: str = "qrels.tsv") -> Path:
    write_jsonl(
        folder / "corpus.jsonl", [{"_id": "d1", "title": "T", "text": "body"}, {"_id": "d2", "title": "", "text": ""}]
    )
    write_jsonl(folder / "queries.jsonl", [{"_id": "q1", "text": "first"}, {"_id": "q2", "text": "not judged"}])
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return folder


def questions(path: Path, *rows: Any, **options: Any) -> QuestionsConfig:
    return QuestionsConfig("questions", write_jsonl(path / "q.jsonl", rows), **options)


def test_a_question_without_an_id_goes_by_its_line(tmp_path: Path) -> None:
    dataset = load_dataset(questions(tmp_path, {"question": "a"}, {"_id": "own", "question": "b"}, {"question": "c"}))
    assert [sample.id for sample in dataset.samples] == ["1", "own", "3"]


def test_a_beir_folder_gives_its_judged_queries(tmp_path: Path) -> None:
    dataset = load_dataset(BeirConfig("beir", beir(tmp_path)))
    (sample,) = dataset.samples
    assert (sample.id, sample.question, sample.relevant) == ("q1", "first", {"d1": 2, "d2": 0})
    assert dataset.passages is not None
    assert [(d.id, d.title, d.text) for d in dataset.passages.documents()] == [("d1", "T", "body"), ("d2", "", "")]


@pytest.mark.parametrize("name", ["qrels.dev.tsv", "qrels/dev.tsv"])
def test_a_split_picks_its_judgements(tmp_path: Path, name: str) -> None:
    assert load_dataset(BeirConfig("beir", beir(tmp_path, name=name), split="dev")).samples
    with pytest.raises(ConfigError, match="there is"):
        load_dataset(BeirConfig("beir", tmp_path, split="test"))


def test_packed_files_read_the_same_as_plain_ones(tmp_path: Path) -> None:
    plain = load_dataset(BeirConfig("beir", beir(tmp_path)))
    for name in ("corpus.jsonl", "queries.jsonl"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        (tmp_path / name).unlink()
    packed = load_dataset(BeirConfig("beir", tmp_path))
    assert packed.samples == plain.samples


def test_excluded_documents_come_with_their_query(tmp_path: Path) -> None:
    beir(tmp_path)
    (tmp_path / "source.tsv").write_text("query-id\tcorpus-id\nq1\td2\n")
    (sample,) = load_dataset(BeirConfig("beir", tmp_path, exclude="source.tsv")).samples
    assert sample.excluded == {"d2"}


def test_any_change_of_the_data_changes_the_hash(tmp_path: Path) -> None:
    before = load_dataset(BeirConfig("beir", beir(tmp_path))).hash
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("body", "bodies"))
    assert load_dataset(BeirConfig("beir", tmp_path)).hash != before


def test_answers_come_in_three_shapes(tmp_path: Path) -> None:
    rows = [
        {"_id": 1, "question": "a", "answers": "one"},
        {"_id": 2, "question": "b", "answers": ["two", "zwei", "two", " "]},
        {"_id": 3, "question": "c", "answers": [{"text": "three", "start": 4}], "answerable": False},
        {"_id": 4, "question": "d", "answers": 4},
    ]
    samples = load_dataset(questions(tmp_path, *rows)).samples
    assert [sample.answers for sample in samples] == [("one",), ("two", "zwei"), ("three",), ("4",)]
    assert [sample.answerable for sample in samples] == [True, True, False, True]


def test_gold_documents_come_in_three_shapes(tmp_path: Path) -> None:
    rows = [
        {"_id": "1", "question": "a", "passage_id": "p"},
        {"_id": "2", "question": "b", "passage_id": ["p", "q"]},
        {"_id": "3", "question": "c", "passage_id": {"p": [0], "r": [1]}},
        {"_id": "4", "question": "d"},
    ]
    relevant = [dict(sample.relevant) for sample in load_dataset(questions(tmp_path, *rows)).samples]
    assert relevant == [{"p": 1}, {"p": 1, "q": 1}, {"p": 1, "r": 1}, {}]


def test_field_names_and_a_filter_are_configurable(tmp_path: Path) -> None:
    rows = [{"n": "1", "frage": "wo?", "split": "dev"}, {"n": "2", "frage": "wer?", "split": "trial"}]
    config = questions(tmp_path, *rows, id="n", question="frage", where={"split": "trial"})
    assert [sample.question for sample in load_dataset(config).samples] == ["wer?"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"q\.jsonl:1 is no JSON"),
        ("[1]", r"q\.jsonl:1 is no JSON object"),
        ('{"_id": "1"}', "no text under 'question'"),
        ('{"_id": "1", "question": "a", "answers": [true]}', "an answer is a text"),
        ('{"_id": "1", "question": "a"}\n\n{"_id": "1", "question": "b"}', r"q\.jsonl:3: the id '1' stands"),
        ("", "no question to run"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_dataset(QuestionsConfig("questions", tmp_path / "q.jsonl"))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps({"_id": "1", "question": "a" * 1000}).encode())
    for name, content in (("a.jsonl.gz", whole[:-12]), ("b.jsonl.gz", b"no gzip"), ("c.jsonl", b"\xff\xfe{}")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=name):
            load_dataset(QuestionsConfig("questions", tmp_path / name))


@pytest.mark.parametrize("line", ["q1 d1 1", "q1\td1\tone", "q1"])
def test_a_wrong_judgement_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=r"qrels\.tsv:2"):
        load_dataset(BeirConfig("beir", beir(tmp_path, qrels=f"{line}\n")))


def test_a_judgement_of_a_query_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'q9'"):
        load_dataset(BeirConfig("beir", beir(tmp_path, qrels="q9\td1\t1\n")))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"queries\.jsonl"):
        load_dataset(BeirConfig("beir", tmp_path))
    with pytest.raises(ConfigError, match="passages"):
        load_dataset(questions(tmp_path, {"_id": "1", "question": "a"}, passages=(tmp_path / "none",)))


def test_the_real_sets_have_the_published_counts(data: Path) -> None:
    scifact = load_dataset(BeirConfig("beir", data / "scifact", split="dev"))
    assert len(scifact.samples) == 300
    assert sum(len(sample.relevant) for sample in scifact.samples) == 339
    cranfield = load_dataset(BeirConfig("beir", data / "cranfield", exclude="source_docs.tsv"))
    assert len(cranfield.samples) == 225
    clapnq = load_dataset(QuestionsConfig("questions", data / "clapnq" / "questions.jsonl.gz"))
    assert sum(sample.answerable for sample in clapnq.samples) == 146
