"""What a run made becomes live through the parity gate only, and a name says what is known of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from framework.cli import root
from framework.config import Settings
from framework.engine.lora import identify
from framework.errors import CallerError, Conflict, NotFound
from framework.models.adapter_files import linears_of
from framework.models.adapters import AdapterStore
from framework.models.chat import check_chat
from framework.models.config import ModelsConfig
from framework.models.named_adapter import Checked
from framework.testing.adapters import write_lora
from framework.testing.tiny_chat import write_tiny_chat
from framework.training import publish as publishing
from framework.training.parity import Compared, ParityReport, read_report
from framework.training.probes import REFERENCE, Probes, load_trained, record
from framework.training.publish import Trained, check, publish_folder
from framework.training.run import file_hash

pytestmark = pytest.mark.usefixtures("nothing_ships")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_chat(tmp_path_factory.mktemp("publish") / "base")


@pytest.fixture
def settings(tmp_path: Path, base: Path) -> Settings:
    values: dict[str, Mapping[str, Any]] = {
        "lectern": {"home": str(tmp_path / "home")},
        "models": {"chat": str(base), "engine": {"device": "cpu"}},
    }
    return Settings(values, base=tmp_path)


@pytest.fixture
def store(settings: Settings) -> AdapterStore:
    return AdapterStore.open(settings)


def run_folder(place: Path, base: Path, seed: int = 1, recorded: bool = False) -> Path:
    """A run's folder as training leaves it."""
    linears = {name: shape for name, shape in linears_of(base).items() if "." in name}
    adapter = write_lora(place / "adapter", linears, seed=seed, size=0.1)
    files = {path.name: file_hash(path) for path in base.iterdir() if path.suffix in (".json", ".safetensors")}
    record_ = {"state": "finished", "facts": {"base": {"name": str(base), "files": files}}}
    (place / "run.json").write_text(json.dumps(record_))
    if recorded:
        record(load_trained(base, adapter), Probes.generated(base)).save(place / REFERENCE)
    return place


def break_scale(run: Path) -> Path:
    """An export fault: the saved scale is not the trained one."""
    path = run / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 99}))
    return run


def test_what_passes_is_live_and_its_report_lies_beside_it(
    base: Path, settings: Settings, store: AdapterStore, tmp_path: Path
) -> None:
    run = run_folder(tmp_path / "run", base, recorded=True)
    done = publish_folder("answers", run, settings)
    assert done.adapter is not None
    assert done.adapter.state == "live"
    assert store.show("answers", "default") == done.adapter
    assert read_report(run / "adapter") == done.report
    assert done.report.compared[0].name == "export"
    check_chat(f"{base}:answers", settings.section("models", ModelsConfig), settings=settings)


def test_an_export_fault_is_registered_as_refused_with_the_reason(
    base: Path, settings: Settings, store: AdapterStore, tmp_path: Path
) -> None:
    run = break_scale(run_folder(tmp_path / "run", base, recorded=True))
    done = publish_folder("answers", run, settings)
    assert not done.report.passed
    found = store.show("answers", "default")
    assert found.state == "refused"
    assert found.reason.startswith("export: ")
    with pytest.raises(Conflict, match="failed the parity gate: export"):
        store.get("answers", "default", str(base))
    with pytest.raises(Conflict, match="failed the parity gate"):
        store.change("answers", "default", active=True)
    with pytest.raises(Conflict, match="failed the parity gate"):
        check_chat(f"{base}:answers", settings.section("models", ModelsConfig), settings=settings)


def test_what_fails_takes_the_place_of_nothing(
    base: Path, settings: Settings, store: AdapterStore, tmp_path: Path
) -> None:
    good = publish_folder("answers", run_folder(tmp_path / "one", base), settings).adapter
    bad = break_scale(run_folder(tmp_path / "two", base, seed=2, recorded=True))
    done = publish_folder("answers", bad, settings, overwrite=True)
    assert not done.report.passed
    assert store.show("answers", "default") == good


