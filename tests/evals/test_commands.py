from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from evals.commands import evaluate
from framework.errors import CallerError, ConfigError

MakeTask = Callable[..., Path]


def lectern_eval(*arguments: str) -> Result:
    """Run the command; what it raises on purpose is raised here too."""
    result = CliRunner().invoke(evaluate, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_run_prints_a_table_and_where_its_log_is(make_task: MakeTask, tmp_path: Path) -> None:
    result = lectern_eval("run", str(make_task()), "--out", str(tmp_path / "log"))
    assert result.exit_code == 0
    for word in ("exact_match", "0.5000", "95% interval", "3 questions", str(tmp_path / "log")):
        assert word in result.output.replace("\n", "")


def test_a_failed_threshold_is_exit_status_one(make_task: MakeTask) -> None:
    thresholds = 'task.thresholds=["f1 >= 0.99", "answer_contained >= 1"]'
    result = lectern_eval("run", str(make_task()), "--set", thresholds)
    assert result.exit_code == 1
    assert "FAIL f1 >= 0.99: measured 0.7500" in result.output
    assert "PASS answer_contained >= 1" in result.output


def test_json_is_one_object_on_standard_output(make_task: MakeTask) -> None:
    result = lectern_eval("run", str(make_task()), "--json", "--limit", "2")
    values = json.loads(result.stdout)
    assert values["passed"] is True
    assert values["runs"][0]["samples"] == 2
    assert values["runs"][0]["metrics"]["exact_match"]["n"] == 2


def test_failures_are_told(make_task: MakeTask) -> None:
    result = lectern_eval("run", str(make_task()), "--set", "target.function=answers.py:fail_on_peru")
    assert "1 FAILED, scored 0; first 2: RuntimeError: no atlas" in result.output


def test_a_second_run_says_that_it_reused_the_first(make_task: MakeTask) -> None:
    path = str(make_task())
    lectern_eval("run", path)
    assert "3 of them run" in lectern_eval("run", path).output
    assert "--fresh" not in lectern_eval("run", path, "--fresh").output


def test_variants_stand_side_by_side(make_task: MakeTask, tmp_path: Path) -> None:
    extra = (
        '[variants.good.target]\nfunction = "answers.py:answer"\n[variants.bad.target]\nfunction = "answers.py:rank"\n'
    )
    path = str(make_task(extra=extra))
    result = lectern_eval("run", path, "--out", str(tmp_path / "log"))
    (header,) = (line for line in result.output.splitlines() if "metric" in line)
    assert header.index("good") < header.index("bad")
    assert {place.name for place in (tmp_path / "log").iterdir()} == {"good", "bad"}
    compared = lectern_eval("compare", str(tmp_path / "log" / "bad"), str(tmp_path / "log" / "good"))
    assert compared.exit_code == 0
    assert "+1.0000" in compared.output
    assert "differs" in compared.output


def test_runs_that_share_nothing_cannot_be_compared(make_task: MakeTask, tmp_path: Path) -> None:
    lectern_eval("run", str(make_task()), "--out", str(tmp_path / "a"))
    lectern_eval("run", str(make_task()), "--out", str(tmp_path / "b"), "--set", 'task.metrics=["seconds"]')
    lectern_eval("run", str(make_task()), "--out", str(tmp_path / "c"), "--set", 'task.metrics=["f1"]')
    with pytest.raises(CallerError, match="share no scored question"):
        lectern_eval("compare", str(tmp_path / "b"), str(tmp_path / "c"))


def test_the_suites_and_the_metrics_are_listed() -> None:
    output = lectern_eval("list").output
    for word in ("scifact", "xquad-en", "clapnq", "ndcg", "citation_found"):
        assert word in output


def test_an_unknown_key_is_refused_by_name(make_task: MakeTask) -> None:
    with pytest.raises(ConfigError, match=r"Unknown key run\.conc"):
        lectern_eval("run", str(make_task()), "--set", "run.conc=3")
