"""Turning tokens into text that can be streamed: deltas never show half a character, a call or a stop string."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from framework.messages import Delta, TokenLogprob, ToolCall, ToolCallDelta
from framework.prompts.tool_formats import CallReader, partial_suffix


class TokenTexts(Protocol):
    """What a token looks like."""

    def token_bytes(self, token: int) -> bytes: ...


class AnswerWriter:
    """Token ids to deltas.

    Args:
        texts: gives each token's bytes.
        silent: ids without text of their own (special tokens).
        stop: strings before the first of which the content ends.
        calls: reads tool calls; None: everything is content.
        strip: drop a space in front of the first word, as the tokenizer's own decoder does.

    Attributes:
        stopped: a stop string was found.
        calls_made: tool calls written.
    """

    def __init__(
        self,
        texts: TokenTexts,
        silent: frozenset[int] = frozenset(),
        stop: Sequence[str] = (),
        calls: CallReader | None = None,
        strip: bool = False,
    ) -> None:
        self.texts = texts
        self.silent = silent
        self.stop = tuple(stop)
        self.calls = calls
        self.stopped = False
        self.calls_made: list[ToolCall] = []
        self._strip = strip
        # Bytes that are no text become U+FFFD; those that only are not yet text wait for the next token.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._produced = 0
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()

    def write(self, token: int, logprobs: tuple[float, list[tuple[int, float]]] | None = None) -> Delta | None:
        """What can be shown now that this token is known; None: nothing new."""
        if logprobs is not None:
            value, best = logprobs
            shown = TokenLogprob(self._name(token), value, tuple((self._name(id_), other) for id_, other in best))
            self._waiting.append((self._produced, shown))
        text = "" if token in self.silent else self._decoder.decode(self.texts.token_bytes(token))
        if self._strip and text:
            text, self._strip = text.removeprefix(" "), False
        self._produced += len(text)
        content, calls = self.calls.read(text) if self.calls else (text, [])
        return self._delta(self._until_stop(content), calls)

    def finish(self) -> Delta | None:
        """What was held back and can be shown now that nothing follows. An incomplete character is dropped."""
        if self.stopped:
            return None
        content = self._until_stop(self.calls.flush() if self.calls else "")
        if not self.stopped:
            content, self._held = content + self._held, ""
        return self._delta(content, [])

    @property
    def unfinished(self) -> bool:
        """A call was begun and not ended."""
        return self.calls is not None and self.calls.unfinished

    def _until_stop(self, content: str) -> str:
        self._held += content
        found = [place for text in self.stop if (place := self._held.find(text)) != -1]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], self._held[min(found) :]
            return shown
        border = len(self._held) - partial_suffix(self._held, self.stop)
        shown, self._held = self._held[:border], self._held[border:]
        return shown

    def _delta(self, content: str, calls: Sequence[ToolCall]) -> Delta | None:
        first = len(self.calls_made)
        self.calls_made += calls
        pieces = tuple(ToolCallDelta(first + i, call.id, call.name, call.arguments) for i, call in enumerate(calls))
        shown_until = self._produced - len(self._held) - (self.calls.held if self.calls else 0)
        logprobs: list[TokenLogprob] = []
        while self._waiting and self._waiting[0][0] < max(shown_until, 1):
            logprobs.append(self._waiting.popleft()[1])
        if not (content or pieces or logprobs):
            return None
        return Delta(content, pieces, tuple(logprobs))

    def _name(self, token: int) -> str:
        raw = self.texts.token_bytes(token)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)  # a part of a character, as OpenAI writes it
