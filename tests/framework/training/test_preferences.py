"""Learning from preferences and rewards on models of two layers, in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from safetensors.torch import load_file

from framework.errors import CallerError, ConfigError, Conflict
from framework.messages import assistant, user
from framework.models.chat_text import shared_text
from framework.training.kl_bound import KLBound
from framework.training.pair_accuracy import share
from framework.training.rendering import Renderer
from framework.training.reward_model import RewardModel, score
from framework.training.rows import PreferenceRow

from .conftest import Bench

Rows: TypeAlias = Callable[[int], list[dict[str, Any]]]
QUICK = {"steps": 8, "sequences": 4, "learning_rate": 0.005}
ASCII = """
def ascii(row, answer):
    return sum(letter.isascii() for letter in answer.content) / max(1, len(answer.content))
"""


def held_out(bench: Bench) -> list[PreferenceRow]:
    from framework.training.config import read_config
    from framework.training.start import load

    data, _ = load(read_config(bench.folder / "run.toml"), bench.folder, lambda _: None)
    return [row for row in data.validation if isinstance(row, PreferenceRow)]


def log_probability(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return float(torch.log_softmax(logits, dim=-1)[torch.arange(len(answer)), list(answer)].sum())


# DPO


def test_dpo_makes_better_answers_likelier_against_worse_ones(bench: Bench, preferences: Rows) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    bench.rows(preferences(40))
    run = bench.train(bench.config("dpo", optimizer=QUICK, adapter={"weights": "float32"}, preference={"beta": 0.2}))
    reports = [report for report in run.reports() if "rewards/margins" in report]
    assert reports[-1]["rewards/margins"] > reports[0]["rewards/margins"] + 0.5
    pairs = run.read()["pairs"]
    assert pairs["accuracy"]["mean"] > 0.9
    assert pairs["accuracy"]["low"] < pairs["accuracy"]["mean"] <= pairs["accuracy"]["high"]

    # The same margin, computed with the saved adapter and without TRL.
    base: Any = AutoModelForCausalLM.from_pretrained(bench.base)
    tuned: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bench.base), run.adapter)
    renderer, margins = Renderer(shared_text(bench.base, "tiny")), []
    for row in held_out(bench):
        pair = renderer.pair(row)
        gains = [
            log_probability(tuned, pair.prompt, answer) - log_probability(base, pair.prompt, answer)
            for answer in (pair.chosen, pair.rejected)
        ]
        margins.append(0.2 * (gains[0] - gains[1]))
    assert pairs["accuracy"]["n"] == len(margins)
    assert sum(margins) / len(margins) == pytest.approx(pairs["margin"], rel=1e-4)
    assert f"Of {len(margins)} held-out pairs" in run.card.read_text(encoding="utf-8")


def test_dpo_goes_on_from_an_adapter_and_saves_one(bench: Bench, preferences: Rows) -> None:
    bench.rows(preferences(20))
    first = bench.train(bench.config("dpo", "first", optimizer=QUICK))
    second = bench.train(
        bench.config("dpo", "second", optimizer={**QUICK, "steps": 2}, adapter={"start": "first/adapter"})
    )
    assert {path.name for path in second.adapter.iterdir()} == {path.name for path in first.adapter.iterdir()}
    margins = [report["rewards/margins"] for report in second.reports() if "rewards/margins" in report]
    assert margins[0] == pytest.approx(0, abs=1e-4), "measured against the adapter that it goes on with"


def test_full_tuning_learns_preferences_too(bench: Bench, preferences: Rows) -> None:
    bench.rows(preferences(20))
    run = bench.train(bench.config("dpo", optimizer={**QUICK, "learning_rate": 0.001}, adapter={"kind": "full"}))
    assert run.read()["parameters"]["trained"] == run.read()["parameters"]["all"]
    assert run.read()["pairs"]["accuracy"]["mean"] > 0.8
    assert (run.model / "config.json").is_file()
    assert (run.model / "tokenizer.json").is_file()


# Reward models


@pytest.fixture(params=["lora", "ia3", "full"])
def rated(request: pytest.FixtureRequest, bench: Bench, preferences: Rows) -> Bench:
    """A bench whose run has a reward model."""
    bench.rows(preferences(40))
    rate = {"lora": 0.005, "ia3": 0.05, "full": 0.002}[request.param]
    optimizer = {**QUICK, "steps": 14, "learning_rate": rate}
    bench.train(bench.config("reward", optimizer=optimizer, adapter={"kind": request.param, "weights": "float32"}))
    return bench


def test_a_reward_model_is_right_about_held_out_pairs_and_loads_as_it_was(rated: Bench) -> None:
    record = json.loads((rated.folder / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["pairs"]["accuracy"]["low"] > 0.5, "above chance"
    model = RewardModel(rated.folder / "run")
    margins = [
        model.score((*row.prompt, row.chosen)) - model.score((*row.prompt, row.rejected)) for row in held_out(rated)
    ]
    assert sum(margins) / len(margins) == pytest.approx(record["pairs"]["margin"], rel=1e-4)


def test_a_reward_models_files_are_safetensors_with_its_head(bench: Bench, preferences: Rows) -> None:
    bench.rows(preferences(10))
    run = bench.train(bench.config("reward", optimizer={"steps": 1}))
    tensors = load_file(run.adapter / "adapter_model.safetensors")
    assert any("score" in name for name in tensors)
    assert {path.suffix for path in run.adapter.iterdir()} == {".safetensors", ".json", ".md"}


def test_a_reward_model_says_what_it_can_not_score(bench: Bench, preferences: Rows) -> None:
    bench.rows(preferences(10))
    run = bench.train(bench.config("reward", optimizer={"steps": 1}))
    with pytest.raises(CallerError, match="an assistant's message after another"):
        score(run.path, [user("Is it 1?")])
    with pytest.raises(CallerError, match="There is no reward model"):
        RewardModel(bench.folder)
    about = json.loads((run.adapter / "reward.json").read_text(encoding="utf-8"))
    about["base_sha256"]["model.safetensors"] = "0" * 64
    (run.adapter / "reward.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(Conflict, match=r"trained on another model\.safetensors"):
        score(run.path, [user("Is it 1?"), assistant("yes")])


# GRPO


def grpo(bench: Bench, name: str = "run", steps: int = 12, rate: float = 0.01, **preference: Any) -> Path:
    (bench.folder / "rewards.py").write_text(ASCII, encoding="utf-8")
    whole = {"rewards": ["rewards.py:ascii"], "generations": 8, "max_new_tokens": 3, "beta": 0.01, "kl_bound": 0.5}
    optimizer = {"steps": steps, "sequences": 48, "learning_rate": rate}
    return bench.config("grpo", name, optimizer=optimizer, preference={**whole, **preference})


def test_grpo_raises_its_reward_within_the_bound_of_the_divergence(bench: Bench, questions: Rows) -> None:
    bench.rows(questions(24))
    run = bench.train(grpo(bench))
    record = run.read()
    assert record["reward"]["after"] > record["reward"]["before"] + 0.05
    assert 0 < record["kl"]["measured"] <= record["kl"]["bound"]
    assert all({"reward", "kl", "kl_coefficient"} <= report.keys() for report in run.reports() if "loss" in report)
    assert "Mean reward on held-out prompts" in run.card.read_text(encoding="utf-8")


def test_grpo_that_runs_away_is_held_and_pulled_back(bench: Bench, questions: Rows) -> None:
    bench.rows(questions(24))
    run = bench.train(grpo(bench, steps=6, rate=0.05, kl_bound=0.02))
    assert max(report["kl"] for report in run.reports() if "kl" in report) > 0.02
    assert max(report["kl_coefficient"] for report in run.reports() if "kl_coefficient" in report) > 0.01
    assert run.read()["kl"]["measured"] <= 0.02
    assert run.read()["kl"]["pulled_back"] > 0


def test_a_changed_reward_is_another_run(bench: Bench, questions: Rows) -> None:
    bench.rows(questions(12))
    config = grpo(bench, steps=1)
    bench.train(config)
    (bench.folder / "rewards.py").write_text(ASCII + "\n# changed\n", encoding="utf-8")
    with pytest.raises(Conflict, match="other data"):
        bench.train(config)


@pytest.mark.parametrize(
    ("preference", "said"),
    [
        ({"generations": 5}, "optimizer.sequences is 48, which is no multiple of preference.generations, 5"),
        ({"generations": 1}, "at least 2"),
        ({"beta": 0}, "must be above 0"),
        ({"weights": [1, 2]}, "one for each"),
        ({"rewards": ["bleu"]}, "There is no reward 'bleu'. Known: f1, verbatim, declines, call"),
        ({"rewards": ["none.py:f"]}, "There is no file"),
        ({"rewards": ["rewards.py:f"]}, "has no function 'f'"),
    ],
)
def test_impossible_preferences_are_refused(bench: Bench, questions: Rows, preference: Any, said: str) -> None:
    bench.rows(questions(6))
    with pytest.raises(ConfigError, match=said):
        bench.train(grpo(bench, **preference))


def test_rewards_that_apply_to_no_row_are_refused(bench: Bench, questions: Rows) -> None:
    bench.rows(questions(6))
    with pytest.raises(CallerError, match="None of the rewards applies"):
        bench.train(grpo(bench, rewards=["f1"]))


# The bound, and the interval


def test_the_coefficient_doubles_above_the_bound_and_falls_back_below_half_of_it() -> None:
    bound = KLBound(most=0.2, least=0.1)
    assert [bound.seen(kl) for kl in (0.1, 0.3, 0.3, 0.15, 0.05, 0.05, 0.05)] == [0.1, 0.2, 0.4, 0.4, 0.2, 0.1, 0.1]
    assert max(bound.seen(1.0) for _ in range(20)) == pytest.approx(6.4)


def test_the_coefficient_survives_a_checkpoint(tmp_path: Path) -> None:
    bound = KLBound(most=0.2, least=0.1)
    bound.seen(1.0)
    bound.save(tmp_path / "checkpoint-1")
    again = KLBound(most=0.2, least=0.1)
    again.load(tmp_path / "checkpoint-1")
    assert again.coefficient == 0.2


def test_pulling_back_goes_a_tenth_of_the_way_each_time() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 1.0)
    bound = KLBound(most=0.2, least=0.1)
    bound.begin(model)
    torch.nn.init.constant_(model.weight, 2.0)
    found = []
    for times in range(1, 11):
        bound.pull_back(model, times)
        found.append(float(model.weight.detach()))
    assert found == pytest.approx([1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1, 1.0])


def test_an_interval_is_wilsons_where_each_pair_has_a_document_of_its_own() -> None:
    found = share([True] * 8 + [False] * 2, [str(n) for n in range(10)])
    assert (found.mean, found.n) == (0.8, 10)
    assert found.low == pytest.approx(0.490, abs=0.02)
    assert found.high == pytest.approx(0.943, abs=0.01)


def test_pairs_of_few_documents_have_a_wider_interval() -> None:
    hits = [True] * 30 + [False] * 10
    apart = share(hits, [str(n) for n in range(40)])
    together = share(hits, [str(n // 10) for n in range(40)])
    assert together.low < apart.low - 0.1
    assert share([True] * 40, ["one"] * 40).low < 0.3
