"""A name gets another content by winning a contest only, can be rolled back, and its history tells what happened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from evals import promotion
from evals.contest import Rule
from evals.identity import adapter_base, adapter_of
from evals.promotion import Promotion, history, promote, rollback
from evals.run_log import read_run
from evals.task import Task, load_tasks
from evals.trail import Trail
from framework.config import Settings
from framework.engine.lora import identify
from framework.errors import CallerError, ConfigError, Conflict, LecternError, NotFound, StoreCorrupt
from framework.models import adapters
from framework.models.adapters import AdapterStore
from framework.models.base import ModelCard
from framework.models.catalog import Catalog, Resolved
from framework.models.named_adapter import KEPT_VERSIONS, Checked, NamedAdapter
from framework.testing.adapters import write_lora
from framework.testing.tiny_chat import write_tiny_chat

pytestmark = pytest.mark.usefixtures("nothing_ships")

LINEARS = {"layers.0.mlp.up_proj": (32, 16), "layers.0.self_attn.v_proj": (8, 16)}
LLAMA = {
    **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 32},
    **{"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64},
    **{"max_position_embeddings": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True},
}
REAL_LINEARS = {f"layers.{layer}.mlp.up_proj": (64, 32) for layer in range(2)}  # of the tiny chat model
# Answers as well as quality.json says of the content that the model's name has now.
FUNCTION = """
import json
import pathlib
from evals import Output
from framework.config import Settings
from framework.errors import NotFound
from framework.models.adapters import AdapterStore, split_name

HERE = pathlib.Path(__file__).parent

def answer(question, model):
    settings = Settings.load()
    try:
        digest = AdapterStore.open(settings).show(split_name(model)[1] or model, settings.core.tenant).digest
    except NotFound:
        digest = model
    during = HERE / "during.py"
    if during.exists():
        code = during.read_text()
        during.unlink()
        exec(code)
    about = json.loads((HERE / "quality.json").read_text())[digest]
    number = int(question.rpartition(" ")[2])
    if number < about.get("fails", 0):
        raise RuntimeError("no answer")
    return Output(text="yes" if number < about["right"] else "no", steps=about.get("steps", 1))
"""
TASK = """
[task]
name = "yes"
metrics = ["exact_match", "steps"]
thresholds = ["exact_match >= 0.1"]

[dataset]
kind = "questions"
path = "questions.jsonl"

