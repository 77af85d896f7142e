"""`lectern models`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from framework.bridge import run_sync
from framework.errors import ModelUnavailable, NotFound
from framework.messages import user
from framework.models.base import GenerationParams, complete
from framework.models.chat import load_chat
from framework.models.commands import models
from framework.models.config import EngineConfig, ModelsConfig
from framework.testing.tiny_chat import write_tiny_chat


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LECTERN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


def run(*words: str) -> Result:
    return CliRunner().invoke(models, words, catch_exceptions=False)


def test_the_list_tells_what_is_here_and_what_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "lectern.toml").write_text(
        '[models]\nchat = "big"\n[models.endpoints.big]\nbase_url = "http://h:1/v1"\nmodel = "m"\n'
    )
    rows = {row["name"]: row for row in json.loads(run("list", "--json").stdout)}
    assert rows["all-minilm-l6-v2"]["at_hand"] is True
    assert rows["all-minilm-l6-v2"]["role"] == "default embedder"
    assert rows["bge-small-en-v1.5"]["at_hand"] is False
    assert rows["big"]["origin"] == "endpoint"
    assert rows["big"]["role"] == "default chat"
    table = run("list").stdout
    assert all(name in table for name in rows)


def test_show_tells_what_is_known() -> None:
    shown = json.loads(run("show", "E5-small-v2", "--json").stdout)
    assert shown["document_prefix"] == "passage: "
    assert shown["languages"] == ["en"]
    assert "'passage: '" in run("show", "e5-small-v2").stdout


def test_show_of_an_endpoint_names_the_variable_and_not_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIG_KEY", "secret")
    (tmp_path / "lectern.toml").write_text(
        '[models.endpoints.big]\nbase_url = "http://h:1/v1"\nmodel = "m"\napi_key_env = "BIG_KEY"\n'
    )
    shown = run("show", "big").stdout
    assert "BIG_KEY" in shown
    assert "secret" not in shown


def test_show_of_nothing_is_an_error() -> None:
    with pytest.raises(NotFound, match="Did you mean 'all-minilm-l6-v2'"):
        run("show", "all-minilm-l6")


def test_pull_converts_and_says_where(write_gguf: Callable[..., Path]) -> None:
    source = write_gguf()
    result = run("pull", str(source), "--json")
    folder = Path(json.loads(result.stdout)["path"])
    assert (folder / "model.safetensors").is_file()
    assert "converting" in result.stderr
    assert "100%" in result.stderr
    assert json.loads(run("pull", str(source), "--json").stdout)["path"] == str(folder)


def test_a_hub_id_that_was_not_fetched_claims_nothing() -> None:
    shown = json.loads(run("show", "owner/unknown", "--json").stdout)
    assert shown["at_hand"] is False
    assert "not fetched" in shown["note"]
    assert "kind" not in shown


def test_a_model_is_saved_in_eight_bits_and_answers_from_there(tmp_path: Path) -> None:
    write_tiny_chat(tmp_path / "exact")
    told = json.loads(run("quantize", str(tmp_path / "exact"), str(tmp_path / "rounded"), "--json").stdout)
    assert told["bytes"] < told["bytes_before"]
    answers = []
    for folder in ("exact", "rounded"):
        chat = load_chat(str(tmp_path / folder), ModelsConfig(engine=EngineConfig(dtype="int8", kv_memory_mb=4)))
        answers.append(run_sync(complete(chat, [user("Hello")], params=GenerationParams(max_tokens=12))).message)
    assert answers[0] == answers[1]  # rounded when saved is rounded when loaded


def test_no_folder_is_written_over(tmp_path: Path) -> None:
    write_tiny_chat(tmp_path / "exact")
    with pytest.raises(ModelUnavailable, match="exists"):
        run("quantize", str(tmp_path / "exact"), str(tmp_path / "exact"))
