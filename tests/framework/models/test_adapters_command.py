"""`lectern adapters`, as it is typed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from framework import cli
from framework.models.adapter_commands import adapters
from framework.testing.adapters import write_lora

pytestmark = pytest.mark.usefixtures("nothing_ships")
LINEARS = {"layers.0.mlp.up_proj": (32, 16)}
BASE = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 32},
    **{"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64},
    **{"max_position_embeddings": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True},
}


@dataclass(frozen=True)
class Typed:
    """What a command printed and how it ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Type = Callable[..., Typed]


@pytest.fixture
def type_(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Type:
    """`type_("list", "--json")` runs `lectern adapters list --json` up to its exit status."""

    def run(*arguments: str) -> Typed:
        monkeypatch.setattr(cli, "root", adapters)
        monkeypatch.setattr(sys, "argv", ["lectern adapters", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        shown = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Typed(caught.value.code, shown.out, shown.err)

    return run


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = write_lora(tmp_path / "base", LINEARS)
    (folder / "adapter_model.safetensors").rename(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(BASE))
    return folder


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return write_lora(tmp_path / "made", LINEARS, seed=1)


def test_from_adding_to_removing(type_: Type, base: Path, made: Path) -> None:
    added = type_("add", "support", made, "--base", base, "--json")
    assert added.status == 0
    assert added.json["model"] == f"{base}:support"
    assert added.json["active"] is True
    assert added.json["state"] == "unchecked"
    assert type_("list", "--json").json == [added.json]
    assert type_("show", "support", "--json").json == added.json
    assert type_("deactivate", "support", "--json").json == {**added.json, "active": False, "state": "deactivated"}
    assert "deactivated" in type_("list").out
    assert type_("activate", "support", "--json").json == added.json
    assert type_("pin", "support", "--json").json == {**added.json, "pinned": True}
    assert type_("unpin", "support", "--json").json == added.json
    assert type_("remove", "support").out == "Removed support.\n"
    assert type_("list", "--json").json == []


def test_a_name_is_given_new_content_on_purpose_only(type_: Type, base: Path, made: Path, tmp_path: Path) -> None:
    first = type_("add", "support", made, "--base", base, "--json").json
    other = write_lora(tmp_path / "other", LINEARS, seed=2)
    refused = type_("add", "support", other, "--base", base)
    assert refused.status == 2
    assert "already" in refused.err
    replaced = type_("add", "support", other, "--base", base, "--replace", "--json").json
    assert replaced["digest"] != first["digest"]


def test_what_is_shown_is_what_was_added(type_: Type, base: Path, made: Path) -> None:
    type_("add", "support", made, "--base", base)
    shown = type_("show", "support").out
    assert f"model   {base}:support" in shown
    assert "active  yes" in shown
    assert "state   unchecked" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "nosuch"), "There is no adapter 'nosuch'"),
        (("remove", "nosuch"), "There is no adapter 'nosuch'"),
        (("add", "../../x", "MADE", "--base", "BASE"), "can't name an adapter"),
        (("add", "support", "nowhere", "--base", "BASE"), "adapter_config.json"),
        (("add", "support", "MADE", "--base", "no-such-model"), "There is no model 'no-such-model'"),
        (("add", "support"), "Missing argument"),
    ],
)
def test_a_wrong_call_ends_with_status_two_and_one_message(
    type_: Type, base: Path, made: Path, arguments: tuple[str, ...], said: str
) -> None:
    given = [str({"MADE": made, "BASE": base}.get(argument, argument)) for argument in arguments]
    ended = type_(*given)
    assert ended.status == 2
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_without_adapters_the_list_says_how_to_add_one(type_: Type) -> None:
    assert "lectern adapters add" in type_("list").out
