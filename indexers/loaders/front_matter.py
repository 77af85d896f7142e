"""The YAML or TOML block at the head of a Markdown file, as flat metadata."""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from framework.documents import Scalar

BLOCK = re.compile(r"\A(---|\+\+\+)[ \t]*\n(.*?)^\1[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
MAX_CHARACTERS = 65_536
MAX_DEPTH = 3


def split(text: str) -> tuple[dict[str, Scalar], str]:
    """The metadata and the rest of the text. What is no valid front matter stays in the text."""
    found = BLOCK.match(text)
    if not found or len(found[2]) > MAX_CHARACTERS:
        return {}, text
    try:
        values = _yaml(found[2]) if found[1] == "---" else tomllib.loads(found[2])
    except ValueError:
        return {}, text
    if values is not None and not isinstance(values, Mapping):
        return {}, text
    return dict(_flat(values or {})), text[found.end() :]


def _yaml(text: str) -> Any:
    import yaml  # type: ignore[import-untyped]  # ships no types

    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _flat(values: Mapping[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Scalar]]:
    """Nested keys joined with dots, lists of scalars with commas, dates as ISO text."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            if depth < MAX_DEPTH:
                yield from _flat(value, f"{key}.", depth + 1)
        elif isinstance(value, list):
            scalars = [_scalar(item) for item in value if not isinstance(item, list | Mapping)]
            if scalars:
                yield key, ", ".join(map(str, scalars))
        elif value is not None:
            yield key, _scalar(value)


def _scalar(value: Any) -> Scalar:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return value if isinstance(value, str | int | float | bool) else str(value)
