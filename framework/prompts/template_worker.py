"""Renders chat templates, one JSON line in and one out. Run as a program, it is the child that `chat_template` guards.

A model's template is a program from whoever made the model. jinja2's sandbox keeps it from attributes and from changing
what it is given; that it ends, and in how much memory, only a process of its own can promise.
"""

from __future__ import annotations

import json
import signal
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 1 << 30  # bytes of address space; the interpreter with jinja2 takes a tenth
LONGEST = 1 << 25  # characters of a prompt


class Refused(Exception):
    """The template itself refuses the conversation."""


class Generation(Extension):
    """`{% generation %}` marks the assistant's part for training; a prompt is the same without."""

    tags = {"generation"}  # noqa: RUF012  jinja2 reads it from the class

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """What templates of the Hugging Face kind expect to find."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _refuse
    made.globals["strftime_now"] = lambda form: datetime.now(UTC).astimezone().strftime(form)
    return made


@lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    return environment().from_string(source)


def render(source: str, values: dict[str, Any]) -> dict[str, str]:
    """`text`, or else `refused` (the conversation does not suit the template) or `broken` (the template itself)."""
    try:
        text = _compiled(source).render(values)
    except Refused as error:
        return {"refused": str(error)}
    except Exception as error:  # noqa: BLE001  a template may raise anything, and that is for the caller to tell
        return {"broken": f"{type(error).__name__}: {error}"}
    if len(text) > LONGEST:
        return {"broken": f"it wrote {len(text)} characters, the limit is {LONGEST}."}
    return {"text": text}


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    known = {key: options[key] for key in ("separators", "sort_keys") if key in options}
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **known)


def _refuse(message: object) -> None:
    raise Refused(str(message))


def main() -> None:
    """Answer until the input ends."""
    with suppress(ImportError, ValueError, OSError):  # not every system has such a limit; the time limit remains
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        request = json.loads(line)
        _end_after(request["seconds"] + 1)
        answer = render(request["template"], request["values"])
        _end_after(0)
        print(json.dumps(answer), flush=True)


def _end_after(seconds: float) -> None:
    """Have the system end this process then, for the case that the parent, which kills it earlier, is no more."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main()
