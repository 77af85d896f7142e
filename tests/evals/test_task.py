from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evals.task import load_tasks, suites
from framework.config import Settings
from framework.errors import ConfigError, LecternError

MakeTask = Callable[..., Path]


def test_a_task_is_read_with_its_paths_from_its_own_folder(make_task: MakeTask, tmp_path: Path) -> None:
    (task,) = load_tasks(str(make_task()))
    assert task.name == "capitals"
    assert task.dataset.path == tmp_path / "questions.jsonl"
    assert [metric.name for metric in task.metrics][:2] == ["exact_match", "f1"]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("metrics =", "metricks =", "task.metricks"),
        ('kind = "questions"', 'kind = "questions"\nspilt = "dev"', "dataset.spilt"),
        ('kind = "questions"', 'kind = "squad"', "dataset.kind"),
        ('kind = "questions"', "", "dataset.kind"),
        ('"exact_match"', '"exact_mach"', "exact_mach"),
        ('name = "capitals"', "", "task.name"),
        ("[dataset]", "[datasets]", "datasets"),
        ("[task]", "run = 1\n[task]", "run"),
        ("[target]", "[run]\nconcurency = 2\n[target]", "run.concurency"),
        ("[target]", "[run]\nconcurrency = 0\n[target]", "run.concurrency"),
        ("[target]", '[run]\nerrors = "ignore"\n[target]', "run.errors"),
        ("[target]", '[variants.x]\nmode = "dense"\n[target]', "variants.x.mode"),
        ("[target]", '[variants.x.targets]\nmode = "dense"\n[target]', "variants.x.targets"),
        ('name = "capitals"', 'name = "capitals"\nthresholds = ["ndcg@10 >= 0.7"]', "ndcg@10"),
        ('name = "capitals"', 'name = "capitals"\nthresholds = ["f1 is good"]', "f1 is good"),
    ],
)
def test_what_is_wrong_is_named(make_task: MakeTask, old: str, new: str, named: str) -> None:
    with pytest.raises(LecternError) as caught:
        load_tasks(str(make_task((old, new))))
    assert named in str(caught.value)


def test_a_file_that_is_not_there_gets_the_suites_that_are() -> None:
    with pytest.raises(ConfigError, match="scifact"):
        load_tasks("nowhere.toml")


def test_variables_in_paths_are_replaced(make_task: MakeTask, tmp_path: Path) -> None:
    path = str(make_task(('path = "questions.jsonl"', 'path = "${LECTERN_DATA}/q.jsonl"')))
    (task,) = load_tasks(path, environ={"LECTERN_DATA": "/data"})
    assert task.dataset.path == Path("/data/q.jsonl")
    with pytest.raises(ConfigError, match=r"dataset\.path .* LECTERN_DATA is not set"):
        load_tasks(path, environ={})


def test_overrides_are_toml_values_or_plain_words(make_task: MakeTask) -> None:
    (task,) = load_tasks(str(make_task()), ["run.concurrency=2", "target.function=answers.py:rank", "search.mmr=0.5"])
    assert task.run.concurrency == 2
    assert task.target["function"] == "answers.py:rank"
    assert task.settings(Settings({"search": {"k": 3}}, Path())).values["search"] == {"k": 3, "mmr": 0.5}


@pytest.mark.parametrize(
    "text", ["mode=dense", "target.mode", "targets.mode=dense", "target.=1", ".mode=1", "variants.x.y=1"]
)
def test_an_override_that_names_no_key_is_refused(make_task: MakeTask, text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_tasks(str(make_task()), [text])


VARIANTS = """
[variants.plain.target]
function = "answers.py:answer"
[variants.ranked.target]
function = "answers.py:rank"
"""


def test_variants_are_one_task_each(make_task: MakeTask) -> None:
    path = str(make_task(extra=VARIANTS))
    assert [task.name for task in load_tasks(path)] == ["capitals-plain", "capitals-ranked"]
    assert [task.target["function"] for task in load_tasks(path)] == ["answers.py:answer", "answers.py:rank"]
    assert [task.variant for task in load_tasks(path, variants=["ranked"])] == ["ranked"]
    with pytest.raises(ConfigError, match="'other'"):
        load_tasks(path, variants=["other"])


def test_overriding_what_the_variants_vary_leaves_one_run(make_task: MakeTask) -> None:
    (task,) = load_tasks(str(make_task(extra=VARIANTS)), ["target.function=answers.py:fail_on_peru"])
    assert task.variant == ""
    assert task.target["function"] == "answers.py:fail_on_peru"


def test_every_suite_that_ships_is_valid() -> None:
    assert suites()
    for name in suites():
        assert load_tasks(name, environ={"LECTERN_DATA": "/data"})
