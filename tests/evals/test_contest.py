"""A contest asks the two models that it compares, whatever kind of target asks them, and claims no more than it saw."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from evals.contest import Contest, Rule, hold, with_model
from evals.run_log import read_run
from evals.task import Task, load_tasks
from framework.config import Settings
from framework.engine.lora import identify
from framework.errors import ConfigError
from framework.messages import Delta
from framework.models.adapter_files import linears_of
from framework.models.adapters import AdapterStore
from framework.models.base import Embedder
from framework.models.catalog import Catalog
from framework.models.local_chat import LocalChat
from framework.models.named_adapter import Checked
from framework.testing.adapters import write_lora
from framework.testing.tiny_chat import write_tiny_chat
from framework.training import scores
from framework.training.config import EvaluateConfig, TrainConfig
from framework.training.run import RunFolder

pytestmark = pytest.mark.usefixtures("nothing_ships")

TASK = """
[task]
name = "towns"
metrics = ["exact_match"]
thresholds = ["exact_match >= 0"]
[dataset]
kind = "questions"
path = "questions.jsonl"
passages = "passages.jsonl"
[target]
kind = "agent"
[agent.reading]
threshold = 0.0
answers = "brief"
passages = 1
"""
CALL = {
    "question": [[{"role": "user", "content": "What is it?"}]],
    "function": [{"name": "what", "parameters": {"type": "dict", "properties": {"it": {"type": "string"}}}}],
    "ground_truth": [{"what": {"it": ["?"]}}],
}
CALLS = """
[task]
name = "calls"
metrics = ["call_right"]
thresholds = ["call_right >= 0"]
[dataset]
kind = "calls"
path = "calls.jsonl"
[target]
kind = "calls"
max_tokens = 8
"""


@pytest.fixture
def towns(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, embedder: Embedder) -> Path:
    """A suite over twenty towns that are blue, and a model with an adapter that says so and one that says red.

    Nobody trains a model here, so its words come from the adapter's name; that it was asked with it is what counts.
    """
    base = Catalog().resolve(str(write_tiny_chat(tmp_path / "base")))
    says = {}
    for seed, (name, word) in enumerate({"good": "blue", "bad": "red"}.items()):
        folder = write_lora(tmp_path / name, linears_of(base.path), seed=seed)
        checked = Checked(identify(folder).digest, passed=True)
        AdapterStore.open(settings).add(name, folder, base, "default", checked=checked)
        says[checked.digest] = word

    async def stream(chat: LocalChat, *arguments: object, **options: object) -> AsyncIterator[Delta]:
        yield Delta(says[chat._adapter().digest] if chat._adapter else "red", finish_reason="stop")

    monkeypatch.setattr(LocalChat, "stream", stream)
    towns = [{"_id": f"t{n}", "title": f"Town {n}", "text": f"Town number {n} is blue and not red."} for n in range(20)]
    asked = [
        {"question": f"Which colour has the town number {n}?", "answers": ["blue"], "passage_id": f"t{n}"}
        for n in range(20)
    ]
    for file, rows in (
        ("passages", towns),
        ("questions", asked),
        ("calls", [CALL | {"id": str(n)} for n in range(20)]),
    ):
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.toml").write_text(TASK)
    monkeypatch.setenv("LECTERN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("framework.models.embedders.load_embedder", lambda name=None, config=None: embedder)
    return tmp_path


def task(folder: Path, *overrides: str) -> Task:
    (found,) = load_tasks(str(folder / "task.toml"), overrides)
    return found


async def contest(folder: Path, settings: Settings, *overrides: str, **rule: Any) -> Contest:
    champion, challenger = f"{folder / 'base'}:good", f"{folder / 'base'}:bad"
    return await hold(task(folder, *overrides), champion, challenger, settings, Rule(**rule))


@pytest.mark.parametrize("mode", [(), ("target.mode=auto",), ("target.mode=read",)])
async def test_an_agent_s_adapters_are_compared_by_what_they_answer(
    towns: Path, settings: Settings, mode: tuple[str, ...]
) -> None:
    held = await contest(towns, settings, *mode)
    assert not held.promote
    assert held.reason.startswith("exact_match is worse")


@pytest.mark.parametrize("told", ["target.mode=quote", "agent.mode=quote"])
async def test_an_agent_that_quotes_can_t_decide(towns: Path, settings: Settings, told: str) -> None:
    with pytest.raises(ConfigError, match="asks no chat model"):
        await contest(towns, settings, told)
    assert with_model(task(towns, told, "target.quoting.choice=1.0"), "any", settings)


async def test_a_reader_s_adapters_are_compared(towns: Path, settings: Settings) -> None:
    held = await contest(towns, settings, "target.kind=reader")
    assert held.reason.startswith("exact_match is worse")


async def test_a_caller_s_adapters_are_compared(towns: Path, settings: Settings) -> None:
    (towns / "task.toml").write_text(CALLS)
    held = await contest(towns, settings, margin=1.0)
    assert [(one.metric, one.challenger.n) for one in held.compared] == [("call_right", 20)]


@pytest.mark.parametrize(("told", "mode"), [({}, "read"), ({"mode": "write"}, "auto")])
def test_what_training_scores_is_read_unless_a_mode_is_told(
    towns: Path, settings: Settings, told: dict[str, str], mode: str
) -> None:
    run, said = RunFolder(towns / "run"), Settings({**settings.values, "agent": told}, towns)
    run.begin({}, restart=False)
    config = TrainConfig("sft", "new", str(towns / "base"), evaluate=EvaluateConfig((Path("task.toml"),), limit=1))
    scores.measure(run, config, Catalog().resolve(config.base), towns, "before", said, lambda _: None)
    assert read_run(run.path / "evaluations/before/task")["target"]["agent"]["mode"] == mode
