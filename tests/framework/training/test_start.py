"""`lectern train`: what is wrong is said before anything is trained, and a run is what its file and its data were."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from click.testing import CliRunner

from framework.errors import CallerError, ConfigError, Conflict, TooLarge
from framework.training.commands import train as command
from framework.training.config import TrainConfig, read_config
from framework.training.leaks import find_leaks, held_out_row
from framework.training.rows import ChatRow
from framework.training.run import RunFolder, file_hash, files_hash
from framework.training.start import load, run_file

from .conftest import Bench

Rows: TypeAlias = Callable[[int], list[dict[str, Any]]]


def refused(bench: Bench, config: Path, kind: type[CallerError] = CallerError) -> str:
    """The error of a run that must not begin."""
    with pytest.raises(kind) as caught:
        bench.train(config)
    assert not (bench.folder / config.stem / "log.jsonl").exists(), "nothing was trained"
    return str(caught.value)


# The file


def test_an_unknown_key_is_named_with_the_one_that_is_meant(bench: Bench, questions: Rows) -> None:
    bench.rows(questions(4))
    said = refused(bench, bench.config(optimizer={"learnin_rate": 1}), ConfigError)
    assert said.endswith("run.toml: unknown key optimizer.learnin_rate. Do you mean learning_rate?")


def test_a_key_that_is_missing_is_named(bench: Bench, questions: Rows) -> None:
    bench.rows(questions(4))
    path = bench.config()
    path.write_text(re.sub(r"^name = .*\n", "", path.read_text(), flags=re.MULTILINE))
    assert refused(bench, path, ConfigError).endswith("run.toml: name is missing.")


def test_a_value_of_the_wrong_type_is_named_with_its_place(bench: Bench, questions: Rows) -> None:
    bench.rows(questions(4))
    said = refused(bench, bench.config(optimizer={"steps": "many"}), ConfigError)
    assert "optimizer.steps: " in said
    assert "'many'" in said


def test_a_recipe_that_there_is_not_lists_those_that_there_are(bench: Bench) -> None:
    said = refused(bench, bench.config("rlhf"), ConfigError)
    assert "'sft', 'dpo', 'reward', 'grpo', 'embedding' or 'reranker'" in said


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("optimizer", "learning_rate", 0, "must be above 0, got 0"),
        ("optimizer", "learning_rate", float("inf"), "must be a finite number"),
        ("optimizer", "steps", -1, "must be at least 0, got -1"),
        ("optimizer", "epochs", 0, "must be above 0"),
        ("optimizer", "sequences", 0, "must be at least 1"),
        ("optimizer", "warmup", 1.5, "must be below 1, got 1.5"),
        ("checkpoints", "every", 0, "must be at least 1"),
        ("data", "max_length", 0, "must be at least 1"),
        ("data", "validation_share", 1, "must be below 1"),
        ("adapter", "rank", 0, "must be at least 1"),
        ("pairs", "negatives", -1, "must be at least 0"),
    ],
)
def test_an_impossible_number_is_named_with_its_key(
    bench: Bench, section: str, key: str, value: float, said: str
) -> None:
    config = bench.config(**{section: {key: value}})
    config.write_text(config.read_text(encoding="utf-8").replace("Infinity", "inf"), encoding="utf-8")
    assert f"{section}.{key}: {said}" in refused(bench, config, ConfigError)


@pytest.mark.parametrize(
    ("recipe", "sections", "field"),
    [
        ("reranker", {"adapter": {"kind": "full"}}, "adapter.kind"),
        ("reranker", {"adapter": {"kind": "ia3"}}, "adapter.kind"),
        ("embedding", {"adapter": {"kind": "ia3"}}, "adapter.kind"),
        ("reranker", {"pairs": {"kind": "cross-encoder", "negatives": 0}}, "pairs.negatives"),
        ("embedding", {"adapter": {"start": "first/adapter"}}, "adapter.start"),
        ("reranker", {"adapter": {"start": "first/adapter"}}, "adapter.start"),
        ("reward", {"adapter": {"start": "first/adapter"}}, "adapter.start"),
        ("sft", {"adapter": {"kind": "full", "start": "first/adapter"}}, "adapter.start"),
        ("sft", {"adapter": {"kind": "full"}, "publish": {"live": True}}, "publish.live"),
        ("reward", {"publish": {"live": True}}, "publish.live"),
        ("embedding", {"publish": {"live": True}}, "publish.live"),
        ("reranker", {"publish": {"live": True}}, "publish.live"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_made(
    bench: Bench, recipe: str, sections: dict[str, dict[str, Any]], field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        bench.train(bench.config(recipe, **sections))
    assert caught.value.field == field
    assert not (bench.folder / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "sections"),
    [
        ("reranker", {"pairs": {"kind": "cross-encoder"}, "adapter": {"kind": "full"}}),
        ("embedding", {"adapter": {"kind": "full"}}),
        (
            "grpo",
            {
                "adapter": {"start": "first/adapter", "kind": "ia3"},
                "publish": {"live": True},
                "optimizer": {"sequences": 4},
            },
        ),
    ],
)
def test_what_goes_together_is_read(bench: Bench, recipe: str, sections: dict[str, dict[str, Any]]) -> None:
    assert read_config(bench.config(recipe, **sections)).recipe == recipe


def test_a_name_that_no_adapter_can_have_is_refused_before_anything_is_made(bench: Bench) -> None:
    config = bench.config()
    config.write_text(config.read_text(encoding="utf-8").replace('"tiny"', '"a name"'), encoding="utf-8")
    assert "'a name' can't name an adapter" in refused(bench, config)


def test_a_missing_configuration_is_named(bench: Bench) -> None:
    with pytest.raises(ConfigError, match=r"There is no file .*none\.toml"):
        bench.train(bench.folder / "none.toml")


def test_a_file_that_is_no_toml_is_named(bench: Bench) -> None:
    path = bench.folder / "broken.toml"
    path.write_text("recipe = ", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
        read_config(path)


def test_sections_that_a_recipe_does_not_read_are_no_part_of_its_run() -> None:
    assert {"pairs", "preference"}.isdisjoint(TrainConfig("sft", "x").values())
    assert "preference" in TrainConfig("grpo", "x").values()


def test_the_command_prints_the_run_folder_and_nothing_else(
    bench: Bench, questions: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.rows(questions(8))
    monkeypatch.setenv("LECTERN_LECTERN__HOME", str(bench.folder / "home"))
    done = CliRunner().invoke(command, [str(bench.config(optimizer={"steps": 1}))])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{bench.folder / 'run'}\n"


# The data


def test_a_missing_data_file_is_named(bench: Bench) -> None:
    assert "rows.jsonl" in refused(bench, bench.config())


def test_a_pattern_that_matches_nothing_is_named(bench: Bench) -> None:
    assert "data.train: nothing matches" in refused(bench, bench.config(data={"train": ["*.gz"]}), ConfigError)


def test_a_variable_that_is_not_set_is_named(bench: Bench) -> None:
    assert "${NOWHERE}" in refused(bench, bench.config(data={"train": ["${NOWHERE}/a.jsonl"]}), ConfigError)


def test_data_without_rows_is_refused(bench: Bench) -> None:
    bench.rows([])
    assert "rows.jsonl has no rows" in refused(bench, bench.config())
    assert "nothing to train on" in refused(bench, bench.config(data={"train": []}))


def test_a_broken_row_is_named_by_its_line(bench: Bench, questions: Rows) -> None:
    bench.rows([*questions(2), {"messages": []}])
    assert "rows.jsonl:3: messages must be a list of messages" in refused(bench, bench.config())


def test_an_example_that_is_too_long_is_refused(bench: Bench, questions: Rows) -> None:
    bench.rows(questions(4))
    assert "the limit is 20. Shorten it, or raise data.max_length." in refused(
        bench, bench.config(data={"max_length": 20}), TooLarge
    )


@pytest.mark.parametrize("recipe", ["dpo", "reward"])
def test_a_pair_that_is_too_long_is_refused(bench: Bench, preferences: Rows, recipe: str) -> None:
    bench.rows(preferences(4))
    said = refused(bench, bench.config(recipe, data={"max_length": 20}), TooLarge)
    assert "the limit is 20" in said


def test_rows_of_another_kind_are_refused(bench: Bench, preferences: Rows) -> None:
    bench.rows(preferences(4))
    assert "has preference rows, and this recipe learns from chat rows" in refused(bench, bench.config())


# The split


def test_no_document_has_rows_on_both_sides_of_the_split(bench: Bench) -> None:
    bench.rows(
        [
            {"messages": [{"role": "user", "content": f"{n} of {d}?"}, {"role": "assistant", "content": f"{d * n}."}],
             "document": f"d{d}"}
            for d in range(30)
            for n in range(5)
        ]
    )  # fmt: skip
    data, _ = load(read_config(bench.config()), bench.folder, bench.said.append)
    train, held_out = ({row.document for row in rows} for rows in (data.train, data.validation))
    assert train.isdisjoint(held_out)
    assert len(train | held_out) == 30
    assert 3 <= len(held_out) <= 15
    assert load(read_config(bench.config()), bench.folder, bench.said.append)[0] == data, "the same each time"


def asked_again(rooms: int, ways: int) -> list[dict[str, Any]]:
    """Pairs as people write them: each thing is asked in several ways, and answered in the same words."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Way {way} to ask about {room}?"},
                {"role": "assistant", "content": f"{room} " + " ".join(f"{word}{room}" for word in "abcdefghijklmn")},
            ]
        }
        for room in (f"R{room}" for room in range(rooms))
        for way in range(ways)
    ]


