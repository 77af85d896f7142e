"""What an OpenAI-compatible server streams, read with distrust: bytes to events, events to deltas.

Servers differ in what they repeat, leave out and where they put it; a `StreamReader` evens that out, so that what comes
of it keeps the promises of `Delta`. Whatever is no such stream is an error that says so.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from framework.errors import CallerError, ModelUnavailable
from framework.messages import Delta, FinishReason, TokenLogprob, ToolCallDelta, Usage

LONGEST_LINE = 8 << 20  # bytes of one event
REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


async def events(pieces: AsyncIterator[bytes], server: str) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, up to `[DONE]`.

    Raises:
        ModelUnavailable: an event is no JSON object, or longer than any real one.
    """
    async for line in _lines(pieces, server):
        field, _, value = line.partition(b":")
        if field != b"data":
            continue  # comments keep the connection alive; other fields mean nothing here
        data = value.strip()
        if data == b"[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise _garbled(server, data)
        yield event


async def _lines(pieces: AsyncIterator[bytes], server: str) -> AsyncIterator[bytes]:
    # Split at line feeds only: JSON text may hold what Python would take for a line's end, such as U+2028.
    held = bytearray()
    async for piece in pieces:
        held += piece
        *whole, rest = held.split(b"\n")
        held = bytearray(rest)
        if len(held) > LONGEST_LINE:
            raise _garbled(server, bytes(held[:100]))
        for line in whole:
            yield bytes(line.rstrip(b"\r"))
    if held:
        yield bytes(held)


class StreamReader:
    """Reads one answer's events.

    Args:
        server: the address, for messages.
        make_id: gives an id to a call for which the server has none, by the call's index.

    Attributes:
        reason: why the answer ended, once it has.
        usage: what the server counted, if it told.
        content: the text so far.
        arguments: the text of all calls' arguments.
        empty: no event came at all.
    """

    def __init__(self, server: str, make_id: Callable[[int], str]) -> None:
        self.server = server
        self.make_id = make_id
        self.reason: FinishReason | None = None
        self.usage: Usage | None = None
        self.content = ""
        self.arguments = ""
        self.empty = True
        self._ids: list[str] = []
        self._places: dict[int, int] = {}

    def read(self, event: Mapping[str, Any]) -> Delta | None:
        """The delta in an event; None: it has nothing to show.

        Raises:
            ModelUnavailable: the server reports an error, or the event has not the shape of one.
            CallerError: the server's content filter ended the answer.
        """
        self.empty = False
        if "error" in event:
            raise ModelUnavailable(f"{self.server} failed while it answered: {error_text(event)}")
        try:
            return self._read(event)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError):
            raise _garbled(self.server, json.dumps(event).encode()) from None

    def _read(self, event: Mapping[str, Any]) -> Delta | None:
        if event.get("usage"):
            usage = event["usage"]
            self.usage = Usage(int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0))
        if not event.get("choices"):
            return None
        choice = event["choices"][0]
        delta = choice.get("delta") or {}
        content = delta.get("content") or ""
        if not isinstance(content, str):
            raise TypeError(content)
        calls = tuple(self._call(place, call) for place, call in enumerate(delta.get("tool_calls") or ()))
        self._end(choice.get("finish_reason"))
        self.content += content
        logprobs = _logprobs(choice.get("logprobs"))
        return Delta(content, calls, logprobs) if content or calls or logprobs else None

    def _end(self, reason: str | None) -> None:
        if reason == "content_filter":
            raise CallerError(f"{self.server} ended the answer by its content filter.", field="messages")
        if reason:
            self.reason = "tool_calls" if self._ids and reason == "stop" else REASONS.get(reason, "stop")

    def _call(self, place: int, call: Mapping[str, Any]) -> ToolCallDelta:
        """Id and name go with the first piece only, though some servers repeat them, and some count all calls as 0."""
        function = call.get("function") or {}
        index, id_ = call.get("index", place), call.get("id")
        known = self._places.get(index)
        first = known is None or bool(id_ and function.get("name") and id_ != self._ids[known])
        if first:
            known = self._places[index] = len(self._ids)
            self._ids.append(id_ or self.make_id(known))
        assert known is not None
        arguments = function.get("arguments") or ""
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        self.arguments += text
        return (
            ToolCallDelta(known, self._ids[known], function["name"], text)
            if first
            else ToolCallDelta(known, None, None, text)
        )


def error_text(value: Any) -> str:
    """The message in an error body, in any of the shapes that servers use."""
    for key in ("error", "message", "detail"):
        if isinstance(value, Mapping) and value.get(key):
            value = value[key]
    return (value if isinstance(value, str) else json.dumps(value))[:500]


def _logprobs(value: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...]:
    entries: Sequence[Mapping[str, Any]] = (value or {}).get("content") or ()
    return tuple(
        TokenLogprob(
            entry["token"],
            float(entry["logprob"]),
            tuple((other["token"], float(other["logprob"])) for other in entry.get("top_logprobs") or ()),
        )
        for entry in entries
    )


def _garbled(server: str, data: bytes) -> ModelUnavailable:
    shown = data[:100].decode("utf-8", errors="replace")
    return ModelUnavailable(
        f"{server} sent what is no part of a chat completion: {shown!r}.",
        hint="Check that base_url is the address of an OpenAI-compatible API, with its version (often /v1).",
    )
