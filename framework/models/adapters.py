"""Named adapters: which there are for whom, in the state directory, in files that never change once they are there.

    adapters/adapters.json        the names: tenant, base, digest, active, pinned; replaced as a whole, so always whole
    adapters/files/DIGEST/        the two files of one adapter, under the SHA-256 of their content
    adapters/staging/             a copy on its way; whoever holds the lock clears what a killed process left here

A name that is replaced points to another digest from then on, while requests that run keep the files they began with.
Files that no name needs any more are removed a day later, when adapters are next changed: no request runs so long. A
name needs its content and what promotions have replaced, so that it can be rolled back (`named_adapter.py`).

Adapters that ship with Lectern (`shipped_adapters.py`) are everybody's; a tenant's own of the same name goes first.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from framework.config import Settings, make_home
from framework.engine.adapter import Adapter
from framework.errors import CallerError, Conflict, NotFound, OperatorError, StoreCorrupt
from framework.models import shipped_adapters as ships
from framework.models.adapter_files import AdapterFiles, sync
from framework.models.base import ModelCard
from framework.models.catalog import Resolved
from framework.models.config import EngineConfig, ModelsConfig
from framework.models.named_adapter import Checked, NamedAdapter, require_digest
from framework.models.shipped_adapters import find_shipped, shipped_adapters

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KEPT_SECONDS: Final = 24 * 3600.0  # that files stay after the last name left them
LOCK_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class _Table:
    """What adapters.json holds; `released` has the Unix time at which the last name left a digest."""

    adapters: list[NamedAdapter]
    released: dict[str, float]


_READER: Final = TypeAdapter(_Table)


def base_id(card: ModelCard) -> str:
    """What adapters call their base: the model's name, or the absolute path of a local folder."""
    return card.source if card.origin == "folder" else card.name


