"""What tools are about, by their names: those that share a word might serve the same request."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

NAME_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Za-z][a-z]+")


def subjects(names: Iterable[str], common: Collection[str]) -> set[str]:
    """How the words of tools' names begin, without those that are common, which say nothing of the subject."""
    words = (word.lower() for name in names for word in NAME_PART.findall(name))
    return {word[:5] for word in words if word not in common}
