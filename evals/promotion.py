"""A name gets a challenger's content if that has won on a suite, and its own back in one call.

Order makes it safe to be killed at any moment: the trail announces a switch with all that led to it, the adapter store
makes it in one step and remembers the id, the trail confirms it. `settle` writes the end that a killed process owes.
"""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

from evals.contest import Contest, Rule, counted, hold
from evals.identity import adapter_base
from evals.targets import Progress
from evals.task import Task
from evals.trail import Entry, Trail
from framework.config import Settings
from framework.errors import CallerError, Conflict, LecternError, NotFound
from framework.models.adapters import AdapterStore, check_name, split_name
from framework.models.named_adapter import NamedAdapter


@dataclass(frozen=True, slots=True)
class Promotion:
    """How it went. `switched`: the name has the challenger's content now; False for models that have no name here."""

    id: str
    name: str
    contest: Contest
    switched: bool


async def promote(
    name: str,
    challenger: str,
    task: Task,
    settings: Settings,
    *,
    rule: Rule | None = None,
    by: str = "",
    limit: int | None = None,
    fresh: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Promotion:
    """Let a challenger contest a name on a task, and give the name its content if it wins.

    Args:
        name: the adapter's that is contested, with or without its base in front; it may not exist yet. Two models that
            are no adapters are compared and nothing is switched.
        by: who does it; empty: the user of this process.

    Raises:
        NotFound: there is no such challenger.
        Conflict: champion or challenger can't be used, they are the same, or one was changed meanwhile.
        ConfigError: the task says nothing that could decide.
    """
    by = by or user_name()
    store, trail, tenant = AdapterStore.open(settings), Trail(settings.home), settings.core.tenant
    new = _adapter(store, challenger, settings)
    counted(task)
    if new is None:
        return await _judge(name, challenger, task, settings, rule or Rule(), trail, by, limit, fresh, progress)
    plain = split_name(name)[1] or name
    check_name(plain)
    with trail.alone(tenant, plain):
        settle(plain, settings)
        old = _champion(store, name, new, settings)
        contest = await hold(
            task, old.model if old else None, new.model, settings, rule or Rule(), limit=limit, fresh=fresh,
            progress=progress,
        )  # fmt: skip
        identity = uuid4().hex
        facts = {**_facts("promote", plain, tenant, by, task, contest, rule or Rule()), **_sides(old, new)}
        if not contest.promote:
            trail.append(identity, "refused", **facts)
            return Promotion(identity, plain, contest, False)
        trail.append(identity, "decided", **facts)
        _switch(store, trail, identity, plain, old, new)
    return Promotion(identity, plain, contest, True)


def _switch(
    store: AdapterStore, trail: Trail, identity: str, name: str, old: NamedAdapter | None, new: NamedAdapter
) -> None:
    """Give the name its content, and note that it has it, or why not."""
    champion = old.digest if old else None
    try:
        store.promote(name, new.name, new.tenant, promotion=identity, champion=champion, digest=new.digest)
    except LecternError as error:
        trail.append(identity, "abandoned", problem=str(error))
        raise
    trail.append(identity, "done")


def rollback(name: str, settings: Settings, *, by: str = "", reason: str = "") -> NamedAdapter:
    """Give a name back what it held before its last promotion. Again goes back one further.

    Raises:
        NotFound: there is no such adapter.
        Conflict: there is nothing to go back to, or it is being promoted.
        StoreCorrupt: the files of what it would go back to are gone or damaged; nothing was changed.
    """
    store, trail, tenant = AdapterStore.open(settings), Trail(settings.home), settings.core.tenant
    plain = split_name(name)[1] or name
    with trail.alone(tenant, plain):
        settle(plain, settings)
        known, identity = store.show(plain, tenant), uuid4().hex
        target = known.rolled_back(identity, known.added).digest
        facts = {"action": "rollback", "tenant": tenant, "name": plain, "by": by or user_name(), "reason": reason}
        trail.append(identity, "decided", **facts, **{"from": known.digest, "to": target})
        try:
            made = store.rollback(plain, tenant, promotion=identity, digest=known.digest)
        except LecternError as error:
            trail.append(identity, "abandoned", problem=str(error))
            raise
        trail.append(identity, "done", to=made.digest)
    return made


def history(name: str, settings: Settings) -> list[Entry]:
    """What became of an adapter or a model, oldest first; an end that a killed process owes is written before."""
    trail, tenant = Trail(settings.home), settings.core.tenant
    plain = split_name(name)[1] or name
    try:
        with trail.alone(tenant, plain):
            settle(plain, settings)
    except Conflict:  # somebody is at it: what is open is not finished yet
        pass
    return [entry for entry in trail.entries(tenant) if entry.facts.get("name") in (name, plain)]


def settle(name: str, settings: Settings) -> None:
    """Write the ends that are missing in a name's trail; only while nobody else works on it."""
    store, trail, tenant = AdapterStore.open(settings), Trail(settings.home), settings.core.tenant
    for entry in trail.entries(tenant, name):
        if entry.outcome != "open":
            continue
        try:
            known = store.show(name, tenant)
        except NotFound:
            trail.append(entry.id, "abandoned", recovered=True, problem="the process ended, and the name is gone")
            continue
        made = {known.promotion, *(version.promotion for version in known.previous)}
        back = entry.action == "rollback" and known.origin == "shipped"  # which remembers no id
        if entry.id in made or back:
            trail.append(entry.id, "done", recovered=True)
        else:
            trail.append(entry.id, "abandoned", recovered=True, problem="the process ended before the switch")


def user_name() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no such user in the system's list
        return "unknown"


def _adapter(store: AdapterStore, model: str, settings: Settings) -> NamedAdapter | None:
    """The live adapter that a name or BASE:NAME means; None: a model of another kind.

    Raises:
        NotFound: BASE:NAME names no adapter.
        Conflict: it is not live, or ships with Lectern.
    """
    base, name = split_name(model)
    id = adapter_base(base, settings) if name else None
    try:
        found = store.show(name or model, settings.core.tenant, id)
    except NotFound:
        if id is not None:
            raise
        return None
    if name and id != found.base:
        raise NotFound(f"There is no adapter {name!r} for {base}.", hint="`lectern adapters list` shows them.")
    found.require_live()
    if found.origin == "shipped":
        raise Conflict(
            f"The adapter {found.name!r} ships with Lectern, so it can't take another name.", field="challenger"
        )
    return found


def _champion(store: AdapterStore, name: str, new: NamedAdapter, settings: Settings) -> NamedAdapter | None:
    """Who holds the name now; None: nobody.

    Raises:
        Conflict: it can't be used, is for another base, or is what contests it.
    """
    base, plain = split_name(name)
    if plain and adapter_base(base, settings) != new.base:
        raise Conflict(f"{name!r} is for {base}, the challenger {new.name!r} for {new.base}.", field="name")
    try:
        old = store.show(plain or name, settings.core.tenant, new.base)
    except NotFound:
        return None
    if old.digest == new.digest:
        raise Conflict(f"{old.name!r} and {new.name!r} have the same content: there is nothing to promote.")
    if old.base != new.base:
        raise Conflict(f"{old.name!r} is for {old.base}, {new.name!r} for {new.base}.", field="name")
    old.require_usable()
    return old


async def _judge(
    champion: str, challenger: str, task: Task, settings: Settings, rule: Rule, trail: Trail, by: str,
    limit: int | None, fresh: bool, progress: Progress,
) -> Promotion:  # fmt: skip
    """Two models that are no adapters: the same contest, and nothing to switch."""
    from framework.models.chat import check_chat
    from framework.models.config import ModelsConfig

    if champion == challenger:
        raise CallerError("A model can't contest itself.", field="challenger")
    if task.target.get("kind") != "python":
        for model in (challenger, champion):
            check_chat(model, settings.section("models", ModelsConfig), settings=settings)
    contest = await hold(task, champion, challenger, settings, rule, limit=limit, fresh=fresh, progress=progress)
    identity = uuid4().hex
    facts = _facts("promote", champion, settings.core.tenant, by, task, contest, rule)
    sides = {"champion": {"model": champion}, "challenger": {"model": challenger}}
    trail.append(identity, "judged" if contest.promote else "refused", **facts, **sides)
    return Promotion(identity, champion, contest, False)


def _sides(old: NamedAdapter | None, new: NamedAdapter) -> dict[str, Any]:
    def side(adapter: NamedAdapter) -> dict[str, str]:
        return {"model": adapter.model, "digest": adapter.digest}

    return {"champion": side(old) if old else None, "challenger": side(new)}


def _facts(action: str, name: str, tenant: str, by: str, task: Task, contest: Contest, rule: Rule) -> Mapping[str, Any]:
    return {
        "action": action,
        "tenant": tenant,
        "name": name,
        "by": by,
        "suite": {"name": task.name, "digest": contest.suite},
        "data": contest.data,
        "runs": contest.runs,
        "limit": contest.limit,
        "rule": asdict(rule),
        "scores": [asdict(one) for one in contest.compared],
        "decision": "promote" if contest.promote else "refuse",
        "reason": contest.reason,
    }
