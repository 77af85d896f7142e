"""The parity gate: what is served as trained passes in every precision, and every planted fault is caught."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from framework.engine.lora import identify
from framework.errors import CallerError, ModelUnavailable, OperatorError, StoreCorrupt
from framework.models.adapter_files import linears_of
from framework.testing.adapters import write_ia3, write_lora
from framework.testing.tiny_chat import write_tiny_chat
from framework.training.parity import REPORT, TOLERANCES, check_parity, compare, read_report
from framework.training.probes import Answers, Probes, Reference, from_files, load_trained, record
from framework.training.served import Precision, answer, precisions

Tensors = dict[str, torch.Tensor]
SIZE = 0.15


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_chat(tmp_path_factory.mktemp("parity") / "base")


@pytest.fixture(scope="module")
def linears(base: Path) -> Mapping[str, tuple[int, int]]:
    return {name: shape for name, shape in linears_of(base).items() if "." in name}


@pytest.fixture(scope="module")
def adapter(base: Path, linears: Mapping[str, tuple[int, int]]) -> Path:
    return write_lora(base.parent / "adapter", linears, seed=1, size=SIZE)


@pytest.fixture(scope="module")
def reference(base: Path, adapter: Path) -> Reference:
    return from_files(base, adapter, Probes.generated(base))


def ways(base: Path) -> tuple[Precision, ...]:
    return precisions(base, "cpu")


def judged(base: Path, folder: Path, reference: Reference) -> dict[str, str]:
    """The problem that the gate has with each precision; empty where it has none."""
    return {
        way.name: compare(way.name, reference, answer(base, identify(folder), way, reference), TOLERANCES[way.dtype])
        .problem
        for way in ways(base)
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["lora", "ia3", "mixed ranks", "bfloat16"])
def test_an_adapter_that_is_served_as_trained_passes_in_every_precision(
    base: Path, linears: Mapping[str, tuple[int, int]], tmp_path: Path, kind: str
) -> None:
    if kind == "ia3":
        folder = write_ia3(tmp_path / "a", linears, seed=3)
    elif kind == "mixed ranks":
        folder = write_lora(tmp_path / "a", linears, seed=3, size=SIZE, ranks={"layers.1.mlp.up_proj": 2})
    else:
        folder = write_lora(tmp_path / "a", linears, seed=3, size=SIZE)
    if kind == "bfloat16":
        changed(folder, lambda tensors, config: {name: t.bfloat16() for name, t in tensors.items()})
    report = check_parity(base, folder, name="tiny", device="cpu")
    assert report.passed, report.table()
    assert report.reason == ""
    assert [one.name for one in report.compared] == [way.name for way in ways(base)]
    exact = [one.figures for one in report.compared if one.name.startswith("float32")]
    assert exact
    assert all(figures.largest < 1e-3 for figures in exact)


def test_the_torch_fallback_is_asked_too(base: Path) -> None:
    names = [way.name for way in ways(base)]
    assert {"float32, torch", "bfloat16, torch", "int8, torch"} <= set(names)
    compiled = [name for name in names if name.endswith("kernels")]
    assert compiled in ([], ["float32, kernels", "bfloat16, kernels", "int8, kernels"])


def changed(folder: Path, change: Callable[[Tensors, dict[str, Any]], Tensors]) -> Path:
    """The adapter with its tensors, and in place its configuration, changed."""
    path, config_path = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    config = json.loads(config_path.read_text())
    tensors = change(load_file(path), config)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    config_path.write_text(json.dumps(config))
    return folder


def doubled_alpha(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    config["lora_alpha"] *= 2
    return tensors


def another_scale(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    config["use_rslora"] = True
    return tensors


def transposed_layers(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """The updates of the square layers: (B A)ᵀ = Aᵀ Bᵀ has the shapes of B A."""
    made = dict(tensors)
    for name in tensors:
        if name.endswith(("q_proj.lora_A.weight", "o_proj.lora_A.weight")):
            b = name.replace("lora_A", "lora_B")
            made[name], made[b] = tensors[b].T, tensors[name].T
    return made


def dropped_layer(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    return {name: torch.zeros_like(t) if "layers.1." in name else t for name, t in tensors.items()}


def swapped_layers(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    def other(name: str) -> str:
        return name.replace("layers.0.", "layers.1.") if "layers.0." in name else name.replace("layers.1.", "layers.0.")

    return {other(name): tensor for name, tensor in tensors.items()}


def not_applied(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    return {name: torch.zeros_like(t) for name, t in tensors.items()}


def cut_rank(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    keep = config["r"] // 2
    return {name: t * (torch.arange(len(t)) < keep)[:, None] if "lora_A" in name else t for name, t in tensors.items()}


def misread_type(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """Rounded to bfloat16, and those bits read as float16."""
    return {name: t.bfloat16().view(torch.float16).float() for name, t in tensors.items()}


def another_adapter(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    generator = torch.Generator().manual_seed(99)
    return {name: torch.randn(t.shape, generator=generator) * SIZE for name, t in tensors.items()}


FAULTS = [
    doubled_alpha,
    another_scale,
    transposed_layers,
    dropped_layer,
    swapped_layers,
    not_applied,
    cut_rank,
    misread_type,
    another_adapter,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught_in_every_precision(
    base: Path, adapter: Path, reference: Reference, tmp_path: Path, fault: Any
) -> None:
    wrong = changed(shutil.copytree(adapter, tmp_path / "wrong"), fault)
    missed = [name for name, problem in judged(base, wrong, reference).items() if not problem]
    assert not missed


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_of_the_export_is_caught_though_both_sides_read_it(
    base: Path, adapter: Path, tmp_path: Path, fault: Any
) -> None:
    trained = record(load_trained(base, adapter), Probes.generated(base))
    wrong = changed(shutil.copytree(adapter, tmp_path / "wrong"), fault)
    report = check_parity(base, wrong, name="tiny", trained=trained, only=ways(base)[:1])
    assert not report.passed
    assert report.compared[0].name == "export"
    assert report.compared[0].problem
    assert report.compared[1].passed


def test_the_wrong_base_is_caught(base: Path, adapter: Path, tmp_path: Path, reference: Reference) -> None:
    other = write_tiny_chat(tmp_path / "other", seed=7)
    assert all(judged(other, adapter, reference).values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_was_recorded_in_training_agrees_with_what_was_saved(
    base: Path, adapter: Path, tmp_path: Path, precision: str
) -> None:
    trained = record(load_trained(base, adapter), Probes.generated(base), precision)
    kept = Reference.load(trained.save(tmp_path / "reference.safetensors"))
    assert kept.probes == trained.probes
    assert kept.precision == precision
    np.testing.assert_array_equal(kept.answers.adapted, trained.answers.adapted)
    report = check_parity(base, adapter, name="tiny", trained=kept, only=ways(base)[:1])
    assert report.passed, report.table()
    assert report.probes == trained.probes.digest


def test_a_model_in_training_goes_on_as_it_was(base: Path, adapter: Path) -> None:
    model = load_trained(base, adapter)
    model.train()
    record(model, Probes(((1, 2, 3, 4),)))
    assert model.training


def test_an_adapter_that_changes_nothing_passes(base: Path, linears: Any, tmp_path: Path) -> None:
    folder = changed(write_lora(tmp_path / "a", linears), not_applied)
    report = check_parity(base, folder, name="tiny", device="cpu")
    assert report.passed, report.table()
    assert report.compared[0].figures.effect == 1


def test_an_effect_where_the_trainer_has_none_is_caught(reference: Reference) -> None:
    still = Answers(reference.answers.base, reference.answers.base)
    nothing = Reference(reference.probes, reference.tokens, still)
    assert "effect" in compare("x", nothing, reference.answers, TOLERANCES["int8"]).problem


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_fails(reference: Reference, wrong: float) -> None:
    broken = reference.answers.adapted.copy()
    broken[3, 0] = wrong
    for tolerance in TOLERANCES.values():
        assert compare("x", reference, Answers(broken, reference.answers.base), tolerance).problem


def test_a_report_is_read_as_it_was_written(base: Path, adapter: Path, tmp_path: Path) -> None:
    report = check_parity(base, adapter, name="tiny", only=ways(base)[:2])
    assert read_report(tmp_path) is None
    report.save(tmp_path)
    assert read_report(tmp_path) == report
    assert json.loads((tmp_path / REPORT).read_text())["passed"] is True
    assert report.adapter == identify(adapter).digest
    (tmp_path / REPORT).write_text("{")
    with pytest.raises(StoreCorrupt, match="damaged"):
        read_report(tmp_path)


def test_nothing_compared_is_not_passed(base: Path, adapter: Path) -> None:
    assert not check_parity(base, adapter, name="tiny", only=()).passed


def test_probes_keep_a_row_s_first_token_and_its_end() -> None:
    assert Probes.of([range(10), [5], range(3)], count=2, length=4).sequences == ((0, 7, 8, 9), (0, 1, 2))
    with pytest.raises(CallerError, match="nothing to probe"):
        Probes.of([[1], []])


def test_generated_probes_are_the_same_each_time_and_differ_from_each_other(base: Path) -> None:
    probes = Probes.generated(base)
    assert probes.digest == Probes.generated(base).digest
    assert len(set(probes.sequences)) == len(probes.sequences)
    assert {len(sequence) for sequence in probes.sequences} == {64}


def test_what_can_t_be_loaded_is_told(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="tokenizer"):
        Probes.generated(tmp_path)
    with pytest.raises(ModelUnavailable, match="base"):
        from_files(tmp_path, adapter, Probes(((1, 2),)))
    broken = tmp_path / "reference.safetensors"
    broken.write_bytes(b"no tensors")
    with pytest.raises(OperatorError, match="can't be read"):
        Reference.load(broken)


def test_a_probe_longer_than_the_context_is_told(base: Path, adapter: Path) -> None:
    with pytest.raises(ModelUnavailable, match="1100 tokens"):
        answer(base, identify(adapter), ways(base)[0], _long())


def _long() -> Reference:
    probes = Probes((tuple([5] * 1100),))
    rows = np.zeros((probes.places, 1), dtype=np.float32)
    return Reference(probes, rows.astype(np.int64), Answers(rows, rows))
