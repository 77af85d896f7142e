"""Blocks of the key-value cache: who holds which, and what the free ones still contain.

Sequences share full blocks whose contents are equal; whoever will write into a partly equal block gets a copy of it.
Contents are known by a chain of hashes, so that a block stands for all tokens up to its end (as in vLLM's automatic
prefix caching, here down to the single token): the root of a chain is the salt and the adapter, each next link hashes
the one before with a block's tokens.
"""

from __future__ import annotations

import json
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from framework.engine.sequence import Request, Sequence


@dataclass(frozen=True, slots=True)
class Plan:
    """How a waiting sequence would get its blocks.

    Attributes:
        shared: full blocks that hold its first tokens.
        source: the block whose first tokens are its next ones, to be copied; None: there is none.
        cached: tokens that need no computing, in all.
        fresh: blocks to be taken from the free ones.
        lack: blocks that must become free before.
    """

    shared: tuple[int, ...]
    source: int | None
    cached: int
    fresh: int
    lack: int


@dataclass(slots=True)
class _Content:
    """What a block holds: `tokens` after everything that `parent` hashes; `digest` once the block is full."""

    parent: bytes
    tokens: list[int]
    digest: bytes | None = None


class BlockManager:
    """Hands out blocks, counts references to them, and finds known prefixes.

    Contents become known with `commit`, when they have been computed; a block that nobody holds keeps them until it is
    needed for something else, the least recently used first.

    Args:
        blocks: how many there are.
        block_size: tokens that one holds.
        prefix_cache: False: contents are not remembered.
    """

    def __init__(self, blocks: int, block_size: int, prefix_cache: bool = True) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self._references = [0] * blocks
        self._contents: list[_Content | None] = [None] * blocks
        self._empty = list(range(blocks - 1, -1, -1))  # free, contents unknown
        self._cached: OrderedDict[int, None] = OrderedDict()  # free, contents known, least recently used first
        self._full: dict[bytes, int] = {}  # the block of each digest
        self._starts: dict[tuple[bytes, int], dict[int, None]] = {}  # blocks by parent and first token, in order
        self._pending: dict[bytes, Sequence] = {}  # full blocks that are yet to be computed, and by whom
        self._sources: list[int] = []  # held until they have been copied

    @property
    def available(self) -> int:
        """Blocks that nobody holds."""
        return len(self._empty) + len(self._cached)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-tokens // self.block_size)

    def plan(self, sequence: Sequence) -> Plan:
        """What a sequence without blocks shares, copies and needs; at least one token is left to compute."""
        shared, source, cached = self._match(sequence) if self.prefix_cache else ([], None, 0)
        fresh = self.blocks_for(len(sequence.tokens)) - len(shared)
        lack = fresh + sum(not self._references[block] for block in shared) - self.available
        if source is not None and not self._references[source]:
            if lack < 0:
                lack += 1  # the source stays as it is until it has been copied
            else:  # no room for both: computing those tokens again is better than waiting
                source, cached = None, len(shared) * self.block_size
        return Plan(tuple(shared), source, cached, fresh, lack)

    def admit(self, sequence: Sequence, plan: Plan) -> tuple[tuple[int, int], ...]:
        """Give a sequence blocks for all its known tokens; returns the copy (from, to) to be made first, if any."""
        assert plan.lack <= 0
        for block in plan.shared:
            self._hold(block)
        if plan.source is not None:
            self._hold(plan.source)
            self._sources.append(plan.source)
        sequence.blocks = [*plan.shared, *(self._take() for _ in range(plan.fresh))]
        sequence.computed = plan.cached
        if self.prefix_cache:
            for digest in self._chain(sequence, len(sequence.tokens) // self.block_size)[len(plan.shared) :]:
                self._pending[digest] = sequence
        return () if plan.source is None else ((plan.source, sequence.blocks[len(plan.shared)]),)

    def grow(self, sequence: Sequence) -> None:
        """Give a running sequence the blocks that its known tokens lack."""
        for _ in range(self.blocks_for(len(sequence.tokens)) - len(sequence.blocks)):
            sequence.blocks.append(self._take())

    def commit(self, sequence: Sequence, count: int) -> None:
        """So many more tokens of a sequence have been computed; their blocks' contents are known from now on."""
        first = sequence.computed
        end = sequence.computed = first + count
        if not self.prefix_cache:
            return
        size = self.block_size
        for index in range(first // size, (end - 1) // size + 1):
            start, stop = index * size, min((index + 1) * size, end)
            block = sequence.blocks[index]
            content = self._contents[block]
            if content is None:
                content = self._register(block, self._parent(sequence, index), sequence.tokens[start:stop])
            else:
                content.tokens += sequence.tokens[max(first, start) : stop]
            if stop - start == size:
                self._fill(sequence, index, content)

    def free(self, sequence: Sequence) -> None:
        """Take all blocks of a sequence back; what was computed stays known."""
        for digest in sequence.digests:
            if self._pending.get(digest) is sequence:
                del self._pending[digest]
        for block in reversed(sequence.blocks):  # the end of a prefix is of less use than its beginning: it goes first
            self._let_go(block)
        sequence.blocks = []
        sequence.computed = 0

    def copied(self) -> None:
        """The copies have been made, or never will be: their sources may be reused."""
        for block in self._sources:
            self._let_go(block)
        self._sources.clear()

    def computing(self, sequence: Sequence) -> Sequence | None:
        """Whoever holds the block that is to contain the first unknown full block of this sequence, if anyone."""
        if not self._pending:
            return None
        digests = self._chain(sequence, (len(sequence.tokens) - 1) // self.block_size)
        unknown = next((digest for digest in digests if digest not in self._full), None)
        return None if unknown is None else self._pending.get(unknown)

    def _match(self, sequence: Sequence) -> tuple[list[int], int | None, int]:
        """Full blocks, the partly equal block after them, and the tokens in all of them."""
        usable = len(sequence.tokens) - 1
        shared: list[int] = []
        for digest in self._chain(sequence, usable // self.block_size):
            block = self._full.get(digest)
            if block is None:
                break
            shared.append(block)
        start = len(shared) * self.block_size
        rest = sequence.tokens[start : min(start + self.block_size, usable)]
        best, source = 0, None
        if rest:
            for block in self._starts.get((self._parent(sequence, len(shared)), rest[0]), ()):
                content = self._contents[block]
                assert content is not None
                equal = _common(content.tokens, rest)
                if equal > best:
                    best, source = equal, block
        return shared, source, start + best

    def _chain(self, sequence: Sequence, count: int) -> list[bytes]:
        """Digests of the first full blocks, each computed once."""
        known, size = sequence.digests, self.block_size
        for index in range(len(known), count):
            tokens = sequence.tokens[index * size : (index + 1) * size]
            known.append(_digest(known[-1] if known else _root(sequence.request), tokens))
        return known[:count]

    def _parent(self, sequence: Sequence, index: int) -> bytes:
        return self._chain(sequence, index)[-1] if index else _root(sequence.request)

    def _register(self, block: int, parent: bytes, tokens: list[int]) -> _Content:
        content = self._contents[block] = _Content(parent, tokens)
        self._starts.setdefault((parent, tokens[0]), {})[block] = None
        return content

    def _fill(self, sequence: Sequence, index: int, content: _Content) -> None:
        block, digest = sequence.blocks[index], self._chain(sequence, index + 1)[-1]
        if self._pending.get(digest) is sequence:
            del self._pending[digest]
        if digest in self._full:
            self._forget(block)  # the same was computed twice: one of them is found, the other is only held
        else:
            content.digest = digest
            self._full[digest] = block

    def _forget(self, block: int) -> None:
        content = self._contents[block]
        assert content is not None
        key = content.parent, content.tokens[0]
        del self._starts[key][block]
        if not self._starts[key]:
            del self._starts[key]
        if content.digest is not None:
            del self._full[content.digest]
        self._contents[block] = None

    def _take(self) -> int:
        if self._empty:
            block = self._empty.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
        self._references[block] = 1
        return block

    def _hold(self, block: int) -> None:
        if not self._references[block]:
            del self._cached[block]
        self._references[block] += 1

    def _let_go(self, block: int) -> None:
        self._references[block] -= 1
        if self._references[block]:
            return
        if self._contents[block] is None:
            self._empty.append(block)
        else:
            self._cached[block] = None

    def check(self, running: Iterable[Sequence]) -> None:
        """Assert every invariant, given all sequences that hold blocks."""
        holders = list(running)
        references = [0] * self.blocks
        for block in self._sources:
            references[block] += 1
        for sequence in holders:
            for block in sequence.blocks:
                references[block] += 1
        assert references == self._references, "a block leaked, or was freed while held"
        free = [*self._empty, *self._cached]
        assert sorted(free) == [block for block in range(self.blocks) if not references[block]], "a free block is lost"
        for sequence in holders:
            self._check_table(sequence)
        self._check_contents()
        waited = {id(sequence) for sequence in self._pending.values()}
        assert waited <= {id(sequence) for sequence in holders}, "blocks are waited for that nobody computes"

    def _check_table(self, sequence: Sequence) -> None:
        size = self.block_size
        assert len(set(sequence.blocks)) == len(sequence.blocks)
        assert sequence.computed <= min(len(sequence.tokens), len(sequence.blocks) * size)
        for index, block in enumerate(sequence.blocks):
            tokens = sequence.tokens[index * size : min((index + 1) * size, sequence.computed)]
            content = self._contents[block]
            assert len(tokens) == size or self._references[block] == 1 or block in self._sources, "a shared block grows"
            if content is not None:
                assert content.tokens == tokens, f"block {block} is known by other tokens than it holds"
                assert content.parent == self._parent(sequence, index)

    def _check_contents(self) -> None:
        for block, content in enumerate(self._contents):
            if content is None:
                assert block not in self._cached
                continue
            assert 0 < len(content.tokens) <= self.block_size
            assert block in self._starts[content.parent, content.tokens[0]]
            assert (content.digest is not None) == (len(content.tokens) == self.block_size)
            if content.digest is not None:
                assert self._full[content.digest] == block
                assert content.digest == _digest(content.parent, content.tokens)
        known = sum(content is not None for content in self._contents)
        assert sum(map(len, self._starts.values())) == known, "a block is found by what it doesn't hold"
        assert len(self._full) == sum(content is not None and content.digest is not None for content in self._contents)
        assert not any(self._contents[block] for block in self._empty)


def _root(request: Request) -> bytes:
    adapter = request.adapter.digest if request.adapter is not None else None
    return blake2b(json.dumps([request.salt, adapter]).encode(), digest_size=32).digest()


def _digest(parent: bytes, tokens: list[int]) -> bytes:
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=32).digest()


def _common(one: list[int], other: list[int]) -> int:
    """Tokens that two lists begin with alike."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
