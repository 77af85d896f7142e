"""One call of a model, run: whatever goes wrong becomes a result that the model can read."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from itertools import islice
from typing import Any, NoReturn

from framework.documents import content_hash
from framework.errors import ModelFault
from framework.messages import ToolCall
from tools.base import Tool, ToolContext, ToolResult
from tools.redaction import LONGEST, printable, redact
from tools.rendering import render
from tools.toolset import Toolset

MAX_CHARS = 20_000
MAX_ARGUMENTS = 1_000_000
GRACE_SECONDS = 1.0
_MESSAGE = 300
_log = logging.getLogger(__name__)


class Executor:
    """Runs tool calls for one agent.

    `run` raises nothing but `asyncio.CancelledError`. What the model gets to see is at most `max_chars` characters
    (`ToolResult.truncated` counts the rest), without secrets that `redaction` knows, and free of characters that can't
    be stored. `ToolResult.data` and `hits` are the program's and stay as the tool made them.

    A call that takes longer than its tool's `timeout`, or than the context's deadline, is cancelled and reported. A
    plain function can't be ended from outside (see `FunctionTool`); an `async def` that swallows the cancellation is
    given up after a second. One that blocks the event loop can't be timed out at all.
    """

    def __init__(self, toolset: Toolset, max_chars: int = MAX_CHARS) -> None:
        self.toolset = toolset
        self.max_chars = max_chars

    async def run(self, call: ToolCall, context: ToolContext) -> ToolResult:
        """Run one call; its idempotency key is a hash of the run and the call, so a repetition has the same."""
        started = time.monotonic()
        key = content_hash(context.run_id, call.id, call.name, call.arguments)
        context = replace(context, call_id=call.id, idempotency_key=key)
        result = self._shown(await self._outcome(call, context))
        seconds = time.monotonic() - started
        _log.info("tool %s: %s in %.3f s", printable(call.name)[:64], "error" if result.error else "ok", seconds)
        return result

    async def _outcome(self, call: ToolCall, context: ToolContext) -> ToolResult:
        tool = self.toolset.get(call.name)
        if tool is None:
            return _failure(_unknown(call.name, self.toolset.names))
        limit = tool.timeout
        if context.deadline is not None:
            limit = min(limit, context.deadline - time.monotonic())
        if limit <= 0:
            return _failure(f"There was no time left to call {call.name}.")
        task = asyncio.create_task(_attempt(tool, call.arguments, context))
        try:
            await asyncio.wait({task}, timeout=limit)
        except asyncio.CancelledError:
            await _end(task)
            raise
        if task.done():
            return _failure(f"{call.name} was cancelled.") if task.cancelled() else task.result()
        await _end(task)
        return _failure(f"{call.name} did not answer within {limit:.3g} seconds and was given up.")

    def _shown(self, result: ToolResult) -> ToolResult:
        """Secrets are looked for a little beyond the limit, so that one across it is not shown by halves."""
        total = len(result.content)
        window = result.content[: self.max_chars + LONGEST]
        text = redact(printable(window))
        cut = max(0, len(text) - self.max_chars) + total - len(window)
        if cut:
            kept = text[: self.max_chars]
            text = f"{kept}\n[Cut here: {cut} of {len(kept) + cut} characters are left out.]"
        return replace(result, content=text, truncated=result.truncated + cut)


async def _attempt(tool: Tool, arguments: str, context: ToolContext) -> ToolResult:
    try:
        return render(await tool.call(_parse(arguments, tool.spec.parameters), context))
    except ModelFault as error:
        return _failure(_say(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001  a tool is foreign code: the run goes on without it
        _log.warning("tool %s failed", tool.spec.name, exc_info=True)
        return _failure(f"{tool.spec.name} failed: {type(error).__name__}: {_say(error)}")


async def _end(task: asyncio.Task[ToolResult]) -> None:
    """Cancel, and wait a moment for it; a task that swallows the cancellation is left behind."""
    task.cancel()
    await asyncio.wait({task}, timeout=GRACE_SECONDS)


def _parse(text: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as a JSON object that is valid under the tool's schema.

    Raises:
        ModelFault: they are not, with a message that tells the model what to change.
    """
    if len(text) > MAX_ARGUMENTS:
        raise ModelFault(f"The arguments have {len(text)} characters; {MAX_ARGUMENTS} are allowed.")
    try:
        values = json.loads(text or "{}", parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ModelFault(f"The arguments are not JSON ({error}).", hint="Send one JSON object.") from error
    if not isinstance(values, dict):
        raise ModelFault(f"The arguments are a JSON {type(values).__name__}.", hint="Send one JSON object.")
    problems = _problems(values, schema)
    if problems:
        raise ModelFault("The arguments do not fit the schema: " + "; ".join(problems) + ".")
    return values


def _problems(values: dict[str, Any], schema: Mapping[str, Any]) -> list[str]:
    from jsonschema.exceptions import best_match
    from referencing import Registry

    validator = _validator()(schema, registry=Registry())
    errors = list(islice(validator.iter_errors(values), 3))
    deepest = [best_match([error]) for error in errors]
    return [
        f"{error.json_path.removeprefix('$').lstrip('.') or 'arguments'}: {_short(error.message)}" for error in deepest
    ]


@cache
def _validator() -> Any:
    """Patterns are left to the tool: one from elsewhere could run for ever here. No reference is fetched."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    return extend(Draft202012Validator, {"pattern": lambda *_: None})  # type: ignore[no-untyped-call]  # no stub


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unknown(name: str, names: tuple[str, ...]) -> str:
    close = get_close_matches(name[:64], names, n=3, cutoff=0.5)
    if close:
        return f"There is no tool {_short(name)!r}. Did you mean {' or '.join(close)}?"
    return f"There is no tool {_short(name)!r}. Tools: {', '.join(names) or 'none'}."


def _failure(message: str) -> ToolResult:
    return ToolResult(message, error=True)


def _say(error: BaseException) -> str:
    try:
        return str(error) or "no message"
    except Exception:  # noqa: BLE001  a foreign exception's own __str__ may fail
        return "no message that can be shown"


def _short(text: str) -> str:
    return text if len(text) <= _MESSAGE else f"{text[: _MESSAGE - 3]}..."
