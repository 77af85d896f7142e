"""Calls as the function-calling leaderboard has them: read, offered to a model, compared by its rules."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from agents import ReadingConfig
from evals.calls import Called, Expected, all_right, json_schema, right, valid
from evals.dataset import CallsConfig, QuestionsConfig, load_dataset
from evals.metrics import parse_metric
from evals.model_targets import CallsConfig as CallsTargetConfig
from evals.model_targets import CallsTarget, ReaderConfig, ReaderTarget
from evals.runner import run_task
from evals.sample import Output, Sample
from evals.task import load_tasks
from framework.config import Settings
from framework.documents import Document
from framework.errors import CallerError, ConfigError
from framework.messages import Message, ToolSpec
from framework.prompts.reading import UNANSWERABLE
from framework.testing.fakes import HashEmbedder
from framework.testing.scripted import ScriptedChat, tool_call

AREA = {
    "id": "area",
    "question": [[{"role": "user", "content": "The area of a triangle, base 10, height 5?"}]],
    "function": [
        {
            "name": "geometry.area",
            "description": "Area of a triangle.",
            "parameters": {
                "type": "dict",
                "properties": {
                    "base": {"type": "integer", "description": "Base."},
                    "height": {"type": "float"},
                    "unit": {"type": "string", "default": "m"},
                },
                "required": ["base", "height"],
            },
        }
    ],
    "ground_truth": [{"geometry.area": {"base": [10], "height": [5], "unit": ["Units", ""]}}],
}
NOTHING = {**{key: value for key, value in AREA.items() if key != "ground_truth"}, "id": "bread"}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def samples(tmp_path: Path) -> dict[str, Sample]:
    dataset = load_dataset(CallsConfig("calls", write(tmp_path / "calls.jsonl", AREA, NOTHING)))
    return {sample.id: sample for sample in dataset.samples}


def called(name: str, **arguments: Any) -> Called:
    return Called(name, json.dumps(arguments))


def test_an_item_becomes_a_conversation_tools_and_calls(samples: dict[str, Sample]) -> None:
    sample = samples["area"]
    assert sample.messages == (Message("user", "The area of a triangle, base 10, height 5?"),)
    (spec,) = sample.tools
    assert spec.name == "geometry_area"
    assert spec.parameters["type"] == "object"
    assert spec.parameters["properties"]["height"] == {"type": "number"}
    assert sample.calls == (Expected("geometry_area", {"base": (10,), "height": (5,), "unit": ("Units", "")}),)
    assert sample.answerable
    assert not samples["bread"].answerable


def test_a_parameter_may_be_called_type() -> None:
    schema = json_schema({"type": "dict", "properties": {"type": {"type": "any", "optional": True}}})
    assert schema == {"type": "object", "properties": {"type": {}}}


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({**AREA, "question": []}, "list of one turn"),
        ({**AREA, "question": [[{"role": "user"}]]}, "'content' is missing"),
        ({**AREA, "function": []}, "no function"),
        ({**AREA, "function": [{"name": "x"}]}, "has name, description and parameters"),
        ({**AREA, "ground_truth": [{}]}, "one function each"),
    ],
)
def test_a_wrong_item_is_named_with_its_line(tmp_path: Path, row: dict[str, Any], wrong: str) -> None:
    path = write(tmp_path / "calls.jsonl", AREA | {"id": "first"}, row)
    with pytest.raises(ConfigError, match=rf"calls\.jsonl:2.*{wrong}"):
        load_dataset(CallsConfig("calls", path))


@pytest.mark.parametrize(
    ("value", "accepted", "same"),
    [
        ("San Francisco, CA", "san francisco ca", True),
        ("O'Hare", 'o"hare', True),
        ("Rome", "Paris", False),
        (5, 5.0, True),
        (5, "5", False),
        (True, 1, False),
        (True, True, True),
        ([1, "A b"], [1, "ab"], True),
        ([1, 2], [2, 1], False),
        ({"city": "Rome"}, {"city": ["rome"], "unit": ["", "c"]}, True),
        ({"city": "Rome", "more": 1}, {"city": ["rome"]}, False),
        ({}, {"city": ["rome"]}, False),
        ([{"a": 1}], [{"a": [1, 2]}], True),
        (None, None, True),
        (None, 0, False),
    ],
)
def test_values_are_compared_as_the_leaderboard_does(value: Any, accepted: Any, same: bool) -> None:
    assert right(called("f", x=value), Expected("f", {"x": (accepted,)})) is same


def test_an_argument_is_left_out_only_where_that_is_accepted() -> None:
    assert right(called("f"), Expected("f", {"x": (1, "")}))
    assert not right(called("f"), Expected("f", {"x": (1,)}))
    assert not right(called("f", y=1), Expected("f", {}))
    assert not right(Called("f", "[]"), Expected("f", {}))
    assert not right(Called("f", "{"), Expected("f", {}))
    assert not right(called("g"), Expected("f", {}))


def test_several_calls_match_in_any_order_and_each_once() -> None:
    expected = [Expected("f", {"x": (1, 2)}), Expected("f", {"x": (1,)})]
    assert all_right([called("f", x=1), called("f", x=2)], expected)
    assert not all_right([called("f", x=2), called("f", x=2)], expected)
    assert not all_right([called("f", x=1)], expected)
    assert all_right([], [])


def test_a_valid_call_is_one_that_its_tool_allows(samples: dict[str, Sample]) -> None:
    tools = samples["area"].tools
    assert valid(called("geometry_area", base=1, height=2.5), tools)
    assert not valid(called("geometry_area", base=1), tools)
    assert not valid(called("geometry_area", base=1, height=2, more=3), tools)
    assert not valid(called("other", base=1, height=2), tools)
    assert not valid(Called("geometry_area", "nonsense"), tools)


def test_the_metrics_of_calls(samples: dict[str, Sample]) -> None:
    def scores(sample: Sample, *calls: Called) -> list[float | None]:
        names = ("call_valid", "call_tool", "call_right", "no_call")
        return [parse_metric(name).score(sample, Output(calls=calls)) for name in names]

    area, bread = samples["area"], samples["bread"]
    assert scores(area, called("geometry_area", base=10, height=5)) == [1.0, 1.0, 1.0, None]
    assert scores(area, called("geometry_area", base=10, height=6)) == [1.0, 1.0, 0.0, None]
    assert scores(area) == [None, 0.0, 0.0, None]
    assert scores(bread) == [None, None, None, 1.0]
    assert scores(bread, called("geometry_area", base=1)) == [0.0, None, None, 0.0]
    assert scores(Sample("1", "a question")) == [None] * 4


def test_a_caller_gets_the_conversation_and_the_tools(samples: dict[str, Sample]) -> None:
    model = ScriptedChat([tool_call("geometry_area", base=10, height=5), "None of my tools can do that."])
    target = CallsTarget(model, CallsTargetConfig("calls"), {})
    done, refused = (asyncio.run(target.answer(samples[name])) for name in ("area", "bread"))
    assert (done.calls, done.declined) == ((called("geometry_area", base=10, height=5),), False)
    assert (refused.calls, refused.declined, refused.text) == ((), True, "None of my tools can do that.")
    assert [message.role for message in model.requests[0].messages] == ["user"]
    assert [spec.name for spec in model.requests[0].tools] == ["geometry_area"]


def test_a_reader_gets_the_passage_that_answers() -> None:
    documents = {"p": Document("p", "Paris is in France.", title="Paris")}
    model = ScriptedChat(["France", UNANSWERABLE])
    target = ReaderTarget(model, HashEmbedder(), documents, ReaderConfig("reader"), ReadingConfig(), {})
    sample = Sample("1", "Where is Paris?", {"p": 1}, ("France",))
    assert asyncio.run(target.answer(sample)).text == "France"
    assert asyncio.run(target.answer(sample)).declined
    assert "Passage: Paris\nParis is in France." in model.requests[0].messages[-1].content
    with pytest.raises(CallerError, match="no passage"):
        asyncio.run(target.answer(Sample("2", "Where is Rome?", {"q": 1})))


async def test_a_task_measures_a_caller_by_name(tmp_path: Path, settings: Settings) -> None:
    call = [{"name": "geometry_area", "arguments": {"base": 10, "height": 5}}]
    (tmp_path / "script.jsonl").write_text(f'{json.dumps(call)}\n"No."\n')
    write(tmp_path / "calls.jsonl", AREA, NOTHING)
    (tmp_path / "task.toml").write_text(
        '[task]\nname = "calls"\nmetrics = ["call_right", "no_call"]\n[dataset]\nkind = "calls"\npath = "calls.jsonl"\n'
        f'[target]\nkind = "calls"\nmodel = "scripted:{tmp_path}/script.jsonl"\n[run]\nconcurrency = 1\n'
    )
    (task,) = load_tasks(str(tmp_path / "task.toml"))
    run = await run_task(task, settings, folder=tmp_path / "run")
    assert {name: estimate.mean for name, estimate in run.estimates.items()} == {"call_right": 1.0, "no_call": 1.0}
    again = await run_task(task, settings, folder=tmp_path / "run")
    assert again.reused == 2


def test_questions_may_come_from_several_files(tmp_path: Path) -> None:
    one = write(tmp_path / "a.jsonl", {"_id": "1", "question": "one?"})
    two = write(tmp_path / "b.jsonl", {"_id": "2", "question": "two?"})
    dataset = load_dataset(QuestionsConfig("questions", (one, two)))
    assert [sample.question for sample in dataset.samples] == ["one?", "two?"]
    with pytest.raises(ConfigError, match="a second time"):
        load_dataset(QuestionsConfig("questions", (one, one)))


@pytest.mark.data
def test_the_leaderboards_own_files_are_read(data: Path) -> None:
    if not (data / "bfcl").is_dir():
        pytest.skip("no BFCL files")
    simple = load_dataset(CallsConfig("calls", data / "bfcl" / "simple_python.jsonl.gz"))
    irrelevant = load_dataset(CallsConfig("calls", data / "bfcl" / "irrelevance.jsonl.gz"))
    assert (len(simple.samples), len(irrelevant.samples)) == (400, 240)
    assert all(len(sample.calls) == 1 for sample in simple.samples)
    for sample in simple.samples:  # an answer made of the first accepted values is right
        (expected,) = sample.calls
        made = {name: _first(values[0]) for name, values in expected.arguments.items() if values[0] != ""}
        assert right(Called(expected.name, json.dumps(made)), expected), sample.id


def _first(accepted: Any) -> Any:
    """A value that is accepted, from the form in which objects have lists of values."""
    if isinstance(accepted, dict):
        return {k: _first(v[0] if isinstance(v, list) else v) for k, v in accepted.items() if v != [""]}
    return [_first(item) for item in accepted] if isinstance(accepted, list) else accepted


def test_a_schema_that_refers_elsewhere_allows_nothing_and_fetches_nothing() -> None:
    outside = {"type": "object", "properties": {"city": {"$ref": "http://127.0.0.1:9/city"}}}
    assert not valid(Called("weather", '{"city": "Ghent"}'), [ToolSpec("weather", "", outside)])


def test_requests_may_be_shown_tools_of_others_that_serve_something_else(tmp_path: Path) -> None:
    def asked(id: str, name: str) -> dict[str, Any]:
        return {**AREA, "id": id, "function": [{**AREA["function"][0], "name": name}], "ground_truth": [{name: {}}]}

    names = ("geometry.area", "calculate_area_of", "weather.get", "get_train", "book_hotel")
    path = write(tmp_path / "calls.jsonl", *(asked(str(n), name) for n, name in enumerate(names)))
    samples = load_dataset(CallsConfig("calls", path, others=3)).samples
    assert [len(sample.tools) for sample in samples] == [4] * 5
    assert all(sample.calls[0].name in {tool.name for tool in sample.tools} for sample in samples)
    assert "calculate_area_of" not in {tool.name for tool in samples[0].tools}
    assert len({[tool.name for tool in s.tools].index(s.calls[0].name) for s in samples}) > 1
    alone = load_dataset(CallsConfig("calls", path))
    assert [len(sample.tools) for sample in alone.samples] == [1] * 5
    assert alone.hash != load_dataset(CallsConfig("calls", path, others=3)).hash
    with pytest.raises(ConfigError, match=r"dataset\.others must be 0 or more"):
        CallsConfig("calls", path, others=-1)
