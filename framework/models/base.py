"""What a model is to the rest of Lectern: three small protocols, and the parameters of a generation.

Chat models are asynchronous, since a conversation waits on them and is streamed. Embedders and rerankers are plain
synchronous functions over batches: they compute, and callers on an event loop run them in a worker thread.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from framework.errors import CallerError
from framework.messages import Completion, Delta, Message, ToolSpec, collect

Vectors: TypeAlias = NDArray[np.float32]
MAX_IDS = 1024  # of a request's tokens with a bias, and of those that end its answer
# Whom the present task works for. Models on this machine share what they keep cached within one tenant only.
TENANT: ContextVar[str] = ContextVar("tenant", default="")


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """The answer is a JSON value valid under this schema."""

    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Regex:
    """The whole answer matches this regular expression."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer is one of these strings."""

    options: tuple[str, ...]


Constraint: TypeAlias = JsonSchema | Regex | Choice


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether to call tools: the model decides (`auto`), must not (`none`), must call any (`required`) or `name`."""

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None

    @classmethod
    def named(cls, name: str) -> ToolChoice:
        return cls("required", name)


AUTO = ToolChoice()
NONE = ToolChoice("none")
REQUIRED = ToolChoice("required")


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """How to sample. The defaults decode greedily.

    Attributes:
        max_tokens: most tokens to generate; None: as many as the context holds.
        temperature: 0 is greedy; otherwise the logits are divided by it.
        top_p: nucleus sampling over the smallest set of tokens with this probability mass, in (0, 1].
        top_k: only the k most probable tokens; 0: all.
        min_p: only tokens at least this probable, as a share of the most probable one's, in [0, 1].
        presence_penalty, frequency_penalty: taken from the logits of tokens of the answer so far, once and once a time;
            from -2 to 2.
        repetition_penalty: divides positive and multiplies negative logits of all tokens of prompt and answer so far,
            from 0.1 to 10; 1: none.
        logit_bias: added to the logits of these token ids, from -100 to 100 each.
        stop: the answer ends before the first of these strings.
        stop_ids: the answer ends with the first of these token ids, as with the model's own end.
        seed: the same seed with the same request gives the same tokens; a signed 64-bit number.
        logprobs: number of alternatives to report with each token, 0 to 20; None: no log-probabilities.

    Raises:
        CallerError: a value out of range, with `field` naming it.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    stop_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        _require(
            self.max_tokens is None or 1 <= self.max_tokens <= 2**31 - 1,
            "max_tokens",
            self.max_tokens,
            f"between 1 and {2**31 - 1}",
        )
        in_range = math.isfinite(self.temperature) and 0 <= self.temperature <= 2
        _require(in_range, "temperature", self.temperature, "between 0 and 2")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _require(self.logprobs is None or 0 <= self.logprobs <= 20, "logprobs", self.logprobs, "between 0 and 20")
        _require(not isinstance(self.stop, str), "stop", self.stop, "a tuple of strings")  # not its characters
        _require(all(self.stop), "stop", self.stop, "strings that are not empty")
        _require(self.seed is None or -(2**63) <= self.seed < 2**63, "seed", self.seed, "a signed 64-bit number")
        _require(0 <= self.top_k <= 2**31 - 1, "top_k", self.top_k, f"between 0 and {2**31 - 1}")
        _require(0 <= self.min_p <= 1, "min_p", self.min_p, "between 0 and 1")
        for name in ("presence_penalty", "frequency_penalty"):
            _require(-2 <= getattr(self, name) <= 2, name, getattr(self, name), "between -2 and 2")
        _require(
            0.1 <= self.repetition_penalty <= 10, "repetition_penalty", self.repetition_penalty, "between 0.1 and 10"
        )
        self._check_ids()

    def _check_ids(self) -> None:
        for token, bias in self.logit_bias.items():
            _require(token >= 0, "logit_bias", token, "a mapping of token ids, which are not negative")
            _require(-100 <= bias <= 100, "logit_bias", bias, f"between -100 and 100 for token {token}")
        _require(len(self.logit_bias) <= MAX_IDS, "logit_bias", len(self.logit_bias), f"of at most {MAX_IDS} tokens")
        _require(len(self.stop_ids) <= MAX_IDS, "stop_ids", len(self.stop_ids), f"at most {MAX_IDS} token ids")
        _require(all(token >= 0 for token in self.stop_ids), "stop_ids", sorted(self.stop_ids), "token ids from 0")


def _require(valid: bool, name: str, value: object, range_: str) -> None:
    if not valid:
        raise CallerError(f"{name} must be {range_}, got {value!r}.", field=name)


GREEDY = GenerationParams()
# What an adapter may have been trained for: to answer from one passage, or to call tools.
Role: TypeAlias = Literal["reader", "caller"]


