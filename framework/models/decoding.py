"""Between logits and deltas: choosing a token, and turning tokens into text that can be streamed.

Neither knows a model. `Sampler` gets one row of logits and gives a token id; `AnswerWriter` gets token ids and gives
deltas that never show half a character, the beginning of a stop string, or half a call.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from framework.messages import Delta, TokenLogprob, ToolCall, ToolCallDelta
from framework.models.base import GenerationParams
from framework.models.constraints import Matcher
from framework.prompts.tool_formats import CallReader, partial_suffix


class Sampler:
    """Chooses tokens for one answer: greedily, or by temperature and top-p with a generator of its own.

    Args:
        params: temperature, top_p, seed and logprobs are read.
        matcher: what the grammar allows; None: anything.
        budget: most tokens of the answer. Before its end the grammar's open JSON is closed.
        ends: ids that end an answer.

    Attributes:
        cut: the budget, not the model, ended something.
        ended: the model ended its answer.
    """

    def __init__(
        self, params: GenerationParams, matcher: Matcher | None, budget: int, ends: Collection[int] = ()
    ) -> None:
        self.params = params
        self.matcher = matcher
        self.left = budget
        self.ends = ends
        self.cut = False
        self.ended = False
        self.logprobs: tuple[float, list[tuple[int, float]]] | None = None
        self._random = np.random.default_rng(None if params.seed is None else params.seed % 2**64)
        self._half = budget // 2  # more is never kept back for closing, or small budgets would write nothing

    @property
    def finished(self) -> bool:
        """Nothing follows, by the model's choice or because the grammar allows nothing."""
        return self.ended or (self.matcher is not None and self.matcher.finished)

    def forced(self) -> list[int]:
        """Tokens that the grammar leaves no choice about, taken; they need no logits."""
        tokens = self.matcher.forced()[: self.left - 1] if self.matcher and self.params.logprobs is None else []
        for token in tokens:
            self._take(token)
        return tokens

    def pick(self, logits: NDArray[np.float32]) -> int:
        """The next token. `logprobs` then holds its log-probability and the best alternatives', by the model alone.

        Args:
            logits: shape (vocabulary size,).
        """
        allowed = self.matcher.allowed() if self.matcher else None
        scores = logits if allowed is None else np.where(allowed, logits, -np.inf)
        token = self._choose(scores)
        if self.matcher and allowed is not None and self.left <= min(self.matcher.needed, self._half):
            closing = self.matcher.vocabulary.closing(allowed)
            if not closing[token]:
                token, self.cut = int(np.argmax(np.where(closing, logits, -np.inf))), True
        if self.params.logprobs is not None:
            self.logprobs = _logprobs(logits, token, self.params.logprobs)
        self._take(token)
        return token

    def _take(self, token: int) -> None:
        self.left -= 1
        self.ended = token in self.ends
        if self.matcher and not self.ended:
            self.matcher.consume(token)

    def _choose(self, scores: NDArray[np.float32]) -> int:
        if self.params.temperature == 0:
            return int(np.argmax(scores))
        weights = np.exp((scores - scores.max()).astype(np.float64) / self.params.temperature)
        order = np.argsort(-weights, kind="stable")
        reached = np.cumsum(weights[order])
        # The smallest set whose mass is at least top_p: the token that crosses the border belongs to it.
        kept = int(np.searchsorted(reached, self.params.top_p * reached[-1])) + 1
        drawn = self._random.random() * reached[min(kept, len(reached)) - 1]
        return int(order[np.searchsorted(reached, drawn, side="right")])


def _logprobs(logits: NDArray[np.float32], token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    shifted = logits.astype(np.float64) - logits.max()
    values = shifted - np.log(np.exp(shifted).sum())
    best = np.argsort(-values, kind="stable")[:count]
    return float(values[token]), [(int(id_), float(values[id_])) for id_ in best]


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
