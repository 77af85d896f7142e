from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from evals.metrics import parse_metric
from evals.run_log import read_records, read_run
from evals.runner import Run, git_commit, run_sample, run_task
from evals.sample import Output, Sample
from evals.targets import to_output
from evals.task import RunConfig, load_tasks
from framework.config import Settings
from framework.errors import CallerError, ConfigError, Conflict

MakeTask = Callable[..., Path]


async def run(path: Path, settings: Settings, *overrides: str, **options: Any) -> Run:
    (task,) = load_tasks(str(path), overrides)
    return await run_task(task, settings, **options)


def calls(folder: Path) -> list[str]:
    path = folder / "calls.txt"
    return path.read_text().splitlines() if path.exists() else []


async def test_a_task_is_run_and_summed_up(make_task: MakeTask, settings: Settings) -> None:
    done = await run(make_task(), settings)
    means = {name: estimate.mean for name, estimate in done.estimates.items()}
    assert means["exact_match"] == 0.5
    assert means["answer_contained"] == means["declined"] == means["abstention"] == 1.0
    assert done.estimates["declined"].n == 1
    assert done.estimates["seconds"].n == 3
    about = read_run(done.folder)
    assert about["status"] == "finished"
    assert about["metrics"]["exact_match"]["mean"] == 0.5
    assert about["data"]["samples"] == 3
    assert about["versions"]["python"]
    record = read_records(done.folder)["2"]
    assert record.input["answers"] == ["Lima"]
    assert record.output is not None
    assert record.output["text"] == "the city of Lima"


async def test_a_failing_sample_is_counted_and_scores_zero(make_task: MakeTask, settings: Settings) -> None:
    done = await run(make_task(("answers.py:answer", "answers.py:fail_on_peru")), settings)
    assert done.errors == 1
    assert done.first_error == "2: RuntimeError: no atlas"
    assert done.estimates["exact_match"].n == 2
    assert done.estimates["answered"].mean == 0.5
    assert done.estimates["seconds"].n == 2
    assert done.passed


async def test_failing_samples_can_be_left_out_but_stay_counted(make_task: MakeTask, settings: Settings) -> None:
    path = make_task(("answers.py:answer", "answers.py:fail_on_peru"), extra='[run]\nerrors = "exclude"\n')
    done = await run(path, settings)
    assert (done.errors, done.estimates["exact_match"].n) == (1, 1)


async def test_a_run_in_which_every_sample_failed_has_not_passed(make_task: MakeTask, settings: Settings) -> None:
    path = make_task()
    path.with_name("answers.py").write_text("def answer(question):\n    raise OSError('gone')\n")
    done = await run(path, settings)
    assert (done.errors, done.passed) == (3, False)


async def test_an_interrupted_run_goes_on_where_it_was(make_task: MakeTask, settings: Settings, tmp_path: Path) -> None:
    first = await run(make_task(), settings)
    log = first.folder / "samples.jsonl"
    log.write_bytes(log.read_bytes()[: log.read_bytes().index(b"\n") + 20])
    before = len(calls(tmp_path))
    second = await run(make_task(), settings)
    assert (second.folder, second.reused) == (first.folder, 1)
    assert len(calls(tmp_path)) - before == 2
    assert {k: v for k, v in second.estimates.items() if k != "seconds"} == {
        k: v for k, v in first.estimates.items() if k != "seconds"
    }


async def test_a_finished_run_is_not_run_again_unless_fresh(
    make_task: MakeTask, settings: Settings, tmp_path: Path
) -> None:
    first = await run(make_task(), settings)
    again = await run(make_task(), settings)
    assert (again.reused, len(calls(tmp_path))) == (3, 3)
    assert again.estimates == first.estimates
    assert read_run(again.folder)["started"] == again.earlier["started"]
    fresh = await run(make_task(), settings, fresh=True)
    assert (fresh.reused, len(calls(tmp_path))) == (0, 6)


async def test_failed_samples_are_tried_again(make_task: MakeTask, settings: Settings, tmp_path: Path) -> None:
    path = make_task()
    (tmp_path / "ready").write_text("")
    source = (
        "import pathlib\n\ndef answer(q):\n    return (pathlib.Path(__file__).parent / 'ready').read_text() or 1 / 0\n"
    )
    path.with_name("answers.py").write_text(source)
    assert (await run(path, settings)).errors == 3
    (tmp_path / "ready").write_text("Paris")
    again = await run(path, settings)
    assert (again.errors, again.reused) == (0, 0)


@pytest.mark.parametrize("change", ["run.timeout=9", "target.function=answers.py:rank", 'task.metrics=["f1"]'])
async def test_what_decides_the_outcome_starts_another_run(
    make_task: MakeTask, settings: Settings, change: str
) -> None:
    first = await run(make_task(), settings)
    other = await run(make_task(), settings, change)
    assert other.folder != first.folder
    with pytest.raises(Conflict):
        await run(make_task(), settings, change, folder=first.folder)