def test_a_name_with_other_content_is_not_replaced_by_chance(
    base: Path, settings: Settings, store: AdapterStore, tmp_path: Path
) -> None:
    first = publish_folder("answers", run_folder(tmp_path / "one", base), settings).adapter
    other = run_folder(tmp_path / "two", base, seed=2)
    with pytest.raises(Conflict, match="other content") as caught:
        publish_folder("answers", other, settings)
    assert "eval promote" in caught.value.hint
    assert publish_folder("answers", tmp_path / "one", settings).adapter == first
    made = publish_folder("answers", other, settings, overwrite=True).adapter
    assert made is not None
    assert made.digest != first.digest  # type: ignore[union-attr]
    assert made.state == "live"


def test_the_wrong_base_is_told_before_anything_is_computed(base: Path, settings: Settings, tmp_path: Path) -> None:
    other = write_tiny_chat(tmp_path / "other", seed=7)
    run = run_folder(tmp_path / "run", base)
    with pytest.raises(Conflict, match="trained on another base: model"):
        publish_folder("answers", run, settings, base=str(other))


def test_what_was_added_from_elsewhere_is_unchecked_until_it_is_checked(
    base: Path, settings: Settings, store: AdapterStore, tmp_path: Path
) -> None:
    from framework.models.catalog import Catalog

    run = run_folder(tmp_path / "run", base)
    added = store.add("foreign", run / "adapter", Catalog().resolve(str(base)), "default")
    assert added.state == "unchecked"
    assert store.get("foreign", "default", str(base))
    done = check("foreign", settings)
    assert done.report.passed
    assert store.show("foreign", "default").state == "live"


def test_a_live_adapter_whose_trainer_says_otherwise_is_refused_and_comes_back(
    base: Path, settings: Settings, store: AdapterStore, tmp_path: Path
) -> None:
    publish_folder("answers", run_folder(tmp_path / "one", base), settings)
    other = run_folder(tmp_path / "two", base, seed=2)
    done = check("answers", settings, against=other)
    assert not done.report.passed
    assert store.show("answers", "default").state == "refused"
    assert done.report.adapter == identify(tmp_path / "one" / "adapter").digest
    assert check("answers", settings, against=tmp_path / "one").report.passed
    assert store.show("answers", "default").state == "live"


