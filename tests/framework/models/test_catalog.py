"""From names to folders: the order, near misses, and folders that are not to be trusted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from framework.config import Settings
from framework.errors import ConfigError, ModelUnavailable, NotFound
from framework.models.catalog import Catalog, wheel_path
from framework.models.config import ModelsConfig
from framework.models.folder import ModelFolder
from framework.models.presets import PRESETS

SaveBert = Callable[..., Path]


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(cache=tmp_path / "cache")


@pytest.mark.parametrize("name", ["all-minilm-l6-v2", "All-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_a_wheel_serves_its_model_by_any_of_its_names(catalog: Catalog, name: str) -> None:
    resolved = catalog.resolve(name)
    assert resolved.card.origin == "wheel"
    assert resolved.card.name == "all-minilm-l6-v2"
    assert resolved.path == wheel_path(PRESETS["all-minilm-l6-v2"])
    assert resolved.card.languages == ("en",)
    assert resolved.card.context_length == 256


def test_a_pinned_revision_is_not_served_by_a_wheel(catalog: Catalog) -> None:
    with pytest.raises(ModelUnavailable, match="sentence-transformers/all-MiniLM-L6-v2 is not on this machine"):
        catalog.resolve("all-minilm-l6-v2@8b3219a92973c328a8e22fadcfa821b5dc75636a")


def test_a_folder_goes_before_a_wheel(
    catalog: Catalog, save_bert: SaveBert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_bert("all-minilm-l6-v2")
    monkeypatch.chdir(tmp_path)
    resolved = catalog.resolve("all-minilm-l6-v2")
    assert (resolved.card.origin, resolved.path) == ("folder", folder)


def test_a_folder_that_holds_no_model_does_not_hide_one(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "all-minilm-l6-v2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert catalog.resolve("all-minilm-l6-v2").card.origin == "wheel"


def test_a_folders_card_is_read_from_its_files(catalog: Catalog, save_bert: SaveBert) -> None:
    folder = save_bert(files={"sentence_bert_config.json": {"max_seq_length": 12}})
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage:\n- en\n- de\n- multilingual\n---\n# Tiny\n")
    card = catalog.resolve(str(folder)).card
    assert (card.kind, card.context_length) == ("embedding", 12)
    assert (card.licence, card.languages) == ("MIT", ("en", "de"))


def test_a_readme_that_is_no_yaml_is_only_ignored(catalog: Catalog, save_bert: SaveBert) -> None:
    folder = save_bert()
    (folder / "README.md").write_text("---\n: [\n---\n")
    assert catalog.resolve(str(folder)).card.languages == ()


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("LlamaForCausalLM", "chat"), ("BertForSequenceClassification", "reranker"), ("BertModel", "embedding")],
)
def test_the_kind_follows_the_architecture(catalog: Catalog, save_bert: SaveBert, architecture: str, kind: str) -> None:
    folder = save_bert()
    config = json.loads((folder / "config.json").read_text()) | {"architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(config))
    assert catalog.resolve(str(folder)).card.kind == kind


def test_a_gguf_file_is_a_name_too(catalog: Catalog, write_gguf: Callable[..., Path]) -> None:
    resolved = catalog.resolve(str(write_gguf()))
    assert resolved.path.parent == catalog.cache / "models"
    assert (resolved.card.kind, resolved.card.context_length) == ("chat", 128)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("all-minilm", "Did you mean 'all-minilm-l6-v2'"), ("smollm2", "Did you mean 'smollm2-"), ("zzz", "A name is a")],
)
def test_a_miss_names_what_is_close(catalog: Catalog, name: str, hint: str) -> None:
    for call in (catalog.resolve, catalog.card):
        with pytest.raises(NotFound, match="There is no model") as caught:
            call(name)
        assert hint in str(caught.value)


@pytest.mark.parametrize("name", ["../../x", "./nothing", "/no/such/folder", "~/no-such-model", "gone.gguf"])
def test_a_path_that_is_not_there_is_no_hub_id(catalog: Catalog, name: str) -> None:
    with pytest.raises(NotFound, match="There is no folder or file"):
        catalog.resolve(name)


def test_pickled_weights_are_refused_by_name(catalog: Catalog, save_bert: SaveBert) -> None:
    folder = save_bert()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelUnavailable, match=r"pytorch_model\.bin, which may run code"):
        catalog.resolve(str(folder))


def test_a_folder_without_a_configuration_is_refused(catalog: Catalog, save_bert: SaveBert) -> None:
    folder = save_bert()
    (folder / "config.json").unlink()
    with pytest.raises(ModelUnavailable, match=r"has no config\.json"):
        catalog.resolve(str(folder))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_a_link_that_leads_out_is_refused(catalog: Catalog, save_bert: SaveBert, tmp_path: Path, file: str) -> None:
    folder = save_bert()
    (folder / file).rename(tmp_path / "secret")
    (folder / file).symlink_to(tmp_path / "secret")
    with pytest.raises(ModelUnavailable, match="outside the model's folder"):
        catalog.resolve(str(folder))


def test_a_link_inside_the_folder_and_one_to_the_folder_are_fine(
    catalog: Catalog, save_bert: SaveBert, tmp_path: Path
) -> None:
    folder = save_bert()
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    (tmp_path / "link").symlink_to(folder)
    assert catalog.resolve(str(tmp_path / "link")).path == folder


def test_the_hubs_cache_may_link_to_its_blobs(catalog: Catalog, save_bert: SaveBert, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--o--m" / "snapshots" / "abc"
    shutil.copytree(save_bert(), snapshot)
    blobs = tmp_path / "models--o--m" / "blobs"
    blobs.mkdir()
    (snapshot / "model.safetensors").rename(blobs / "123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    assert catalog.resolve(str(snapshot)).path == snapshot


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "a\\..\\b.safetensors"])
def test_an_index_of_shards_cannot_lead_out(save_bert: SaveBert, shard: str) -> None:
    folder = save_bert(files={"model.safetensors.index.json": {"weight_map": {"a": shard}}})
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match="outside the model's folder"):
        ModelFolder(folder).weights()


def test_a_missing_shard_is_named(save_bert: SaveBert) -> None:
    folder = save_bert(files={"model.safetensors.index.json": {"weight_map": {"a": "model-00002.safetensors"}}})
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"missing the weights model-00002\.safetensors"):
        ModelFolder(folder).weights()


def test_json_of_unbounded_depth_is_refused(save_bert: SaveBert) -> None:
    folder = save_bert()
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelUnavailable, match="not valid JSON"):
        _ = ModelFolder(folder).config


def test_every_preset_is_listed_and_those_at_hand_come_first(catalog: Catalog) -> None:
    cards = catalog.cards()
    assert {card.name for card in cards} == set(PRESETS)
    assert [card.name for card in cards[:2]] == ["smollm2-135m-instruct", "all-minilm-l6-v2"]
    assert all(card.licence and card.context_length for card in cards)


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ({"threads": 0}, "threads"),
        ({"endpoints": {"big": {"base_url": "localhost:8000", "model": "m"}}}, "base_url"),
        ({"endpoints": {"big": {"base_url": "http://h/v1", "model": ""}}}, "model"),
        ({"endpoints": {"big": {"base_url": "http://h/v1", "model": "m", "timeout": 0}}}, "timeout"),
        ({"endpoints": {"big": {"base_url": "http://h/v1", "model": "m", "max_retries": 99}}}, "max_retries"),
        ({"endpoints": {"big": {"base_url": "http://h/v1"}}}, "models.endpoints.big.model"),
        ({"embeder": "x"}, "models.embeder"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, section: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings({"models": section}, base=tmp_path).section("models", ModelsConfig)
    assert caught.value.field == field
