from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.run_log import Record, RunLog, read_records, read_run
from framework.errors import Conflict, NotFound, StoreCorrupt


def record(id: str, error: str | None = None, **scores: float) -> Record:
    return Record(id, {"question": "q"}, {"text": "a"}, scores, error, 0.1)


def write(folder: Path, *records: Record) -> None:
    with RunLog(folder, "same") as log:
        log.write_run({"status": "running"})
        for each in records:
            log.append(each)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    write(tmp_path, record("1", f1=0.5), record("2", error="broke", f1=0.0))
    log = RunLog(tmp_path, "same")
    assert log.done == {"1"}
    assert log.records == read_records(tmp_path)
    assert read_run(tmp_path)["status"] == "running"


def test_a_line_that_was_torn_by_a_kill_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, record("1"), record("2"))
    path = tmp_path / "samples.jsonl"
    whole = path.read_bytes()
    for cut in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:cut])
        assert RunLog(tmp_path, "same").done == {"1"}
        assert path.read_bytes() == whole[: whole.index(b"\n") + 1]


def test_a_later_record_of_a_sample_replaces_the_earlier(tmp_path: Path) -> None:
    write(tmp_path, record("1", error="broke"), record("1", f1=1.0))
    assert RunLog(tmp_path, "same").done == {"1"}


def test_another_configuration_is_refused_and_fresh_replaces_it(tmp_path: Path) -> None:
    write(tmp_path, record("1"))
    with pytest.raises(Conflict, match="--fresh"):
        RunLog(tmp_path, "other")
    assert RunLog(tmp_path, "other", fresh=True).done == set()


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    write(tmp_path, record("1"), record("2"))
    path = tmp_path / "samples.jsonl"
    lines = path.read_text().splitlines()
    for broken in ("{", "{}", "[]", "3"):
        path.write_text("\n".join([lines[0], broken, lines[1]]) + "\n")
        with pytest.raises(StoreCorrupt, match=r"samples\.jsonl:2"):
            RunLog(tmp_path, "same")


def test_a_damaged_run_file_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(StoreCorrupt, match=r"run\.json"):
        RunLog(tmp_path, "same")


def test_a_foreign_log_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text("mine\n")
    with pytest.raises(Conflict):
        RunLog(tmp_path, "same")
    assert (tmp_path / "samples.jsonl").read_text() == "mine\n"


def test_any_text_survives(tmp_path: Path) -> None:
    odd = "line\nbreak \u2028 \x00 \ud800 \u0085 日本"
    with RunLog(tmp_path, "same") as log:
        log.write_run({})
        log.append(Record("1", {"question": odd}, {"text": odd}, {}, None, 0.0))
    assert read_records(tmp_path)["1"].input == {"question": odd}


def test_nan_never_reaches_a_log(tmp_path: Path) -> None:
    with RunLog(tmp_path, "same") as log, pytest.raises(ValueError, match="JSON compliant"):
        log.append(record("1", f1=float("nan")))


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="holds no run"):
        read_run(tmp_path)


def test_run_json_is_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path)
    with RunLog(tmp_path, "same") as log:
        log.write_run({"status": "finished"})
    assert json.loads((tmp_path / "run.json").read_text()) == {"fingerprint": "same", "status": "finished"}
    assert not list(tmp_path.glob("*.partial"))
