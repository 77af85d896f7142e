"""Named adapters: whose they are, which content a name has now, and that no moment leaves them half-written."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from framework.config import Settings
from framework.engine.lora import AdapterCache, identify
from framework.errors import CallerError, Conflict, LecternError, NotFound, StoreCorrupt
from framework.models import adapters
from framework.models.adapter_files import linears_of
from framework.models.adapters import AdapterStore, split_name
from framework.models.base import ModelCard
from framework.models.catalog import Catalog, Resolved
from framework.models.chat import check_chat, load_chat
from framework.testing.adapters import write_ia3, write_lora

pytestmark = pytest.mark.usefixtures("nothing_ships")
LLAMA = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 32},
    **{"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64},
    **{"max_position_embeddings": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True},
}
LINEARS = {"layers.0.mlp.up_proj": (32, 16), "layers.0.self_attn.v_proj": (8, 16)}
TENANT = "acme"


def base_in(folder: Path, **config: Any) -> Resolved:
    """A base of which only the shapes are there."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA, **config}))
    return Resolved(ModelCard("base", "chat", "wheel", str(folder)), folder)


@pytest.fixture
def base(tmp_path: Path) -> Resolved:
    return base_in(tmp_path / "base")


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "home", slots=3)


@pytest.fixture
def make(tmp_path: Path) -> Callable[[int], Path]:
    """A folder with an adapter; the same seed makes the same content."""
    return lambda seed: write_lora(tmp_path / f"made-{seed}", LINEARS, seed=seed)


Make = Callable[[int], Path]


def test_an_adapter_is_copied_and_found_by_its_name(store: AdapterStore, base: Resolved, make: Make) -> None:
    source = make(1)
    added = store.add("support", source, base, TENANT)
    shutil.rmtree(source)
    found = store.get("support", TENANT, "base")
    assert found.digest == added.digest == identify(found.folder).digest
    assert AdapterCache(2**20).get(found, linears_of(base.path)).lora
    assert added.model == "base:support"


def test_names_outlive_the_process(store: AdapterStore, base: Resolved, make: Make) -> None:
    added = store.add("support", make(1), base, TENANT)
    pinned = store.change("support", TENANT, pinned=True, active=False)
    again = AdapterStore(store.home)
    assert again.list(TENANT) == [pinned]
    assert pinned == replace(added, pinned=True, active=False)


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "a/b", "", ".", "..", ".x", "-x", "a b", "a:b", "x" * 65, "a\n", "é", "a\x00"]
)
def test_a_name_that_could_be_a_path_is_refused(store: AdapterStore, base: Resolved, make: Make, name: str) -> None:
    with pytest.raises(CallerError, match="can't name an adapter") as caught:
        store.add(name, make(1), base, TENANT)
    assert caught.value.field == "name"
    with pytest.raises(NotFound):
        store.get(name, TENANT, "base")
    assert not store.folder.exists()


def test_an_unknown_adapter_and_another_tenants_give_the_same_error(
    store: AdapterStore, base: Resolved, make: Make
) -> None:
    store.add("secret", make(1), base, "other")
    attempts: list[Callable[[str], Any]] = [
        lambda name: store.get(name, TENANT, "base"),
        lambda name: store.show(name, TENANT),
        lambda name: store.change(name, TENANT, active=False),
        lambda name: store.remove(name, TENANT),
    ]
    for attempt in attempts:
        said = []
        for name in ("secret", "nosuch"):
            with pytest.raises(NotFound) as caught:
                attempt(name)
            said.append((str(caught.value).replace(name, "NAME"), caught.value.field, caught.value.code))
        assert said[0] == said[1]
    assert store.list(TENANT) == []
    assert store.get("secret", "other", "base")


def test_two_tenants_may_use_one_name(store: AdapterStore, base: Resolved, make: Make) -> None:
    ours, theirs = store.add("support", make(1), base, TENANT), store.add("support", make(2), base, "other")
    assert store.get("support", TENANT, "base").digest == ours.digest
    assert store.get("support", "other", "base").digest == theirs.digest
    store.remove("support", TENANT)
    assert store.get("support", "other", "base").digest == theirs.digest


def test_an_adapter_answers_on_its_own_base_only(store: AdapterStore, base: Resolved, make: Make) -> None:
    store.add("support", make(1), base, TENANT)
    with pytest.raises(NotFound):
        store.get("support", TENANT, "another-base")


def test_a_deactivated_adapter_is_refused_by_name_until_it_is_activated(
    store: AdapterStore, base: Resolved, make: Make
) -> None:
    store.add("support", make(1), base, TENANT)
    store.change("support", TENANT, active=False)
    with pytest.raises(Conflict, match="'support' is deactivated"):
        store.get("support", TENANT, "base")
    store.change("support", TENANT, active=True)
    assert store.get("support", TENANT, "base")


