"""A training run that names evaluations tells what the base scored before and what the result scores."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from framework.config import Settings
from framework.documents import Document
from framework.errors import CallerError
from framework.models.adapters import AdapterStore
from framework.testing.tiny_chat import write_tiny_chat
from framework.training.run import RunFolder
from framework.training.start import run_file
from indexers.library import Library

ROOMS = {"Birch": "first floor", "Cedar": "second floor", "Elm": "third floor", "Oak": "top floor"}
TASK = """
[task]
name = "rooms"
metrics = ["f1", "answered"]
[dataset]
kind = "questions"
path = "questions.jsonl"
passages = "passages.jsonl"
[target]
kind = "reader"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def write(name: str, values: list[dict[str, object]]) -> None:
        (tmp_path / name).write_text("".join(json.dumps(value) + "\n" for value in values))

    write(
        "documents.jsonl",
        [
            {
                "id": room,
                "text": f"{room} is a room on the {floor}.",
                "questions": [{"q": f"Where is {room}?", "short": floor}],
            }
            for room, floor in ROOMS.items()
        ],
    )
    write("passages.jsonl", [{"_id": room, "text": f"{room} is on the {floor}."} for room, floor in ROOMS.items()])
    write(
        "questions.jsonl",
        [
            {"_id": room, "question": f"Is {room} there?", "passage_id": room, "answers": [{"text": floor}]}
            for room, floor in ROOMS.items()
        ],
    )
    (tmp_path / "rooms.toml").write_text(TASK)
    base = write_tiny_chat(tmp_path / "base")
    (tmp_path / "train.toml").write_text(
        f'recipe = "sft"\nname = "rooms"\nbase = {json.dumps(str(base))}\nout = "run"\n'
        '[data]\ntrain = ["documents.jsonl"]\nvalidation_share = 0.0\n'
        "[optimizer]\nsteps = 2\nsequences = 1\n"
        '[evaluate]\ntarget = ["rooms.toml"]\nlimit = 3\n'
    )
    return tmp_path


@pytest.fixture
def settings(folder: Path) -> Settings:
    return Settings({"lectern": {"home": str(folder / "home")}}, base=folder)


def test_a_run_scores_base_and_result_once(folder: Path, settings: Settings) -> None:
    said: list[str] = []
    run, _ = run_file(folder / "train.toml", settings, say=said.append)
    scores = run.read()["scores"]
    for moment in ("before", "after"):
        assert {name: value["n"] for name, value in scores[moment]["rooms"].items()} == {"f1": 3, "answered": 3}
    assert "| rooms | f1 | 0." in (run.adapter / "README.md").read_text()
    models = [_model(run, moment) for moment in ("before", "after")]
    assert models[0] == str(folder / "base")
    assert models[1].startswith(f"{folder / 'base'}:rooms.trial.")
    assert not [a for a in AdapterStore.open(settings).list("default") if "rooms" in a.name], "it is not live"
    assert sum("Evaluating rooms" in line for line in said) == 2
    said.clear()
    run_file(folder / "train.toml", settings, say=said.append)
    assert not any("Evaluating" in line for line in said)


def test_each_variant_of_an_evaluation_is_scored(folder: Path, settings: Settings) -> None:
    (folder / "rooms.toml").write_text(TASK + '[variants.short.target]\nstyle = "brief"\n[variants.plain.target]\n')
    run, _ = run_file(folder / "train.toml", settings, say=lambda _: None)
    assert set(run.read()["scores"]["after"]) == {"rooms:short", "rooms:plain"}


def test_a_collection_of_the_users_is_searched_before_and_after(folder: Path, settings: Settings) -> None:
    with Library.open(settings) as library:
        library.index_documents([Document(room, f"{room} is on the {floor}.") for room, floor in ROOMS.items()], "mine")
    task = TASK.replace('kind = "reader"', 'kind = "retriever"\ncollection = "mine"\nmode = "lexical"')
    (folder / "rooms.toml").write_text(task.replace('"f1", "answered"', '"mrr@10"'))
    run, _ = run_file(folder / "train.toml", settings, say=lambda _: None)
    scores = run.read()["scores"]
    assert scores["before"] == scores["after"]
    assert scores["after"]["rooms"]["mrr@10"]["mean"] == 1.0


def test_an_evaluation_that_ends_in_a_traceback_says_so(
    folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = folder / "python"
    broken.write_text("#!/bin/sh\necho 'RuntimeError: boom' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(CallerError, match=r"rooms\.toml failed: RuntimeError: boom"):
        run_file(folder / "train.toml", settings, say=lambda _: None)


def test_an_evaluation_that_fails_says_why(folder: Path, settings: Settings) -> None:
    (folder / "rooms.toml").write_text(TASK.replace('"f1"', '"f2"'))
    with pytest.raises(CallerError, match=r"rooms\.toml failed: .*f2"):
        run_file(folder / "train.toml", settings, say=lambda _: None)


def _model(run: RunFolder, moment: str) -> str:
    record = json.loads((run.path / "evaluations" / moment / "rooms" / "run.json").read_text())
    return str(record["target"]["model"])