[target]
kind = "python"
function = "answers.py:answer"
"""


class World:
    """A store with a base of which only the shapes are there, adapters of known quality, and a suite."""

    def __init__(self, folder: Path, settings: Settings, questions: int = 40) -> None:
        self.folder, self.settings, self.store = folder, settings, AdapterStore.open(settings)
        base = folder / "base"
        base.mkdir()
        (base / "config.json").write_text(json.dumps(LLAMA))
        self.base = Resolved(ModelCard("base", "chat", "wheel", str(base)), base)
        self.quality: dict[str, Mapping[str, int]] = {}
        (folder / "answers.py").write_text(FUNCTION)
        (folder / "task.toml").write_text(TASK)
        self.ask(questions)

    def ask(self, questions: int) -> None:
        rows = [{"_id": str(n), "question": f"question {n}", "answers": ["yes"]} for n in range(questions)]
        (self.folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def add(
        self, name: str, seed: int, *, checked: bool = True, tenant: str = "default", **quality: int
    ) -> NamedAdapter:
        folder = write_lora(self.folder / f"made-{seed}", LINEARS, seed=seed)
        digest = identify(folder).digest
        self.rate(digest, **quality)
        word = Checked(digest, passed=True) if checked else None
        return self.store.add(name, folder, self.base, tenant, overwrite=True, checked=word)

    def rate(self, digest: str, **quality: int) -> None:
        self.quality[digest] = quality
        (self.folder / "quality.json").write_text(json.dumps(self.quality))

    def during(self, code: str) -> None:
        """Have this done while the first question is answered."""
        (self.folder / "during.py").write_text(code)

    def task(self, *overrides: str) -> Task:
        (task,) = load_tasks(str(self.folder / "task.toml"), overrides)
        return task

    async def promote(self, name: str = "answers", other: str = "new", *overrides: str, **options: Any) -> Promotion:
        return await promote(name, other, self.task(*overrides), self.settings, by="ada", **options)

    def content(self, name: str = "answers", tenant: str = "default") -> str:
        return self.store.show(name, tenant).digest

    def outcomes(self, name: str = "answers") -> list[str]:
        return [entry.outcome for entry in history(name, self.settings)]


@pytest.fixture
def world(tmp_path: Path, settings: Settings) -> World:
    return World(tmp_path, settings)


async def test_a_better_challenger_gets_the_name_and_the_trail_tells_all(world: World) -> None:
    old, new = world.add("answers", 1, right=10), world.add("new", 2, right=30)
    done = await world.promote()
    assert done.switched
    assert "better: exact_match +0.5000" in done.contest.reason
    now = world.store.show("answers", "default")
    assert (now.digest, now.state, now.promotion) == (new.digest, "live", done.id)
    assert world.store.get("answers", "default", "base").digest == new.digest
    assert world.content("new") == new.digest
    (entry,) = history("answers", world.settings)
    assert (entry.id, entry.outcome, entry.facts["by"]) == (done.id, "done", "ada")
    assert entry.facts["champion"] == {"model": "base:answers", "digest": old.digest}
    assert entry.facts["challenger"] == {"model": "base:new", "digest": new.digest}
    assert entry.facts["decision"] == "promote"
    assert len(entry.facts["suite"]["digest"]) == len(entry.facts["data"]) == 32
    (score,) = entry.facts["scores"]
    assert score["metric"] == "exact_match"
    assert (score["champion"]["mean"], score["challenger"]["mean"]) == (0.25, 0.75)
    assert 0 < score["difference"]["low"] < 0.5 < score["difference"]["high"]
    assert entry.facts["rule"]["margin"] == 0.02
    assert entry.facts["limit"] is None
    runs = {side: read_run(Path(folder))["target"]["adapter"] for side, folder in entry.facts["runs"].items()}
    assert runs == {"champion": old.digest, "challenger": new.digest}


async def test_the_trail_tells_that_only_some_questions_were_asked(world: World) -> None:
    world.add("new", 2, right=30)
    await world.promote(limit=25)
    (entry,) = history("answers", world.settings)
    assert (entry.facts["limit"], list(entry.facts["runs"])) == (25, ["challenger"])


async def test_a_planted_worse_challenger_is_refused_with_the_reason(world: World) -> None:
    old, _ = world.add("answers", 1, right=30), world.add("new", 2, right=10)
    done = await world.promote()
    assert not done.switched
    assert done.contest.reason.startswith("exact_match is worse: -0.5000 [")
    assert world.content() == old.digest
    (entry,) = history("answers", world.settings)
    assert (entry.outcome, entry.facts["decision"]) == ("refused", "refuse")
    assert entry.facts["reason"] == done.contest.reason


@pytest.mark.parametrize(
    ("right", "rule", "switched", "said"),
    [
        (29, Rule(), False, "is not shown to lose at most 0.02"),
        (29, Rule(margin=0.15), True, "not worse by more than the margin"),
        (29, Rule(margins={"exact_match": 0.15}), True, "not worse by more than the margin"),
        (30, Rule(), False, "is not shown to lose at most 0.02: +0.0000 [-0.0876, +0.0876]"),
        (30, Rule(margin=0.1), True, "not worse by more than the margin"),
        (30, Rule(margin=0.1, better=True), False, "not shown to be better at anything"),
        (38, Rule(better=True), True, "better: exact_match"),
    ],
)
async def test_the_rule_is_the_lower_end_of_the_interval_above_the_margin(
    world: World, right: int, rule: Rule, switched: bool, said: str
) -> None:
    world.add("answers", 1, right=30)
    world.add("new", 2, right=right)
    done = await world.promote(rule=rule)
    assert (done.switched, said in done.contest.reason) == (switched, True), done.contest.reason


async def test_where_less_is_better_more_is_refused(world: World) -> None:
    world.add("answers", 1, right=20, steps=2)
    world.add("new", 2, right=20, steps=3)
    both = 'task.thresholds=["exact_match >= 0.1", "steps <= 9"]'
    rule = Rule(margins={"exact_match": 0.1})
    done = await world.promote("answers", "new", both, rule=rule)
    assert done.contest.reason.startswith("steps is worse: +1.0000")
    back = await world.promote("new", "answers", both, rule=rule)
    assert "better: steps -1.0000" in back.contest.reason


async def test_a_metric_that_no_threshold_names_decides_nothing(world: World) -> None:
    world.add("answers", 1, right=20, steps=1)
    world.add("new", 2, right=20, steps=9)
    assert (await world.promote(rule=Rule(margin=0.1))).switched


async def test_failed_questions_are_left_out_where_the_task_says_so(world: World) -> None:
    world.add("answers", 1, right=30, fails=5)
    world.add("new", 2, right=40, fails=5)
    done = await world.promote("answers", "new", "run.errors=exclude")
    (score,) = done.contest.compared
    assert score.difference is not None
    assert (score.difference.n, score.challenger.n, score.challenger.mean) == (35, 35, 1.0)


async def test_189_questions_that_are_answered_alike_show_that_no_more_than_the_margin_is_lost(world: World) -> None:
    world.add("answers", 1, right=100)
    world.add("new", 2, right=100)
    world.ask(188)
    assert not (await world.promote()).switched
    world.ask(189)
    assert (await world.promote()).switched


async def test_too_few_questions_decide_nothing(world: World) -> None:
    world.ask(19)
    world.add("answers", 1, right=1)
    world.add("new", 2, right=19)
    done = await world.promote()
    assert not done.switched
    assert done.contest.reason == "exact_match applies to 19 questions, which is too few for an interval: 20 are needed"


async def test_one_that_fails_more_often_is_refused_though_its_mean_is_higher(world: World) -> None:
    world.add("answers", 1, right=10)
    world.add("new", 2, right=40, fails=1)
    done = await world.promote()
    assert "it fails on 1 questions, the champion on 0" in done.contest.reason


async def test_one_that_misses_the_suite_s_own_threshold_is_refused(world: World) -> None:
    world.add("answers", 1, right=1)
    world.add("new", 2, right=2)
    done = await world.promote(rule=Rule(margin=1))
    assert done.contest.reason == "it misses the threshold exact_match >= 0.1: measured 0.0500"


async def test_the_first_of_a_name_is_judged_by_the_thresholds_alone(world: World) -> None:
    world.add("new", 2, right=30)
    done = await world.promote()
    assert (done.switched, done.contest.reason) == (True, "there was no champion, and it meets the thresholds")
    assert world.content() == world.content("new")
    with pytest.raises(Conflict, match="nothing to be rolled back to"):
        rollback("answers", world.settings)
    assert world.outcomes() == ["done"]
    world.add("bad", 3, right=1)
    assert not (await world.promote("other", "bad")).switched
    with pytest.raises(NotFound):
        world.content("other")


async def test_what_can_t_be_promoted_is_told_before_anything_is_run(world: World) -> None:
    world.add("answers", 1, right=10)
    world.add("same", 1, right=10)
    world.add("unchecked", 2, checked=False, right=30)
    off = world.add("off", 3, right=30)
    world.store.change("off", "default", active=False)
    world.add("theirs", 4, tenant="other", right=30)
    world.during("raise AssertionError('a question was asked')")
    cases: list[tuple[str, type[LecternError], str]] = [
        ("same", Conflict, "the same content"),
        ("answers", Conflict, "the same content"),
        ("unchecked", Conflict, "has not passed the parity gate"),
        ("off", Conflict, "is deactivated"),
    ]
    for other, kind, said in cases:
        with pytest.raises(kind, match=said):
            await world.promote("answers", other)
    world.store.mark("off", "default", Checked(off.digest, passed=False, reason="int8: wrong"))
    with pytest.raises(Conflict, match="int8: wrong"):
        await world.promote("answers", "off")
    assert world.outcomes() == []
    assert (world.folder / "during.py").exists(), "a question was asked"


async def test_another_tenant_s_challenger_and_a_missing_one_look_the_same(world: World, tmp_path: Path) -> None:
    write_tiny_chat(tmp_path / "real")
    base = Catalog().resolve(str(tmp_path / "real"))
    folder = write_lora(tmp_path / "a", REAL_LINEARS)
    world.store.add("theirs", folder, base, "other", checked=Checked(identify(folder).digest, passed=True))
    said = []
    for name in ("theirs", "nosuch"):
        with pytest.raises(NotFound) as caught:
            await world.promote("answers", f"{base.path}:{name}")
        said.append(str(caught.value).replace(name, "NAME"))
    assert said[0] == said[1]


async def test_a_base_may_be_spelled_otherwise(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_chat(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    base, digests = Catalog().resolve(str(tmp_path / "real")), {}
    for name, seed, right in (("answers", 1, 10), ("new", 2, 30)):
        folder = write_lora(tmp_path / name, REAL_LINEARS, seed=seed)
        digests[name] = identify(folder).digest
        world.rate(digests[name], right=right)
        world.store.add(name, folder, base, "default", checked=Checked(digests[name], passed=True))
    assert (await world.promote("./real:answers", "./real:new")).switched
    assert world.content() == digests["new"]
    assert adapter_of("./real:new", world.settings) == {"adapter": digests["new"]}
    with pytest.raises(NotFound):
        adapter_of("./real:nosuch", world.settings)


def test_a_preset_and_its_hugging_face_id_are_one_base(settings: Settings) -> None:
    for base in ("smollm2-135m-instruct", "SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        assert adapter_base(base, settings) == "smollm2-135m-instruct"
    for base in ("scripted", "nosuch", "all-minilm-l6-v2"):
        assert adapter_base(base, settings) is None


async def test_a_tenant_s_history_and_names_are_its_own(world: World) -> None:
    world.add("answers", 1, right=10)
    world.add("new", 2, right=30)
    await world.promote()
    values = {**world.settings.values, "lectern": {**world.settings.values["lectern"], "tenant": "other"}}
    theirs = Settings(values, world.settings.base)
    assert history("answers", theirs) == []
    with pytest.raises(NotFound):
        rollback("answers", theirs)
    assert world.outcomes() == ["done"]


CHANGES = {
    "champion removed": 'store.remove("answers", "default")',
    "challenger removed": 'store.remove("new", "default")',
    "challenger deactivated": 'store.change("new", "default", active=False)',
    "champion rolled back": 'store.rollback("answers", "default", promotion="x", digest=digest)',
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_name_that_changes_while_it_is_measured_is_left_alone(world: World, change: str) -> None:
    world.add("answers", 1, right=10)
    old, new = world.add("old", 9, right=12), world.add("new", 2, right=30)
    before = world.content()
    world.store.promote("answers", "old", "default", promotion="p", champion=before, digest=old.digest)
    world.during(f"store = AdapterStore.open(settings)\n{change}")
    try:
        done = await world.promote()
    except LecternError:
        pass
    else:
        assert not done.switched
    assert all(adapter.digest != new.digest for adapter in world.store.list("default") if adapter.name == "answers")
    assert "done" not in world.outcomes()


async def test_a_rollback_gives_the_name_its_content_back_and_again_one_further(world: World) -> None:
    first = world.add("answers", 1, right=10)
    second, third = world.add("second", 2, right=20), world.add("third", 3, right=30)
    await world.promote("answers", "second")
    await world.promote("answers", "third")
    assert world.content() == third.digest
    made = rollback("answers", world.settings, by="eve", reason="complaints")
    assert (made.digest, made.state) == (second.digest, "live")
    assert rollback("answers", world.settings).digest == first.digest
    with pytest.raises(Conflict, match="nothing to be rolled back to"):
        rollback("answers", world.settings)
    assert world.content() == first.digest
    entries = history("answers", world.settings)
    assert [entry.action for entry in entries] == ["promote", "promote", "rollback", "rollback"]
    back = entries[2].facts
    assert (back["by"], back["reason"], back["from"], back["to"]) == ("eve", "complaints", third.digest, second.digest)


@pytest.fixture
def shipping(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world in which the adapter "answers" comes with Lectern."""
    shipped = write_lora(tmp_path / "shipped/base/answers", LINEARS, seed=7)
    monkeypatch.setattr("framework.models.shipped_adapters.SHIPPED", tmp_path / "shipped")
    world = World(tmp_path, settings)
    world.rate(identify(shipped).digest, right=10)
    return world


