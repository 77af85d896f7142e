"""Text that is not ours, on a terminal."""

from __future__ import annotations

import re

# Text of documents and models must not drive the terminal; direction marks must not disguise it.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """The text without control characters, save for tab and line feed."""
    return CONTROL.sub("", text)


def one_line(text: str) -> str:
    """The same, with every run of white space as one space."""
    return " ".join(plain(text).split())