@runtime_checkable
class ChatModel(Protocol):
    """A model that continues a conversation.

    `stream` yields deltas in OpenAI's shapes and ends with one that carries `finish_reason` and `usage`. With tools and
    `tool_choice`, what it yields are calls whose arguments are valid under the tool's schema wherever the
    implementation can enforce that. Closing the iterator cancels the work. `constraint` and tools exclude each other.
    An implementation may have an attribute `guided`, true of a model that is too small to call a tool by itself: agents
    then search for it, and ask it which tool, and then for the call. It may also have a method `in_role`; see the
    function of that name.

    Raises:
        CallerError: the request is wrong, or the prompt is longer than the context (the message gives both lengths).
        ModelUnavailable: the model can't be loaded or reached.
    """

    @property
    def name(self) -> str: ...

    @property
    def context_length(self) -> int: ...

    def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        tool_choice: ToolChoice = AUTO,
        constraint: Constraint | None = None,
        params: GenerationParams = GREEDY,
    ) -> AsyncIterator[Delta]: ...

    def count_tokens(self, text: str) -> int:
        """Tokens in `text`; an estimate, never too low by more than a tenth, where the tokenizer is not at hand."""
        ...


def in_role(model: ChatModel, role: Role) -> ChatModel | None:
    """The model as it was trained for a role, where it was; it is the owner's to close. May look at the disk.

    Raises:
        Conflict: what it was trained to is deactivated, or was refused by the parity gate.
    """
    trained = getattr(model, "in_role", None)
    found: ChatModel | None = trained(role) if trained is not None else None
    return found


async def complete(
    model: ChatModel,
    messages: Sequence[Message],
    *,
    tools: Sequence[ToolSpec] = (),
    tool_choice: ToolChoice = AUTO,
    constraint: Constraint | None = None,
    params: GenerationParams = GREEDY,
) -> Completion:
    """One whole answer: the stream, added up."""
    return await collect(
        model.stream(messages, tools=tools, tool_choice=tool_choice, constraint=constraint, params=params)
    )


@dataclass(frozen=True, slots=True)
class EmbedderInfo:
    """What defines an embedding space. `id` changes whenever vectors stop being comparable (weights, pooling, prefix).

    Attributes:
        id: content-hashed identity, recorded with every index made with it.
        name: the catalog's name for it.
        dimensions: width of a vector.
        max_tokens: longest input in tokens, special tokens included.
        languages: ISO 639-1 codes that it was trained for; empty: any.
        query_prefix, document_prefix: put in front of texts of that kind before tokenizing.
    """

    id: str
    name: str
    dimensions: int
    max_tokens: int
    languages: tuple[str, ...] = ()
    query_prefix: str = ""
    document_prefix: str = ""


@runtime_checkable
class Embedder(Protocol):
    """Texts to unit vectors."""

    @property
    def info(self) -> EmbedderInfo: ...

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """Vectors of shape (len(texts), dimensions), float32, L2-normalised, in the order given.

        Raises:
            CallerError: a text is longer than `max_tokens`; nothing is ever cut in silence.
        """
        ...

    def embed_query(self, text: str) -> Vectors:
        """One vector of shape (dimensions,). A longer query is cut; `count_tokens` beforehand tells by how much."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as a document: prefix and special tokens included."""
        ...

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Code-point span of each token of `text`, without prefix and special tokens; used by the chunkers."""
        ...


@runtime_checkable
class Reranker(Protocol):
    """Scores how well each text answers a query."""

    @property
    def name(self) -> str: ...

    @property
    def languages(self) -> tuple[str, ...]:
        """ISO 639-1 codes that it was trained for; empty: any."""
        ...

    def query_excess(self, query: str) -> int:
        """Tokens at the query's end that are not read, because it is too long."""
        ...

    def score(self, query: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores of shape (len(texts),); higher is better, comparable within one query only.

        A text is read whole, however long it is.
        """
        ...


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the catalog knows of a model.

    Attributes:
        name: short name, or the id or folder it was asked for by.
        kind: chat, embedding or reranker.
        origin: "folder", "wheel" or "hub".
        languages: ISO 639-1 codes it was trained for; empty: unknown or any.
        context_length: tokens in all (chat), or the longest input (embedding, reranker).
        licence: SPDX identifier where known.
        guided: a chat model too small to call a tool by itself.
        roles: names of the adapters that take a role for it.
    """

    name: str
    kind: Literal["chat", "embedding", "reranker"]
    origin: Literal["folder", "wheel", "hub"]
    source: str
    languages: tuple[str, ...] = ()
    context_length: int = 0
    licence: str = ""
    query_prefix: str = ""
    document_prefix: str = ""
    revision: str | None = None
    guided: bool = False
    roles: Mapping[Role, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