def test_what_training_rows_give_away_is_left_out_of_an_automatic_split(bench: Bench) -> None:
    bench.rows([*asked_again(10, 2), *asked_again(10, 1)[5:]])
    data, _ = load(read_config(bench.config()), bench.folder, bench.said.append)
    assert data.validation, "rows that nothing gives away stay"
    assert not find_leaks(data.train, [held_out_row(row, "") for row in data.validation])
    assert re.search(r"Of \d+ rows kept back \d+ are left out: training rows say the same", bench.said[0])


def test_rows_that_all_say_the_same_are_all_trained_on(bench: Bench) -> None:
    bench.rows(asked_again(2, 8))
    data, _ = load(read_config(bench.config()), bench.folder, bench.said.append)
    assert (len(data.train), len(data.validation)) == (16, 0)
    assert bench.said[0].startswith("Nothing is kept back to measure the loss on")
    assert bench.train(bench.config(optimizer={"steps": 1})).read()["state"] == "finished"


def test_what_many_documents_answer_gives_nothing_away(bench: Bench) -> None:
    decline = "I am sorry, but nothing that I have been given to read says anything about what you ask me here."
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": decline}]}
        for n in range(20)
    ]
    bench.rows([*rows, *asked_again(6, 3)])
    data, _ = load(read_config(bench.config()), bench.folder, bench.said.append)
    assert sum(decline == row.messages[-1].content for row in data.validation if isinstance(row, ChatRow)) > 1