def test_a_replaced_name_gives_the_new_content_and_leaves_the_old_to_running_requests(
    store: AdapterStore, base: Resolved, make: Make
) -> None:
    store.add("support", make(1), base, TENANT)
    store.change("support", TENANT, pinned=True)
    running = store.get("support", TENANT, "base")
    with pytest.raises(Conflict, match="already"):
        store.add("support", make(2), base, TENANT)
    replaced = store.add("support", make(2), base, TENANT, overwrite=True)
    assert replaced.pinned
    assert store.get("support", TENANT, "base").digest == replaced.digest != running.digest
    assert identify(running.folder).digest == running.digest
    store.remove("support", TENANT)
    assert identify(running.folder).digest == running.digest


def test_the_same_content_under_the_same_name_is_added_once(store: AdapterStore, base: Resolved, make: Make) -> None:
    assert store.add("support", make(1), base, TENANT) == store.add("support", make(1), base, TENANT)
    assert len(list((store.folder / "files").iterdir())) == 1


def test_files_go_a_day_after_the_last_name_left_them(
    store: AdapterStore, base: Resolved, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.add("first", make(1), base, TENANT)
    store.add("twin", make(1), base, TENANT)
    store.add("second", make(2), base, TENANT)
    files = store.folder / "files" / first.digest
    store.remove("first", TENANT)
    now = adapters.time.time()
    monkeypatch.setattr(adapters.time, "time", lambda: now + 2 * adapters.KEPT_SECONDS)
    store.change("second", TENANT, active=False)
    assert files.is_dir(), "the twin still has them"
    store.remove("twin", TENANT)
    assert files.is_dir(), "a request may still use them"
    monkeypatch.setattr(adapters.time, "time", lambda: now + 4 * adapters.KEPT_SECONDS)
    store.change("second", TENANT, active=True)
    assert not files.exists()
    assert store.get("second", TENANT, "base").folder.is_dir()


def test_an_adapter_that_does_not_fit_leaves_nothing_behind(store: AdapterStore, tmp_path: Path, make: Make) -> None:
    wider = base_in(tmp_path / "wider", hidden_size=32)
    with pytest.raises(CallerError, match=r"shape \(.*base"):
        store.add("support", make(1), wider, TENANT)
    truncated = make(2)
    weights = truncated / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CallerError, match="damaged"):
        store.add("support", truncated, wider, TENANT)
    assert store.list(TENANT) == []
    assert {path.name for path in store.folder.iterdir()} <= {"lock"}


