"""A docstring's prose and its parameters' descriptions, in Google's, NumPy's and reStructuredText's styles."""

from __future__ import annotations

import inspect
import re
from itertools import pairwise

_GOOGLE = re.compile(
    r"(Args|Arguments|Parameters|Params|Returns?|Yields?|Raises|Examples?|Notes?|Attributes|See Also|Warnings?|Todo):$"
)
_GOOGLE_ENTRY = re.compile(r"\*{0,2}(\w+)\s*(?:\(.*?\))?\s*:\s*(.*)")
_NUMPY_ENTRY = re.compile(r"(\*{0,2}\w+(?:\s*,\s*\w+)*)\s*(?::.*)?$")
_FIELD = re.compile(r":(\w+)(?:\s+(?:[^:]*\s)?(\w+))?\s*:\s*(.*)")


def parse(docstring: str | None) -> tuple[str, dict[str, str]]:
    """The prose before the first section, and each parameter's description; unknown sections are left out."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    starts = [i for i in range(len(lines)) if _is_header(lines, i)]
    parameters: dict[str, str] = {}
    for start, end in pairwise([*starts, len(lines)]):
        parameters.update(_section(lines[start:end]))
    prose = lines[: starts[0]] if starts else lines
    return "\n".join(prose).strip(), parameters


def _is_header(lines: list[str], index: int) -> bool:
    line = lines[index]
    underlined = index + 1 < len(lines) and re.fullmatch(r"-{3,}", lines[index + 1]) is not None
    return bool(_GOOGLE.match(line) or (underlined and line.strip()) or _FIELD.match(line))


def _section(lines: list[str]) -> dict[str, str]:
    head, body = lines[0], lines[1:]
    if found := _FIELD.match(head):
        kind, name, text = found.groups()
        return {name: _join([text, *body])} if kind in ("param", "parameter", "arg", "argument") and name else {}
    if head.rstrip(":") not in ("Args", "Arguments", "Parameters", "Params"):
        return {}
    return _entries(body, _GOOGLE_ENTRY) if head.endswith(":") else _entries(body[1:], _NUMPY_ENTRY)


def _entries(body: list[str], pattern: re.Pattern[str]) -> dict[str, str]:
    """Entries start at the body's smallest indentation; deeper lines belong to the entry above them."""
    filled = [line for line in body if line.strip()]
    margin = min((len(line) - len(line.lstrip()) for line in filled), default=0)
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in filled:
        entry = pattern.match(line[margin:]) if not line[margin].isspace() else None
        if entry:
            current = [entry.group(2)] if pattern is _GOOGLE_ENTRY else []
            found |= {name.strip(" *"): current for name in entry.group(1).split(",")}
        else:
            current.append(line)
    return {name: _join(text) for name, text in found.items()}


def _join(lines: list[str]) -> str:
    return " ".join(line.strip() for line in lines if line.strip())
