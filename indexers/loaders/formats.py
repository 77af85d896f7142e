"""Which loader reads a file: by its first bytes where they are certain, else by its extension."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import PurePath
from typing import TypeAlias, cast

from framework.errors import OperatorError
from indexers.loaders.extracted import Extracted, Limits, Unreadable

Load: TypeAlias = Callable[[bytes, Limits], Extracted]

EXTENSIONS = {
    ".md": "markdown",
    ".markdown": "markdown",
    ".mdx": "markdown",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".txt": "text",
    ".text": "text",
    ".rst": "text",
    ".log": "text",
    ".pdf": "pdf",
}
HEAD = 2048
HTML_STARTS = (b"<!doctype html", b"<html")


def is_supported(name: str) -> bool:
    """Whether a folder's file of this name is indexed."""
    return PurePath(name).suffix.lower() in EXTENSIONS


def load(data: bytes, name: str, limits: Limits) -> Extracted:
    """Read a file by what it is.

    Raises:
        Unreadable: it can't be read, or it holds nothing that any loader reads.
    """
    format = detect(data[:HEAD], name)
    try:
        loader = cast(Load, import_module(f"indexers.loaders.{format}").load)
    except ImportError as error:
        raise OperatorError(f"The {format} loader can't be imported: {error}.") from error
    return loader(data, limits)


def detect(head: bytes, name: str) -> str:
    """The format's name; a file that says what it is goes by that, whatever its extension."""
    if b"%PDF-" in head[:1024]:
        return "pdf"
    start = head.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").lower()
    if start.startswith(HTML_STARTS) or (start.startswith(b"<?xml") and b"<html" in start):
        return "html"
    suffix = PurePath(name).suffix.lower()
    if suffix == ".pdf":
        raise Unreadable("Its name ends in .pdf, but it holds no PDF.")
    return EXTENSIONS.get(suffix, "text")
