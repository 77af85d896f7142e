"""One adapter's name and what is known of its content: whether requests may use it, and what it held before.

The state of a name, as lists and HTTP show it:

    live         it has passed the parity gate: the engine gives what its trainer gave
    unchecked    it was added from elsewhere and answers, but nobody has compared it with a trainer
    refused      the parity gate has failed; requests get the reason
    deactivated  switched off on purpose
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from framework.errors import Conflict

Parity: TypeAlias = Literal["unchecked", "passed", "failed"]
State: TypeAlias = Literal["live", "unchecked", "refused", "deactivated"]
Origin: TypeAlias = Literal["added", "shipped"]
KEPT_VERSIONS: Final = 5  # earlier contents that a name can be rolled back to


@dataclass(frozen=True, slots=True)
class Checked:
    """What the parity gate said of a content; `reason` is why it failed."""

    digest: str
    passed: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Version:
    """A content that a name held before a promotion; its files are kept as long as it stands here.

    `origin` is "shipped" where nobody had given the name a content: going back to that takes the tenant's name away.
    """

    digest: str
    bytes: int
    added: float
    parity: Parity = "unchecked"
    reason: str = ""
    promotion: str = ""
    origin: Origin = "added"


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """One name's present state.

    Attributes:
        base: the base model, as `base_id` names it.
        digest: of the content; see `Adapter`.
        bytes: size of the weights' file.
        added: Unix time of when the name was given this content.
        active: nobody has deactivated it.
        pinned: once resident in an engine, it stays there.
        parity: what the parity gate said of this content; `reason` is why it failed.
        previous: what promotions have replaced, the newest last; `rollback` goes back along it.
        promotion: id of the last promotion or rollback that changed the content; empty: there was none.
        origin: "shipped": it comes with Lectern and is everybody's; see `shipped_adapters`.
    """

    tenant: str
    name: str
    base: str
    digest: str
    bytes: int
    added: float
    active: bool = True
    pinned: bool = False
    parity: Parity = "unchecked"
    reason: str = ""
    previous: tuple[Version, ...] = ()
    promotion: str = ""
    origin: Origin = "added"

    @property
    def model(self) -> str:
        """What requests name to be answered by the base with it."""
        return f"{self.base}:{self.name}"

    @property
    def state(self) -> State:
        if self.parity == "failed":
            return "refused"
        if not self.active:
            return "deactivated"
        return "live" if self.parity == "passed" else "unchecked"

    @property
    def usable(self) -> bool:
        """Requests may use it."""
        return self.state in ("live", "unchecked")

    @property
    def digests(self) -> frozenset[str]:
        """The contents whose files it needs."""
        return frozenset((self.digest, *(version.digest for version in self.previous)))

    def require_usable(self) -> None:
        """Raises: Conflict: it is refused or deactivated."""
        if self.state == "refused":
            raise Conflict(
                f"The adapter {self.name!r} failed the parity gate: {self.reason}.",
                hint=f"Train and publish it again; `lectern adapters check {self.name}` repeats the comparison.",
                field="model",
            )
        if not self.active:
            raise Conflict(
                f"The adapter {self.name!r} is deactivated.",
                hint=f"`lectern adapters activate {self.name}` lets requests use it again.",
                field="model",
            )

    def require_live(self) -> None:
        """Raises: Conflict: it is refused, deactivated, or nobody has checked it."""
        self.require_usable()
        if self.parity != "passed":
            raise Conflict(
                f"The adapter {self.name!r} has not passed the parity gate.",
                hint=f"`lectern adapters check {self.name}` asks it.",
                field="model",
            )

    def replaced_by(self, new: NamedAdapter, *, allowed: bool) -> NamedAdapter:
        """This name with new content and what it has kept so far; itself where the content is the same.

        Raises:
            Conflict: it has other content, and that is not allowed to go.
        """
        if (self.digest, self.base) == (new.digest, new.base):
            return self
        if not allowed:
            raise Conflict(
                f"There is an adapter {self.name!r} with other content already.",
                hint='Replace it on purpose (--replace, over HTTP "replace": true), or choose another name.',
                field="name",
            )
        kept = self.previous if self.base == new.base else ()
        return replace(new, active=self.active, pinned=self.pinned, previous=kept, promotion=self.promotion)

    def checked(self, result: Checked) -> NamedAdapter:
        """With what the gate said of this content."""
        assert result.digest == self.digest, "the gate compared another content"
        return replace(self, parity="passed" if result.passed else "failed", reason=result.reason)

    def promoted(self, other: NamedAdapter, promotion: str, now: float) -> NamedAdapter:
        """With the content of another name; the present one can be rolled back to."""
        previous = (*self.previous, self._version())[-KEPT_VERSIONS:]
        return replace(
            self,
            digest=other.digest,
            bytes=other.bytes,
            added=now,
            parity=other.parity,
            reason=other.reason,
            previous=previous,
            promotion=promotion,
            origin="added",
        )

    def rolled_back(self, promotion: str, now: float) -> NamedAdapter:
        """With what it held before the last promotion.

        Raises:
            Conflict: there is nothing to go back to.
        """
        if not self.previous:
            raise Conflict(
                f"The adapter {self.name!r} has nothing to be rolled back to.",
                hint=f"No promotion has replaced its content. `lectern adapters deactivate {self.name}` stops its use.",
                field="name",
            )
        last = self.previous[-1]
        return replace(
            self,
            digest=last.digest,
            bytes=last.bytes,
            added=now,
            parity=last.parity,
            reason=last.reason,
            previous=self.previous[:-1],
            promotion=promotion,
        )

    def _version(self) -> Version:
        return Version(self.digest, self.bytes, self.added, self.parity, self.reason, self.promotion, self.origin)


def require_digest(name: str, digest: str | None, adapter: NamedAdapter | None) -> None:
    """Refuse to change what is not as it was seen; None stands for a name that does not exist.

    Raises:
        Conflict: the name holds something else.
    """
    now = adapter.digest if adapter else None
    if now != digest:
        was, is_now = (text[:12] if text else "nothing" for text in (digest, now))
        raise Conflict(
            f"The adapter {name!r} has changed meanwhile: it was {was}, it is {is_now}.",
            hint="Nothing was changed; start again.",
            field="name",
        )