def test_pairs_that_no_rule_spoils_are_said_to_be_so(bench: Bench, questions: Rows) -> None:
    bench.rows(questions(4))
    assert "No rule could make a worse answer than those of data.train" in refused(bench, bench.config("dpo"))


def test_a_held_out_question_among_the_training_rows_stops_the_run(bench: Bench, questions: Rows) -> None:
    planted = "Which of the nine harbours on the northern shore was closed after the storm of 1911?"
    leak = {"messages": [{"role": "user", "content": planted}, {"role": "assistant", "content": "Ravensey."}]}
    bench.rows([*questions(6), leak])
    bench.rows([{"messages": leak["messages"]}], "heldout.jsonl")
    said = refused(bench, bench.config(data={"exclude": ["heldout.jsonl"]}))
    assert "1 training rows hold what is held out" in said
    assert "'d6'" in said


def test_a_row_in_training_and_validation_stops_the_run(bench: Bench, questions: Rows) -> None:
    planted = "Which of the nine harbours on the northern shore was closed after the storm of 1911?"
    leak = {"messages": [{"role": "user", "content": planted}, {"role": "assistant", "content": "Ravensey."}]}
    bench.rows([*questions(6), leak])
    bench.rows([{**leak, "document": "other"}], "validation.jsonl")
    said = refused(bench, bench.config(data={"validation": ["validation.jsonl"]}))
    assert "hold what is held out" in said


# An adapter to go on from


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"rank": 8}, "adapter.rank is 8, and the adapter in .* has 4"),
        ({"alpha": 3}, "adapter.alpha is 3.0, and the adapter in .* has 8"),
        ({"kind": "ia3"}, "adapter.kind is 'ia3', and the adapter in .* has 'lora'"),
        ({"targets": ["q_proj"]}, r"adapter.targets is \['q_proj'\], and the adapter in .* has \['down_proj', "),
    ],
)
def test_a_run_goes_on_only_from_an_adapter_of_its_form(
    bench: Bench, questions: Rows, adapter: dict[str, Any], said: str
) -> None:
    bench.rows(questions(8))
    bench.train(bench.config(name="first", optimizer={"steps": 1}))
    config = bench.config(adapter={"start": "first/adapter", **adapter})
    assert re.search(said, refused(bench, config, ConfigError))