def test_content_that_changed_while_it_was_compared_is_not_registered(
    base: Path, settings: Settings, store: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_folder(tmp_path / "run", base)
    compare = publishing.check_parity

    def meanwhile(*arguments: Any, **options: Any) -> ParityReport:
        report = compare(*arguments, **options)
        run_folder(tmp_path / "run", base, seed=5)
        return report

    monkeypatch.setattr(publishing, "check_parity", meanwhile)
    with pytest.raises(Conflict, match="changed meanwhile"):
        publish_folder("answers", run, settings)
    assert store.list("default") == []


def test_another_tenant_s_adapter_is_neither_checked_nor_replaced(
    base: Path, settings: Settings, store: AdapterStore, tmp_path: Path
) -> None:
    ours = publish_folder("answers", run_folder(tmp_path / "one", base), settings).adapter
    theirs = Settings({**settings.values, "lectern": {**settings.values["lectern"], "tenant": "other"}}, settings.base)
    with pytest.raises(NotFound, match="There is no adapter 'answers'"):
        check("answers", theirs)
    made = publish_folder("answers", run_folder(tmp_path / "two", base, seed=2), theirs).adapter
    assert made is not None
    assert made.tenant == "other"
    assert store.show("answers", "default") == ours


def test_a_state_file_from_before_the_gate_is_read_as_unchecked(
    base: Path, settings: Settings, store: AdapterStore, tmp_path: Path
) -> None:
    publish_folder("answers", run_folder(tmp_path / "run", base), settings)
    path = store.folder / "adapters.json"
    table = json.loads(path.read_text())
    kept = ("tenant", "name", "base", "digest", "bytes", "added", "active", "pinned")
    table["adapters"] = [{key: row[key] for key in kept} for row in table["adapters"]]
    path.write_text(json.dumps(table))
    assert store.show("answers", "default").state == "unchecked"


@pytest.mark.parametrize(("name", "said"), [("../../x", "can't name an adapter"), ("a/b", "can't name an adapter")])
def test_a_bad_name_is_refused_first(base: Path, settings: Settings, tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(CallerError, match=said):
        publish_folder(name, tmp_path, settings)


def test_a_folder_without_an_adapter_is_told(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(CallerError, match="holds no adapter"):
        publish_folder("answers", tmp_path, settings)
    with pytest.raises(CallerError, match="holds no adapter"):
        Trained.read(tmp_path / "nowhere")


def test_the_gate_s_word_counts_for_the_content_that_it_saw_only(
    base: Path, settings: Settings, store: AdapterStore, tmp_path: Path
) -> None:
    publish_folder("answers", run_folder(tmp_path / "run", base), settings)
    with pytest.raises(Conflict, match="changed meanwhile"):
        store.mark("answers", "default", Checked("0" * 64, passed=False, reason="x"))
    assert store.show("answers", "default").state == "live"


def lectern(settings: Settings, *arguments: object) -> Result:
    chat = settings.values["models"]["chat"]
    home = {"LECTERN_LECTERN__HOME": str(settings.home), "LECTERN_MODELS__CHAT": f'"{chat}"'}
    return CliRunner().invoke(root, ["adapters", *map(str, arguments)], env=home)


def test_on_the_command_line_the_exit_status_is_the_gate_s(base: Path, settings: Settings, tmp_path: Path) -> None:
    good = run_folder(tmp_path / "good", base)
    bad = break_scale(run_folder(tmp_path / "bad", base, seed=2, recorded=True))
    done = lectern(settings, "publish", "answers", good)
    assert done.exit_code == 0, done.output
    assert "answers is live." in done.output
    failed = lectern(settings, "publish", "worse", bad)
    assert failed.exit_code == 1
    assert "The parity gate has failed. export: " in failed.output
    shown = lectern(settings, "list").output.splitlines()
    assert "live" in shown[0]
    assert "refused" in shown[1]
    assert "export: " in shown[1]
    assert json.loads(lectern(settings, "check", "answers", "--json").stdout)["state"] == "live"
    assert lectern(settings, "publish", "answers", bad, "--replace").exit_code == 1
    assert isinstance(lectern(settings, "publish", "answers", bad).exception, Conflict)
    assert json.loads(lectern(settings, "show", "answers", "--json").stdout)["state"] == "live"


def test_a_report_names_the_first_problem_and_counts_the_others(base: Path, settings: Settings, tmp_path: Path) -> None:
    report = publish_folder("answers", run_folder(tmp_path / "run", base), settings).report
    wrong: list[Compared] = [replace(one, problem="wrong") for one in report.compared]
    assert replace(report, compared=tuple(wrong[:2])).reason == f"{wrong[0].name}: wrong (and in 1 more)"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_lectern_train_makes_an_adapter_live(base: Path, settings: Settings, tmp_path: Path, precision: str) -> None:
    """From rows to a live adapter: the model in training is recorded, saved, served, and all three agree."""
    rows = [
        {
            "messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}],
            "document": f"d{n}",
            "provenance": {"source": "test", "licence": "Apache-2.0", "synthetic": True},
        }
        for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "answers.toml"
    file.write_text(
        f"""
recipe = "sft"
name = "answers"
base = {json.dumps(str(base))}
out = "run"
[data]
train = ["rows.jsonl"]
validation_share = 0.2
max_length = 256
[optimizer]
steps = 3
sequences = 2
learning_rate = 0.01
precision = "{precision}"
[publish]
live = true
"""
    )
    chat = settings.values["models"]["chat"]
    home = {"LECTERN_LECTERN__HOME": str(settings.home), "LECTERN_MODELS__CHAT": f'"{chat}"'}
    done = CliRunner().invoke(root, ["train", str(file)], env=home)
    assert done.exit_code == 0, done.output
    assert "answers is live." in done.stdout
    assert done.stdout.splitlines()[2].startswith("export ")
    report = read_report(tmp_path / "run" / "adapter")
    assert report is not None
    assert report.passed
    found = AdapterStore.open(settings).show("answers", "default")
    assert (found.state, found.digest) == ("live", report.adapter)
