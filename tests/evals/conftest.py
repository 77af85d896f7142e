"""A tiny task over a function, written to a temporary folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

QUESTIONS = [
    {"_id": "1", "question": "the capital of France?", "answers": [{"text": "Paris"}], "passage_id": "p1"},
    {"_id": "2", "question": "the capital of Peru?", "answers": ["Lima"], "passage_id": "p2"},
    {"_id": "3", "question": "the capital of Atlantis?", "answers": [], "answerable": False, "passage_id": "p2"},
]
ANSWERS = """
import pathlib
KNOWN = {"France": "Paris", "Peru": "the city of Lima"}

def answer(question):
    with open(pathlib.Path(__file__).with_name("calls.txt"), "a") as log:
        print(question, file=log)
    for country, city in KNOWN.items():
        if country in question:
            return city
    return {"declined": True}

async def rank(question):
    return ["p2", "p1"]

def fail_on_peru(question):
    if "Peru" in question:
        raise RuntimeError("no atlas")
    return answer(question)
"""
TASK = """
[task]
name = "capitals"
metrics = ["exact_match", "f1", "answer_contained", "declined", "answered", "abstention", "seconds"]

[dataset]
kind = "questions"
path = "questions.jsonl"

[target]
kind = "python"
function = "answers.py:answer"
"""


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def make_task(tmp_path: Path) -> Callable[..., Path]:
    """Writes the questions, the function and the task file, with `changes` made to the last."""

    def make(*changes: tuple[str, str], extra: str = "") -> Path:
        write_jsonl(tmp_path / "questions.jsonl", QUESTIONS)
        (tmp_path / "answers.py").write_text(ANSWERS, encoding="utf-8")
        text = TASK
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "task.toml"
        path.write_text(text + extra, encoding="utf-8")
        return path

    return make