class AdapterStore:
    """The adapters of a state directory. Safe for threads and for several processes; a change counts once it is made.

    Args:
        home: the state directory.
        slots: adapters that an engine holds at once; as many but one may be pinned for each base.
        shipped: folder of the adapters that come with Lectern; None: the one in the package.
    """

    def __init__(self, home: Path, slots: int = EngineConfig().adapter_slots, shipped: Path | None = None) -> None:
        self.home = home
        self.folder = home / "adapters"
        self._files = AdapterFiles(self.folder)
        self.slots = slots
        self.shipped = ships.SHIPPED if shipped is None else shipped

    @classmethod
    def open(cls, settings: Settings) -> AdapterStore:
        """The store of a configuration."""
        return cls(settings.home, settings.section("models", ModelsConfig).engine.adapter_slots)

    def list(self, tenant: str) -> list[NamedAdapter]:
        """All of a tenant's adapters, by name; those that ship too, unless one of its own goes before them."""
        own = [a for a in self._table().adapters if a.tenant == tenant]
        taken = {(a.name, a.base) for a in own}
        shipped = [a for a, _ in shipped_adapters(self.shipped, tenant) if (a.name, a.base) not in taken]
        return sorted((*own, *shipped), key=lambda a: (a.name, a.base))

    def show(self, name: str, tenant: str, base: str | None = None) -> NamedAdapter:
        """The tenant's own, or the one that ships, for this base where one is given.

        Raises:
            NotFound: the tenant has no such adapter, and none ships.
        """
        own, shipped = _look_up(self._table(), name, tenant), find_shipped(self.shipped, name, tenant, base)
        if own is not None:
            return own
        if shipped is None:
            raise _missing(name)
        return shipped[0]

    def hides(self, adapter: NamedAdapter) -> bool:
        """Whether one of the same name that ships with Lectern is not used because of this one."""
        same = find_shipped(self.shipped, adapter.name, adapter.tenant, adapter.base)
        return same is not None and adapter.origin != "shipped"

    def get(self, name: str, tenant: str, base: str) -> Adapter:
        """The adapter that a request to this base uses now.

        Raises:
            NotFound: the tenant has no such adapter for this base.
            Conflict: it is deactivated, or was refused by the parity gate.
        """
        table = self._table()
        pinned = frozenset(a.digest for a in table.adapters if a.pinned and a.usable and a.base == base)
        found = _look_up(table, name, tenant)
        if found is None or found.base != base:
            shipped = find_shipped(self.shipped, name, tenant, base)
            if shipped is None:
                raise _missing(name, base)
            return Adapter(shipped[0].digest, shipped[1], pinned)
        found.require_usable()
        return Adapter(found.digest, self._files.place(found.digest), pinned)

    def add(
        self,
        name: str,
        folder: Path,
        base: Resolved,
        tenant: str,
        *,
        overwrite: bool = False,
        checked: Checked | None = None,
    ) -> NamedAdapter:
        """Copy an adapter here and give it a name, once it is known to fit its base.

        Args:
            overwrite: give a name that exists the new content; it stays active and pinned, or not, as it was.
            checked: what the parity gate said of the content; None: nobody has asked it.

        Raises:
            CallerError: the name is no name, or the adapter can't be served on this base; the message says why.
            Conflict: the name exists, with other content or for another base; or the gate saw other content, or
                refused what would take the place of something that works.
            OperatorError: it can't be written.
        """
        check_name(name)
        with self._changing() as table:
            known = _look_up(table, name, tenant)
            adapter, size = self._files.take_in(name, folder, base.path)
            made = NamedAdapter(tenant, name, base_id(base.card), adapter.digest, size, time.time())
            if known is None and not overwrite and self.hides(made):
                raise Conflict(
                    f"An adapter {name!r} ships with Lectern.",
                    hint='Put yours before it (--replace, over HTTP "replace": true), or choose another name.',
                    field="name",
                )
            if known is not None:
                made = known.replaced_by(made, allowed=overwrite and (checked is None or checked.passed))
            if checked is not None:
                require_digest(name, checked.digest, made)
                made = made.checked(checked)
            if made != known:
                self._commit(table, known, made)
        return made

    def mark(self, name: str, tenant: str, checked: Checked) -> NamedAdapter:
        """Note what the parity gate said of a name's content; one that it refuses answers no request from now on.

        Raises:
            NotFound: the tenant has no such adapter.
            Conflict: it has other content by now.
        """
        with self._changing() as table:
            known = self._own(table, name, tenant)
            require_digest(name, checked.digest, known)
            made = known.checked(checked)
            self._commit(table, known, made)
        return made

    def promote(
        self, name: str, challenger: str, tenant: str, *, promotion: str, champion: str | None, digest: str
    ) -> NamedAdapter:
        """Give a name the content of another one, in one step; what it held can be rolled back to.

        Args:
            promotion: its id, which the name carries from then on.
            champion: the digest that the name is believed to have; None: there is no such name.
            digest: the challenger's.

        Raises:
            NotFound: there is no such challenger.
            Conflict: one of them is not what it is believed to be, the challenger is not live, or the bases differ.
            StoreCorrupt: the challenger's files are damaged.
        """
        check_name(name)
        with self._changing() as table:
            new = _find(table, challenger, tenant)
            require_digest(challenger, digest, new)
            new.require_live()
            known = _look_up(table, name, tenant)
            shipped = find_shipped(self.shipped, name, tenant, new.base)
            old = known or (shipped[0] if shipped and champion else None)
            require_digest(name, champion, old)
            if known is not None and known.base != new.base:
                raise Conflict(f"{name!r} is for the base {known.base}, {challenger!r} for {new.base}.", field="name")
            self._files.require(name, new.digest)
            made = (
                replace(new, name=name, pinned=False, added=time.time(), previous=(), promotion=promotion)
                if old is None
                else old.promoted(new, promotion, time.time())
            )
            self._commit(table, known, made)
        return made

    def rollback(self, name: str, tenant: str, *, promotion: str, digest: str) -> NamedAdapter:
        """Give a name back what it held before the last promotion, in one step.

        Where that was an adapter that ships with Lectern, the tenant's own name goes.

        Args:
            promotion: the rollback's id, which the name carries from then on.
            digest: what the name is believed to hold now.

        Raises:
            NotFound: there is no such adapter.
            Conflict: there is nothing to go back to, or it holds something else by now.
            StoreCorrupt: the files of what it would go back to are gone or damaged.
        """
        with self._changing() as table:
            known = self._own(table, name, tenant)
            require_digest(name, digest, known)
            made = known.rolled_back(promotion, time.time())
            shipped = find_shipped(self.shipped, name, tenant, known.base)
            if shipped is not None and known.previous[-1].origin == "shipped":
                self._commit(table, known, None)
                return shipped[0]
            self._files.require(name, made.digest)
            self._commit(table, known, made)
        return made

    def files(self, adapter: NamedAdapter) -> Path:
        """The folder that holds a name's two files."""
        shipped = find_shipped(self.shipped, adapter.name, adapter.tenant, adapter.base)
        if shipped is not None and adapter.origin == "shipped":
            return shipped[1]
        return self._files.place(adapter.digest)

    def change(self, name: str, tenant: str, *, active: bool | None = None, pinned: bool | None = None) -> NamedAdapter:
        """Activate or deactivate, pin or unpin; None leaves it as it is.

        Raises:
            NotFound: the tenant has no such adapter.
            Conflict: a pinned one more would leave no slot for the others, or what the parity gate has refused was to
                be activated.
        """
        with self._changing() as table:
            known = self._own(table, name, tenant)
            if active and known.state == "refused":
                known.require_usable()
            made = replace(
                known,
                active=known.active if active is None else active,
                pinned=known.pinned if pinned is None else pinned,
            )
            if made.pinned and not known.pinned:
                self._check_pins(table, made)
            self._commit(table, known, made)
        return made

    def remove(self, name: str, tenant: str) -> NamedAdapter:
        """Take a name away; requests that run end with what they began with.

        Raises:
            NotFound: the tenant has no such adapter.
        """
        with self._changing() as table:
            known = self._own(table, name, tenant)
            self._commit(table, known, None)
        return known

    def _own(self, table: _Table, name: str, tenant: str) -> NamedAdapter:
        """One that can be changed.

        Raises:
            NotFound: there is none.
            Conflict: it ships with Lectern.
        """
        if _look_up(table, name, tenant) is None and find_shipped(self.shipped, name, tenant):
            raise Conflict(
                f"The adapter {name!r} ships with Lectern and can't be changed.",
                hint="One that you add under its name (--replace) goes before it.",
                field="name",
            )
        return _find(table, name, tenant)

    def _check_pins(self, table: _Table, wanted: NamedAdapter) -> None:
        pinned = {a.digest for a in table.adapters if a.pinned and a.base == wanted.base} | {wanted.digest}
        if len(pinned) >= self.slots:
            raise Conflict(
                f"{len(pinned) - 1} adapters are pinned, and {self.slots} slots must leave one free.",
                hint="Unpin one, or raise models.engine.adapter_slots.",
                field="name",
            )

    @property
    def _record(self) -> Path:
        return self.folder / "adapters.json"

    def _table(self) -> _Table:
        try:
            return _READER.validate_json(self._record.read_bytes())
        except FileNotFoundError:
            return _Table([], {})
        except ValidationError as error:
            raise StoreCorrupt(
                f"{self._record} is damaged: {error.errors()[0]['msg']}.",
                hint="Put back a copy, or remove it and add the adapters again from adapters/files.",
            ) from error
        except OSError as error:
            raise OperatorError(f"{self._record} can't be read: {error.strerror}.") from error

    @contextmanager
    def _changing(self) -> Iterator[_Table]:
        """The table while nobody else changes it."""
        from filelock import FileLock, Timeout

        make_home(self.home)
        try:
            self.folder.mkdir(exist_ok=True)
            with FileLock(self.folder / "lock", timeout=LOCK_SECONDS):
                yield self._table()
        except Timeout:
            raise OperatorError(f"{self.folder} has been locked for {LOCK_SECONDS:g} seconds.") from None
        except OSError as error:
            raise OperatorError(
                f"{error.filename or self.folder} can't be read or written: {error.strerror}."
            ) from error

    def _commit(self, table: _Table, old: NamedAdapter | None, new: NamedAdapter | None) -> None:
        """Write the table with one name changed, then remove what nothing has used for long."""
        now = time.time()
        adapters = [*(a for a in table.adapters if a != old), *([new] if new else [])]
        used = {digest for a in adapters for digest in a.digests}
        left = table.released | dict.fromkeys(old.digests if old else (), now)
        released = {digest: at for digest, at in left.items() if digest not in used}
        gone = [digest for digest, at in released.items() if now - at > KEPT_SECONDS]
        kept = {digest: at for digest, at in released.items() if digest not in gone}
        self._write({"adapters": [asdict(a) for a in adapters], "released": kept})
        for digest in gone:
            self._files.remove(digest)

    def _write(self, values: Mapping[str, Any]) -> None:
        draft = self._record.with_suffix(".draft")
        with draft.open("w", encoding="utf-8") as file:
            json.dump(values, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._record)
        sync(self.folder)