async def test_what_ships_is_rolled_back_to_only_by_those_who_have_promoted_over_it(shipping: World) -> None:
    ships = shipping.content()
    own = shipping.add("answers", 1, right=20)
    with pytest.raises(Conflict, match="nothing to be rolled back to"):
        rollback("answers", shipping.settings)
    assert (shipping.content(), shipping.outcomes()) == (own.digest, [])
    shipping.store.remove("answers", "default")
    new, newer = shipping.add("new", 2, right=30), shipping.add("newer", 3, right=40)
    await shipping.promote("answers", "new")
    await shipping.promote("answers", "newer")
    assert shipping.store.show("answers", "default").origin == "added"
    assert rollback("answers", shipping.settings).digest == new.digest
    assert rollback("answers", shipping.settings).digest == shipping.content() == ships != newer.digest
    assert shipping.store.show("answers", "default").origin == "shipped"
    with pytest.raises(Conflict, match="nothing to be rolled back to"):
        rollback("answers", shipping.settings)


async def test_a_rollback_to_what_ships_may_be_killed(shipping: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ships = shipping.content()
    shipping.add("new", 2, right=30)
    await shipping.promote()
    back = AdapterStore.rollback

    def and_killed(store: AdapterStore, *arguments: Any, **options: Any) -> None:
        back(store, *arguments, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(AdapterStore, "rollback", and_killed)
        with pytest.raises(Killed):
            rollback("answers", shipping.settings)
    assert (shipping.content(), shipping.outcomes()) == (ships, ["done", "done"])


async def test_a_challenger_that_ships_is_refused_before_anything_is_run(shipping: World) -> None:
    shipping.add("mine", 1, right=1)
    shipping.during("raise AssertionError")
    for challenger in ("answers", "base:answers"):
        with pytest.raises(Conflict, match="ships with Lectern"):
            await shipping.promote("mine", challenger)
    assert (shipping.folder / "during.py").exists(), "a question was asked"


async def test_what_a_promotion_replaced_is_kept_for_the_rollback(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = world.add("answers", 1, right=10)
    world.add("new", 2, right=30)
    await world.promote()
    world.store.remove("new", "default")
    now = adapters.time.time()
    monkeypatch.setattr(adapters.time, "time", lambda: now + 10 * adapters.KEPT_SECONDS)
    world.add("another", 5, right=1)
    world.store.remove("another", "default")
    assert rollback("answers", world.settings).digest == old.digest
    assert identify(world.store.get("answers", "default", "base").folder).digest == old.digest


async def test_a_rollback_to_files_that_are_gone_changes_nothing(world: World) -> None:
    old = world.add("answers", 1, right=10)
    new = world.add("new", 2, right=30)
    await world.promote()
    (world.store.folder / "files" / old.digest / "adapter_model.safetensors").unlink()
    with pytest.raises(StoreCorrupt, match="are gone or damaged"):
        rollback("answers", world.settings)
    assert world.content() == new.digest
    assert world.outcomes() == ["done", "abandoned"]


async def test_new_content_of_the_same_name_is_measured_anew(world: World) -> None:
    world.add("answers", 1, right=20)
    world.add("new", 2, right=5)
    assert not (await world.promote()).switched
    world.add("new", 3, right=35)
    assert (await world.promote()).switched


class Killed(BaseException):
    """The process ends here."""


async def test_killed_before_the_switch_the_name_is_as_it_was_and_the_trail_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = world.add("answers", 1, right=10), world.add("new", 2, right=30)
    with monkeypatch.context() as patch:
        patch.setattr(AdapterStore, "promote", killed)
        with pytest.raises(Killed):
            await world.promote()
    assert world.content() == old.digest
    (entry,) = Trail(world.settings.home).entries("default")
    assert entry.outcome == "open"
    assert world.outcomes() == ["abandoned"]
    assert (await world.promote()).switched
    assert world.content() == new.digest
    assert world.outcomes() == ["abandoned", "done"]


async def test_killed_after_the_switch_the_end_is_written_by_whoever_comes_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = world.add("answers", 1, right=10), world.add("new", 2, right=30)
    append = Trail.append

    def only_before(trail: Trail, identity: str, event: Any, **facts: Any) -> None:
        if event == "done":
            raise Killed
        append(trail, identity, event, **facts)

    with monkeypatch.context() as patch:
        patch.setattr(Trail, "append", only_before)
        with pytest.raises(Killed):
            await world.promote()
        assert world.content() == new.digest
        with pytest.raises(Killed):
            rollback("answers", world.settings)  # it settles first, and is killed at that
    assert world.outcomes() == ["done"]
    (entry,) = history("answers", world.settings)
    assert entry.facts["recovered"] is True
    assert rollback("answers", world.settings).digest == old.digest
    assert world.outcomes() == ["done", "done"]


async def test_a_rollback_that_was_killed_is_settled_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = world.add("answers", 1, right=10), world.add("new", 2, right=30)
    await world.promote()
    back = AdapterStore.rollback

    def and_killed(store: AdapterStore, *arguments: Any, **options: Any) -> None:
        back(store, *arguments, **options)
        raise Killed

    for function, content, outcome in ((killed, new, "abandoned"), (and_killed, old, "done")):
        with monkeypatch.context() as patch:
            patch.setattr(AdapterStore, "rollback", function)
            with pytest.raises(Killed):
                rollback("answers", world.settings)
        assert world.content() == content.digest
        assert world.outcomes()[-1] == outcome


async def test_an_end_that_nobody_can_know_any_more_is_written_as_abandoned(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add("answers", 1, right=10)
    world.add("new", 2, right=30)
    with monkeypatch.context() as patch:
        patch.setattr(AdapterStore, "promote", killed)
        with pytest.raises(Killed):
            await world.promote()
    world.store.remove("answers", "default")
    (entry,) = history("answers", world.settings)
    assert (entry.outcome, entry.facts["problem"]) == ("abandoned", "the process ended, and the name is gone")


def killed(*arguments: Any, **options: Any) -> None:
    raise Killed


async def test_two_at_once_for_one_name_are_refused(world: World) -> None:
    world.add("answers", 1, right=10)
    world.add("new", 2, right=30)
    with Trail(world.settings.home).alone("default", "answers"):
        with pytest.raises(Conflict, match="is being promoted or rolled back"):
            await world.promote()
        with pytest.raises(Conflict, match="is being promoted or rolled back"):
            rollback("answers", world.settings)
        assert world.outcomes() == []
    assert (await world.promote()).switched


def test_a_torn_line_is_dropped_and_a_damaged_one_is_told(settings: Settings) -> None:
    trail = Trail(settings.home)
    trail.append("a", "refused", tenant="t", name="n")
    with trail.path.open("a") as file:
        file.write('{"id": "b", "ev')
    assert [entry.id for entry in trail.entries("t")] == ["a"]
    trail.append("c", "refused", tenant="t", name="n")
    assert [entry.id for entry in trail.entries("t")] == ["a", "c"]
    trail.path.write_text("nonsense\n" + trail.path.read_text())
    with pytest.raises(StoreCorrupt, match=":1 is damaged"):
        trail.entries("t")


@pytest.mark.parametrize(
    ("overrides", "rule", "said"),
    [
        (("task.thresholds=[]",), Rule(), "what it must reach"),
        (('task.thresholds=["errors <= 0"]',), Rule(), "what it must reach"),
        (("target.kind=retriever",), Rule(), "answers without a chat model"),
        ((), Rule(margins={"f1": 0.1}), "'f1', which no threshold names"),
    ],
)
async def test_a_suite_that_decides_nothing_is_told(world: World, overrides: Any, rule: Rule, said: str) -> None:
    world.add("answers", 1, right=10)
    world.add("new", 2, right=30)
    with pytest.raises(ConfigError, match=said):
        await world.promote("answers", "new", *overrides, rule=rule)
    assert world.outcomes() == []


async def test_a_challenger_that_there_is_not_is_told_before_what_the_suite_lacks(world: World) -> None:
    world.add("answers", 1, right=10)
    with pytest.raises(NotFound, match="nobody"):
        await world.promote("answers", "smollm2-135m-instruct:nobody", "task.thresholds=[]")


async def test_models_that_are_no_adapters_are_judged_and_nothing_is_switched(world: World) -> None:
    world.rate("small", right=10)
    world.rate("large", right=30)
    done = await world.promote("small", "large")
    assert (done.contest.promote, done.switched) == (True, False)
    assert world.outcomes("small") == ["judged"]
    world.rate("qwen3:0.6b", right=15)
    await world.promote("qwen3:0.6b", "large")
    assert world.outcomes("qwen3:0.6b") == ["judged"]
    with pytest.raises(CallerError, match="can't contest itself"):
        await world.promote("small", "small")


def test_at_most_so_many_contents_are_kept(world: World) -> None:
    now = world.add("answers", 100, right=10).digest
    for seed in range(KEPT_VERSIONS + 2):
        new = world.add("new", seed, right=20).digest
        world.store.promote("answers", "new", "default", promotion=str(seed), champion=now, digest=new)
        now = new
    found = world.store.show("answers", "default")
    assert [version.promotion for version in found.previous] == [str(n) for n in range(1, KEPT_VERSIONS + 1)]


def run(world: World, *arguments: object) -> Result:
    from framework.cli import root

    home = {"LECTERN_LECTERN__HOME": str(world.settings.home)}
    return CliRunner().invoke(root, ["eval", *map(str, arguments)], env=home)


def test_on_the_command_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = world.add("answers", 1, right=30), world.add("new", 2, right=10)
    task = world.folder / "task.toml"
    refused = run(world, "promote", "base:answers", "base:new", task, "--by", "ci")
    assert refused.exit_code == 1, refused.output
    assert "REFUSED: exact_match is worse" in refused.output
    assert "answers is as it was" in refused.output
    done = run(world, "promote", "answers", "new", task, "--margin", "exact_match=0.9", "--json")
    assert (done.exit_code, json.loads(done.stdout)["switched"]) == (0, True)
    assert world.content() == new.digest
    back = run(world, "rollback", "answers", "--reason", "worse after all")
    assert f"answers has the content {old.digest[:12]} again." in back.stdout
    lines = run(world, "history", "answers").stdout.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["ci", promotion.user_name(), promotion.user_name()]
    said = [line.split("  ")[2] for line in lines]
    assert [text.split(":")[0] for text in said] == ["refused", "promoted", "rolled back"]
    assert len(json.loads(run(world, "history", "answers", "--json").stdout)) == 3
    assert run(world, "history", "nosuch").stdout == "Nothing has been promoted under nosuch.\n"
    for wrong in ("-1", "x", "exact_match=nan"):
        assert isinstance(run(world, "promote", "answers", "new", task, "--margin", wrong).exception, ConfigError)


REAL = """
from framework.messages import user
from framework.models.base import GenerationParams, complete
from framework.models.chat import load_chat

CHATS = {}

async def answer(question, model):
    chat = CHATS.setdefault(model, None) or load_chat(model)
    CHATS[model] = chat
    said = await complete(chat, [user(question)], params=GenerationParams(max_tokens=6))
    return said.message.content.encode().hex() or "nothing"
"""


async def test_a_real_model_s_adapters_are_measured_promoted_and_rolled_back(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The questions' answers are what one of two adapters says: it is the better one by construction."""
    base = Catalog().resolve(str(write_tiny_chat(tmp_path / "real")))
    monkeypatch.setenv("LECTERN_MODELS__ENGINE__DTYPE", "float32")
    digests = {}
    for name, seed in (("good", 1), ("bad", 2)):
        folder = write_lora(tmp_path / name, REAL_LINEARS, seed=seed, size=0.4)
        checked = Checked(identify(folder).digest, passed=True)
        digests[name] = world.store.add(name, folder, base, "default", checked=checked).digest
    (world.folder / "answers.py").write_text(REAL)
    space: dict[str, Any] = {}
    exec(REAL, space)
    questions = [f"question {number}" for number in range(24)]
    answers = [await space["answer"](question, f"{base.path}:good") for question in questions]
    rows = [{"question": q, "answers": [a]} for q, a in zip(questions, answers, strict=True)]
    (world.folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = await world.promote("answers", "good")
    assert first.switched, first.contest.reason
    worse = await world.promote("answers", "bad", 'task.thresholds=["exact_match >= 0"]')
    assert not worse.switched
    assert "exact_match is worse" in worse.contest.reason
    forced = await world.promote(
        "answers", "bad", 'task.thresholds=["exact_match >= 0"]', rule=replace(Rule(), margin=1.0)
    )
    assert forced.switched
    assert world.content() == digests["bad"]
    assert rollback("answers", world.settings).digest == digests["good"]
    assert await space["answer"](questions[0], f"{base.path}:answers") == answers[0]
