"""Packing: many examples in one sequence, what they have in common only once.

Rows of one document mostly begin alike (instructions, the passage, tools), and a language model computes the same
states for the same beginning. So a sequence holds each common beginning once and the rest of each example as a branch
that sees the beginning and itself; positions count within the example. Losses and gradients equal those of the examples
alone, at a fraction of the tokens: 14 questions on a passage of 200 tokens take 600 tokens instead of 3,300.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Final

from framework.training.rendering import Example, check_length

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IGNORED: Final = -100
LEAST_SHARED: Final = 16  # tokens; a shorter beginning is not worth a branch


@dataclass(slots=True)
class Packed:
    """One sequence.

    Attributes:
        ids: token ids.
        labels: the same where the loss counts, else -100. Models shift them by one.
        positions: place of each token in its example.
        branch: number of the part that a token belongs to.
        trunk: by part, the part that its tokens see besides; itself where there is none.
    """

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)
    trunk: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def append(self, ids: Sequence[int], start: int, labelled_from: int, trunk: int | None = None) -> int:
        """Add a part that begins at position `start` of its example; returns its number."""
        part = len(self.trunk)
        self.trunk.append(part if trunk is None else trunk)
        self.ids += ids
        self.labels += [token if start + i >= labelled_from else IGNORED for i, token in enumerate(ids)]
        self.positions += range(start, start + len(ids))
        self.branch += [part] * len(ids)
        return part


def pack(examples: Iterable[Example], length: int) -> list[Packed]:
    """Sequences of at most `length` tokens; examples of one document that follow each other share their beginning.

    Raises:
        TooLarge: an example is longer than that.
    """
    packed: list[Packed] = []
    open_ = Packed()
    for _, group in groupby(examples, key=lambda example: example.document):
        for family in _families(list(group)):
            for members, shared in _fitting(family, length):
                size = shared + sum(len(member.ids) - shared for member in members)
                if len(open_) + size > length and len(open_):
                    packed.append(open_)
                    open_ = Packed()
                _add(open_, members, shared)
    return [*packed, open_] if len(open_) else packed


def _families(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Examples that have a beginning in common; the order within a document does not matter."""
    family: list[Example] = []
    for example in sorted(examples, key=lambda e: e.ids):
        if family and _shared([family[0], example]) < LEAST_SHARED:
            yield family
            family = []
        family.append(example)
    if family:
        yield family


def _shared(members: Sequence[Example]) -> int:
    """Length of the common beginning; each member keeps a token of its prompt, from which its loss starts."""
    first = members[0].ids
    limit = min(member.prompt for member in members) - 1
    for member in members[1:]:
        limit = next((i for i in range(limit) if member.ids[i] != first[i]), limit)
    return limit


def _fitting(family: Sequence[Example], length: int) -> Iterator[tuple[list[Example], int]]:
    """The family in parts that fit, each with the length of its common beginning."""
    members: list[Example] = []
    for example in family:
        check_length(len(example.ids), length, example.document)
        trial = [*members, example]
        shared = _shared(trial) if len(trial) > 1 else 0
        if members and shared + sum(len(m.ids) - shared for m in trial) > length:
            yield members, _shared(members) if len(members) > 1 else 0
            members = []
        members.append(example)
    if members:
        yield members, _shared(members) if len(members) > 1 else 0


def _add(packed: Packed, members: Sequence[Example], shared: int) -> None:
    trunk = packed.append(members[0].ids[:shared], 0, shared) if shared else None
    for member in members:
        packed.append(member.ids[shared:], shared, member.prompt, trunk)


def visible(packed: Packed) -> NDArray[np.bool_]:
    """Which token sees which: array of shape (tokens, tokens), rows the ones that look."""
    import numpy as np

    branch = np.array(packed.branch)
    trunk = np.array(packed.trunk)[branch]
    same = (branch[:, None] == branch[None, :]) | (trunk[:, None] == branch[None, :])
    return np.asarray(same & np.tri(len(branch), dtype=bool))