def check_name(name: str) -> None:
    """Raises: CallerError: it can't name an adapter."""
    if not NAME.fullmatch(name):
        raise CallerError(
            f"{name[:80]!r} can't name an adapter.",
            hint="Use 1 to 64 letters, digits, dots, dashes and underscores, a letter or digit first.",
            field="name",
        )


def split_name(model: str) -> tuple[str, str]:
    """Base and adapter of a model's name such as "smollm2-135m-instruct:support"; the adapter is empty without one."""
    base, _, adapter = model.rpartition(":")
    named = base and NAME.fullmatch(adapter) and not Path(model).expanduser().exists()
    return (base, adapter) if named else (model, "")


def _find(table: _Table, name: str, tenant: str) -> NamedAdapter:
    found = _look_up(table, name, tenant)
    if found is None:
        raise _missing(name)
    return found


def _missing(name: str, base: str | None = None) -> NotFound:
    """The same error for a name that doesn't exist and for another tenant's."""
    for_base = f" for {base}" if base is not None else ""
    return NotFound(
        f"There is no adapter {name[:80]!r}{for_base}.", hint="`lectern adapters list` shows them.", field="adapter"
    )


def _look_up(table: _Table, name: str, tenant: str) -> NamedAdapter | None:
    return next((a for a in table.adapters if (a.tenant, a.name) == (tenant, name)), None)