def test_a_run_goes_on_only_from_an_adapter_of_its_base(bench: Bench, questions: Rows) -> None:
    bench.rows(questions(8))
    bench.train(bench.config(name="first", optimizer={"steps": 1}))
    config = bench.config(optimizer={"steps": 1}, adapter={"start": "first/adapter"})
    other = bench.folder / "other"
    shutil.copytree(bench.base, other)
    (other / "config.json").write_text((other / "config.json").read_text(encoding="utf-8") + " ", encoding="utf-8")
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace(str(bench.base), str(other)), encoding="utf-8")
    assert "trained on another base" in refused(bench, config, Conflict)
    config.write_text(text, encoding="utf-8")
    data = bench.train(config).read()["facts"]["data"]
    first = bench.folder / "first" / "adapter"
    assert data["adapter_config.json"] == file_hash(first / "adapter_config.json")
    assert data["adapter_model.safetensors"] == file_hash(first / "adapter_model.safetensors")


def test_a_run_goes_on_from_an_adapter_that_there_is(bench: Bench, questions: Rows) -> None:
    bench.rows(questions(8))
    assert "There is no adapter in" in refused(bench, bench.config(adapter={"start": "first/adapter"}))


# The run folder


def test_a_run_leaves_log_curves_and_a_card_with_hashes(bench: Bench, questions: Rows) -> None:
    rows = bench.rows(questions(12))
    run = bench.train(bench.config())
    assert [report["step"] for report in run.reports() if "loss" in report] == [1, 2, 3, 4]
    assert [report["step"] for report in run.reports() if "validation_loss" in report] == [4]
    assert (run.path / "curves.png").read_bytes().startswith(b"\x89PNG")
    card = run.card.read_text(encoding="utf-8")
    assert f"| rows.jsonl | `{file_hash(rows)[:16]}" in card
    assert "MIT (" in card
    assert 'precision = "float32"' in card
    record = run.read()
    assert record["state"] == "finished"
    assert record["facts"]["data"] == {"rows.jsonl": file_hash(rows)}
    assert record["facts"]["base"]["files"]["model.safetensors"] == file_hash(bench.base / "model.safetensors")
    assert record["parameters"]["trained"] < record["parameters"]["all"]


