"""Near duplicates by MinHash (Broder, 1997) with banding: nearly equal texts are found without comparing all pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
BANDS, ROWS = 16, 4  # texts of similarity 0.8 share a band with a probability of 0.9997, of 0.3 with 0.12
FACTOR = np.uint64(0x9E3779B97F4A7C15)
MIX = np.array([1, 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
SEED = 20
KNOWN = 1 << 20  # words whose numbers are remembered


class _Words(dict[str, int]):
    """A number for each word: the same on every machine and in every process, unlike `hash`."""

    def __missing__(self, word: str) -> int:
        if len(self) >= KNOWN:
            self.clear()
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        number = self[word] = int.from_bytes(digest, "little")
        return number


_WORDS = _Words()


def shingles(found: Sequence[str], size: int) -> Hashes:
    """A hash for every run of `size` words, in order; none where there are fewer words."""
    if len(found) < size:
        return np.empty(0, np.uint64)
    hashes = np.fromiter(map(_WORDS.__getitem__, found), np.uint64, len(found))
    total = np.zeros(len(found) - size + 1, np.uint64)
    for place in range(size):
        total = total * FACTOR + hashes[place : place + len(total)]
        total ^= total >> np.uint64(29)
    return total


def profile(found: Sequence[str]) -> Hashes:
    """What two texts are compared by: their words and pairs of words, each once."""
    return np.unique(np.concatenate([shingles(found, 1), shingles(found, 2)]))


def similarity(a: Hashes, b: Hashes) -> float:
    """Jaccard's: shared by all. Both are sorted and have no repetitions."""
    if not len(a) or not len(b):
        return float(len(a) == len(b))
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


class NearIndex:
    """Texts by number, and for any other text one of them that is nearly equal.

    Args:
        threshold: similarity of words and pairs of words, from 0.5 to 1, from which two texts count as nearly equal.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        draw = np.random.default_rng(SEED)
        self._factors = draw.integers(1, 2**63, BANDS * ROWS, np.uint64) | np.uint64(1)
        self._offsets = draw.integers(0, 2**63, BANDS * ROWS, np.uint64)
        self._profiles: dict[int, Hashes] = {}
        self._keys: dict[Hashable, int] = {}
        self._buckets: dict[tuple[int, int], list[int]] = {}

    def find(self, found: Sequence[str], key: Hashable = ()) -> int | None:
        """The number of a kept text with the same `key` that is nearly equal to these words."""
        own = profile(found)
        return self._near(own, self._bands(own, key))

    def keep(self, found: Sequence[str], number: int, key: Hashable = ()) -> int | None:
        """The number of a kept text that is nearly equal, or None, and then this one is kept under `number`."""
        own = profile(found)
        bands = self._bands(own, key)
        before = self._near(own, bands)
        if before is None:
            self._put(own, bands, number)
        return before

    def add(self, found: Sequence[str], number: int, key: Hashable = ()) -> None:
        """Keep a text, whether or not one is nearly equal: what is near to this one may be far from the other."""
        own = profile(found)
        self._put(own, self._bands(own, key), number)

    def _near(self, own: Hashes, bands: Sequence[tuple[int, int]]) -> int | None:
        seen: set[int] = set()
        for band in bands:
            for other in self._buckets.get(band, ()):
                if other not in seen and similarity(own, self._profiles[other]) >= self.threshold:
                    return other
                seen.add(other)
        return None

    def _put(self, own: Hashes, bands: Sequence[tuple[int, int]], number: int) -> None:
        assert number not in self._profiles, "the text that has this number would be forgotten"
        self._profiles[number] = own
        for band in bands:
            self._buckets.setdefault(band, []).append(number)

    def _bands(self, own: Hashes, key: Hashable) -> list[tuple[int, int]]:
        """What nearly equal texts with the same key have at least one of in common."""
        group = self._keys.setdefault(key, len(self._keys))
        if not len(own):
            return [(group, 0)]
        smallest = (own[:, None] * self._factors + self._offsets >> np.uint64(11)).min(axis=0).reshape(BANDS, ROWS)
        mixed = (smallest * MIX).sum(axis=1) + np.arange(BANDS, dtype=np.uint64)
        return [(group, band) for band in mixed.tolist()]