def test_a_folder_whose_files_are_links_elsewhere_is_refused(
    store: AdapterStore, base: Resolved, make: Make, tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in make(1).iterdir():
        (linked / file.name).symlink_to(file)
    with pytest.raises(CallerError, match="link"):
        store.add("support", linked, base, TENANT)


def test_content_that_was_damaged_here_is_mended_by_adding_it_again(
    store: AdapterStore, base: Resolved, make: Make
) -> None:
    store.add("support", make(1), base, TENANT)
    stored = store.get("support", TENANT, "base")
    (stored.folder / "adapter_config.json").write_text("{}")
    store.add("support", make(1), base, TENANT)
    assert identify(stored.folder).digest == stored.digest


def test_one_slot_stays_free_of_pins(store: AdapterStore, base: Resolved, make: Make) -> None:
    for seed in range(3):
        store.add(f"a{seed}", make(seed), base, TENANT)
    store.change("a0", TENANT, pinned=True)
    store.change("a1", TENANT, pinned=True)
    with pytest.raises(Conflict, match="3 slots"):
        store.change("a2", TENANT, pinned=True)
    store.change("a0", TENANT, pinned=False)
    assert store.change("a2", TENANT, pinned=True).pinned


def test_who_looks_an_adapter_up_learns_which_are_to_stay_resident(
    store: AdapterStore, base: Resolved, make: Make
) -> None:
    support, faq = store.add("support", make(1), base, TENANT), store.add("faq", make(2), base, TENANT)
    assert store.get("faq", TENANT, "base").pinned == frozenset()
    store.change("support", TENANT, pinned=True)
    assert store.get("faq", TENANT, "base").pinned == {support.digest}
    replaced = store.add("support", make(3), base, TENANT, overwrite=True)
    assert store.get("faq", TENANT, "base").pinned == {replaced.digest}
    store.change("support", TENANT, active=False)
    assert store.get("faq", TENANT, "base").pinned == frozenset()
    assert faq.digest not in store.get("faq", TENANT, "base").pinned


def test_threads_that_add_at_once_lose_nothing(store: AdapterStore, base: Resolved, make: Make) -> None:
    folders = [make(seed) for seed in range(6)]
    threads = [
        threading.Thread(target=store.add, args=(f"a{seed}", folder, base, TENANT))
        for seed, folder in enumerate(folders)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [adapter.name for adapter in store.list(TENANT)] == [f"a{seed}" for seed in range(6)]


class Killed(BaseException):
    """The process ends here: nothing is cleaned up after it."""


def test_a_kill_at_any_moment_leaves_the_old_state_or_the_new(
    tmp_path: Path, base: Resolved, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = make(1), make(2)
    digests = {identify(old).digest, identify(new).digest}
    outcomes = set()
    for moment in range(40):
        store = AdapterStore(tmp_path / f"home-{moment}")
        store.add("support", old, base, TENANT)
        with monkeypatch.context() as patch:
            survived = _killed_at(moment, patch, lambda store=store: store.add(  # type: ignore[misc]
                "support", new, base, TENANT, overwrite=True))  # fmt: skip
        found = AdapterStore(store.home).get("support", TENANT, "base")
        assert found.digest in digests
        assert identify(found.folder).digest == found.digest
        outcomes.add(found.digest)
        store.add("support", new, base, TENANT, overwrite=True)
        assert store.get("support", TENANT, "base").digest == identify(new).digest
        if survived:
            break
    assert survived, "every moment was tried"
    assert outcomes == digests


def _killed_at(moment: int, patch: pytest.MonkeyPatch, work: Callable[[], Any]) -> bool:
    """Do the work, killed before its nth call that changes the disk; tells whether it ended before that."""
    left = moment
    dead = False

    def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left, dead
            if dead or not left:
                dead = True
                raise Killed
            left -= 1
            return function(*arguments, **options)

        return call

    for owner, name in ((os, "fsync"), (shutil, "copyfile"), (shutil, "rmtree"), (Path, "rename"), (Path, "replace")):
        patch.setattr(owner, name, mortal(getattr(owner, name)))
    try:
        work()
    except Killed:
        return False
    return True


def test_a_damaged_table_is_told_with_what_mends_it(store: AdapterStore, base: Resolved, make: Make) -> None:
    store.add("support", make(1), base, TENANT)
    (store.folder / "adapters.json").write_text('{"adapters": [{"tena')
    with pytest.raises(StoreCorrupt, match=r"adapters\.json is damaged"):
        store.get("support", TENANT, "base")


def test_the_shapes_of_a_general_model_need_no_weights(tmp_path: Path) -> None:
    config = {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "hidden_size": 16,
              "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    linears = linears_of(tmp_path)
    assert linears["gpt_neox.layers.0.attention.query_key_value"] == (48, 16)
    assert linears["lm_head"] == (64, 16)


def test_an_ia3_adapter_is_added_like_any_other(store: AdapterStore, base: Resolved, tmp_path: Path) -> None:
    folder = write_ia3(tmp_path / "ia3", {"layers.0.mlp.down_proj": (16, 32), "layers.0.self_attn.v_proj": (8, 16)})
    assert store.add("scales", folder, base, TENANT).active


# As a model's name


def test_a_models_name_may_end_in_an_adapter(tmp_path: Path) -> None:
    assert split_name("smollm2-135m-instruct:support") == ("smollm2-135m-instruct", "support")
    assert split_name("./folder:support") == ("./folder", "support")
    assert split_name("smollm2-135m-instruct") == ("smollm2-135m-instruct", "")
    assert split_name("base:../x") == ("base:../x", "")
    odd = tmp_path / "odd:name"
    odd.mkdir()
    assert split_name(str(odd)) == (str(odd), "")


@pytest.fixture
def local(tmp_path: Path, settings: Settings, make: Make) -> str:
    """The name of a local base with the adapter "support", added as the settings' tenant."""
    folder = base_in(tmp_path / "local").path
    write_lora(tmp_path / "weights", LINEARS)
    (tmp_path / "weights" / "adapter_model.safetensors").rename(folder / "model.safetensors")
    AdapterStore.open(settings).add("support", make(1), Catalog().resolve(str(folder)), settings.core.tenant)
    return str(folder)


def test_load_chat_takes_the_adapter_from_the_name(local: str, settings: Settings) -> None:
    model = load_chat(f"{local}:support", settings=settings)
    try:
        assert model.name == f"{local}:support"
    finally:
        model.close()  # type: ignore[attr-defined]
    check_chat(f"{local}:support", settings=settings)


@pytest.mark.parametrize("call", [load_chat, check_chat])
def test_a_name_with_an_adapter_that_can_not_be_used_is_refused_at_once(
    local: str, settings: Settings, call: Callable[..., Any]
) -> None:
    def refused(name: str, **options: Any) -> LecternError:
        with pytest.raises(LecternError) as caught:
            call(name, settings=settings, **options)
        return caught.value

    assert isinstance(refused(f"{local}:nosuch"), NotFound)
    assert isinstance(refused(f"{local}:support", tenant="other"), NotFound)
    assert isinstance(refused("all-minilm-l6-v2:support"), CallerError)
    AdapterStore.open(settings).change("support", settings.core.tenant, active=False)
    assert isinstance(refused(f"{local}:support"), Conflict)