@pytest.mark.parametrize("change", ["run.concurrency=1", 'task.thresholds=["f1 >= 0.9"]', "task.description=x"])
async def test_what_does_not_decide_it_continues_the_same(make_task: MakeTask, settings: Settings, change: str) -> None:
    first = await run(make_task(), settings)
    assert (await run(make_task(), settings, change)).folder == first.folder


async def test_changed_code_or_data_starts_another_run(make_task: MakeTask, settings: Settings, tmp_path: Path) -> None:
    path = make_task()
    first = await run(path, settings)
    source = tmp_path / "answers.py"
    source.write_text(source.read_text() + "\n# changed\n")
    second = await run(path, settings)
    data = tmp_path / "questions.jsonl"
    data.write_text(data.read_text().replace("Lima", "Quito"))
    third = await run(path, settings)
    assert len({first.folder, second.folder, third.folder}) == 3


async def test_another_version_starts_another_run(
    make_task: MakeTask, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await run(make_task(), settings)
    monkeypatch.setattr("evals.runner.version", lambda package: "99")
    assert (await run(make_task(), settings)).folder != first.folder


async def test_a_limit_takes_the_first_samples(make_task: MakeTask, settings: Settings) -> None:
    done = await run(make_task(), settings, limit=2)
    assert done.samples == 2
    assert set(read_records(done.folder)) == {"1", "2"}


async def test_gates_decide_whether_it_passed(make_task: MakeTask, settings: Settings) -> None:
    assert (await run(make_task(), settings, 'task.thresholds=["f1 >= 0.6", "errors <= 0"]')).passed
    failed = await run(make_task(), settings, 'task.thresholds=["f1 >= 0.99"]')
    assert not failed.passed
    assert read_run(failed.folder)["gates"][0]["passed"] is False


class Meter:
    """A target that knows how many samples are under way at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.about: Mapping[str, Any] = {}

    async def answer(self, sample: Sample) -> Output:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.now -= 1
        return Output(text="x")


@pytest.mark.parametrize("bound", [1, 2, 3, 50])
async def test_concurrency_is_bounded(
    make_task: MakeTask, settings: Settings, monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    from contextlib import asynccontextmanager

    meter = Meter()

    @asynccontextmanager
    async def opened(*arguments: object) -> Any:
        yield meter

    monkeypatch.setattr("evals.runner.open_target", opened)
    await run(make_task(), settings, f"run.concurrency={bound}")
    assert meter.most == min(bound, 3)


class Stuck:
    about: Mapping[str, Any] = {}

    async def answer(self, sample: Sample) -> Output:
        await asyncio.Event().wait()
        raise AssertionError


class TimesOutItself:
    about: Mapping[str, Any] = {}

    async def answer(self, sample: Sample) -> Output:
        raise TimeoutError("the server's own")


async def test_a_sample_that_hangs_has_failed_by_its_time_out() -> None:
    sample, metrics = Sample("1", "q", answers=("a",)), [parse_metric("f1"), parse_metric("seconds")]
    record = await run_sample(sample, Stuck(), metrics, RunConfig(timeout=0.01))
    assert record.error == "no answer within 0.01 s"
    assert record.scores == {"f1": 0.0}
    record = await run_sample(sample, TimesOutItself(), metrics, RunConfig())
    assert record.error == "TimeoutError: the server's own"


async def test_a_cancelled_sample_is_no_failure() -> None:
    task = asyncio.ensure_future(run_sample(Sample("1", "q"), Stuck(), [], RunConfig()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", Output(text="text")),
        (["a", 2], Output(ranking=("a", "2"))),
        ({"text": "x", "declined": True, "ranking": ["a"]}, Output(("a",), "x", declined=True)),
        (Output(text="same"), Output(text="same")),
    ],
)
def test_a_function_may_return_an_output_in_several_shapes(value: object, expected: Output) -> None:
    assert to_output(value) == expected


@pytest.mark.parametrize("value", [None, 3, {"txt": "x"}, {"citations": [{"quote": "no document"}]}])
def test_a_function_that_returns_something_else_is_told(value: object) -> None:
    with pytest.raises(CallerError):
        to_output(value)


@pytest.mark.parametrize(
    "function", ["answers.py", "nowhere.py:answer", "answers.py:nothing", "answers.py:KNOWN", "bad.py:f"]
)
async def test_a_function_that_cannot_be_loaded_is_named(
    make_task: MakeTask, settings: Settings, function: str
) -> None:
    path = make_task()
    path.with_name("bad.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ConfigError) as caught:
        await run(path, settings, f"target.function={function}")
    assert caught.value.field == "target.function"


@pytest.mark.parametrize(("change", "field"), [("target.kind=oracle", "target.kind"), ("target.mode=x", "target.mode")])
async def test_an_unknown_target_or_key_is_named(
    make_task: MakeTask, settings: Settings, change: str, field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        await run(make_task(), settings, change)
    assert caught.value.field == field


async def test_an_asynchronous_function_may_rank(make_task: MakeTask, settings: Settings) -> None:
    done = await run(make_task(), settings, "target.function=answers.py:rank", 'task.metrics=["mrr@10"]')
    assert done.estimates["mrr@10"].mean == pytest.approx((0.5 + 1 + 1) / 3)


def test_outside_a_repository_there_is_no_commit(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