def test_an_adapter_names_its_base_and_holds_nothing_but_itself(bench: Bench, questions: Rows) -> None:
    bench.rows(questions(8))
    run = bench.train(bench.config(optimizer={"steps": 1}))
    assert {path.name for path in run.adapter.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    config = json.loads((run.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(bench.base)


def test_a_run_of_fewer_updates_than_a_report_tells_its_first_loss(bench: Bench, questions: Rows) -> None:
    bench.rows(questions(8))
    run = bench.train(bench.config(optimizer={"steps": 3}, checkpoints={"every": 50}))
    assert [report["step"] for report in run.reports() if "loss" in report] == [1]


@pytest.mark.parametrize("steps", [2, 4])
def test_a_run_that_diverges_says_so_and_is_not_finished(bench: Bench, questions: Rows, steps: int) -> None:
    bench.rows(questions(8))
    config = bench.config(optimizer={"steps": steps, "learning_rate": 1e38})
    with pytest.raises(CallerError, match=r"diverged at update [123].*Lower optimizer\.learning_rate"):
        bench.train(config)
    run = RunFolder(bench.folder / "run")
    assert run.read()["state"] == "running"
    assert "NaN" not in run.log_file.read_text(encoding="utf-8")
    assert not run.adapter.exists()


def test_a_run_is_not_finished_before_its_card_is_written(
    bench: Bench, questions: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.rows(questions(8))
    config = bench.config(optimizer={"steps": 1})

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("framework.training.card.write", full)
        with pytest.raises(OSError, match="No space"):
            bench.train(config)
    assert "# tiny" in bench.train(config).card.read_text(encoding="utf-8")


def test_a_finished_run_is_left_alone(bench: Bench, questions: Rows) -> None:
    bench.rows(questions(8))
    run = bench.train(bench.config(optimizer={"steps": 1}))
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    bench.train(bench.config(optimizer={"steps": 1}))
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    assert "finished already" in bench.said[-1]


def test_a_run_folder_takes_no_other_configuration_and_no_other_data(bench: Bench, questions: Rows) -> None:
    bench.rows(questions(8))
    config = bench.config(optimizer={"steps": 1})
    run = bench.train(config)
    with pytest.raises(Conflict, match="holds a run with other config"):
        bench.train(bench.config(optimizer={"steps": 2}))
    config = bench.config(optimizer={"steps": 1})
    bench.rows(questions(9))
    with pytest.raises(Conflict, match=r"holds a run with other data.*--restart"):
        bench.train(config)
    bench.train(config, restart=True)
    assert run.read()["rows"]["train"] + run.read()["rows"]["validation"] == 9


def test_a_run_that_never_began_does_not_stand_in_the_way(bench: Bench, questions: Rows) -> None:
    bench.rows(questions(8))
    refused(bench, bench.config(data={"max_length": 20}), TooLarge)
    assert bench.train(bench.config(data={"max_length": 200})).read()["state"] == "finished"


def test_a_folder_with_something_else_in_it_is_not_touched(bench: Bench, questions: Rows) -> None:
    bench.rows(questions(8))
    (bench.folder / "run").mkdir()
    (bench.folder / "run" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(Conflict, match="holds something that is no run"):
        bench.train(bench.config(), restart=True)
    assert (bench.folder / "run" / "thesis.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("record", ['{"fingerprint": "1", "metrics": {}}', "{"])
@pytest.mark.parametrize("restart", [False, True])
def test_the_folder_of_an_evaluation_is_not_touched(bench: Bench, questions: Rows, record: str, restart: bool) -> None:
    bench.rows(questions(8))
    (bench.folder / "run").mkdir()
    (bench.folder / "run" / "run.json").write_text(record, encoding="utf-8")
    with pytest.raises(Conflict, match="holds something that is no run of `lectern train`"):
        bench.train(bench.config(), restart=restart)
    assert (bench.folder / "run" / "run.json").read_text(encoding="utf-8") == record


@pytest.mark.parametrize("restart", [False, True])
def test_a_folder_that_another_process_trains_in_is_not_touched(
    bench: Bench, questions: Rows, restart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.rows(questions(8))
    config = bench.config(optimizer={"steps": 2})
    said: list[str] = []

    def meanwhile(run: RunFolder, *_: Any) -> None:
        # A second start while the first evaluates, of a file that was edited: no state keeps it from beginning anew.
        bench.config(optimizer={"steps": 3})
        with pytest.raises(Conflict) as caught:
            run_file(config, bench.settings, say=lambda _: None, restart=restart)
        said.append(str(caught.value))

    monkeypatch.setattr("framework.training.scores.measure", meanwhile)
    run = bench.train(config)
    assert said == [f"Process {os.getpid()} trains in {run.path}. Wait for it, or choose another `out`."] * 2
    assert run.read()["facts"]["config"]["optimizer"]["steps"] == 2
    assert run.read()["state"] == "finished"


def test_a_reward_model_answers_nothing_and_is_not_evaluated(
    bench: Bench, preferences: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.rows(preferences(8))
    moments: list[str] = []
    monkeypatch.setattr("framework.training.scores.measure", lambda *given: moments.append(given[4]))
    bench.train(bench.config("reward", "rated", optimizer={"steps": 1}))
    assert not moments
    bench.train(bench.config("dpo", "tuned", optimizer={"steps": 1}))
    assert moments == ["before", "after"]


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_text(folder, encoding="utf-8")
    paths = [tmp_path / "a" / "rows.jsonl", tmp_path / "b" / "rows.jsonl"]
    assert set(files_hash(paths)) == {"a/rows.jsonl", "b/rows.jsonl"}
    assert set(files_hash(paths[:1])) == {"rows.jsonl"}


def test_a_report_that_a_kill_has_cut_off_is_passed_over(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.log({"step": 1, "loss": 2.0})
    with run.log_file.open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "lo')
    run.log({"step": 2, "loss": 1.0})
    assert [report["loss"] for report in run.reports()] == [2.0, 1.0]


def test_a_checkpoint_that_a_kill_has_cut_off_is_not_taken_up(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step, state in ((2, "{}"), (4, '{"epo')):
        folder = run.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(state, encoding="utf-8")
    last = run.last_checkpoint()
    assert last is not None
    assert last.name == "checkpoint-2"


def test_a_reward_that_is_no_number_is_refused(bench: Bench, questions: Rows) -> None:
    bench.rows(questions(8))
    (bench.folder / "rewards.py").write_text("def odd(row, answer):\n    return float('nan')\n", encoding="utf-8")
    said = refused(bench, bench.config("grpo", preference={"rewards": ["rewards.py:odd"], "generations": 2}))
    assert "must be a finite number or None, got nan" in said


def test_the_files_of_an_adapter_are_the_same_for_the_same_run(bench: Bench, questions: Rows) -> None:
    bench.rows(questions(8))
    saved = json.loads((bench.train(bench.config()).adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert saved["target_modules"] == sorted(saved["target_modules"])
    assert len(saved["target_modules"]) > 1
