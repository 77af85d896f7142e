"""A request on its way through the engine: token ids and counts, no text and no tensors."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from framework.engine.adapter import Adapter

FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "error"]
Limit: TypeAlias = Literal["max_tokens", "context", "memory"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request's tokens are chosen; values are checked where requests come in. The defaults decode greedily.

    Attributes:
        max_tokens: most tokens to generate.
        temperature: 0 is greedy; otherwise the logits are divided by it.
        top_k: only the k most probable tokens; 0: all.
        top_p: only the smallest set of tokens with this probability mass.
        min_p: only tokens at least this probable, as a share of the most probable one's.
        presence_penalty, frequency_penalty: taken from the logits of tokens generated so far, once and once a time.
        repetition_penalty: divides positive and multiplies negative logits of all tokens known so far (Keskar et al.,
            2019); 1: none.
        logit_bias: added to the logits of these ids.
        seed: the same seed and request give the same tokens; None: a fresh one.
        stop_ids: ids that end the answer; the one that did is part of it.
        logprobs: number of alternatives to report with each token; None: no log-probabilities.
    """

    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    seed: int | None = None
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None


class MaskProvider(Protocol):
    """A grammar's walk beside one answer. The engine calls it in this order for each token, never from two threads."""

    def allowed(self) -> NDArray[np.bool_]:
        """Mask of shape (vocabulary size,): what may come next. Called beside the forward pass.

        Raises:
            CallerError: the grammar became too complex; the request ends with it.
        """
        ...

    def accept(self, token: int, logits: Callable[[], NDArray[np.float32]]) -> int:
        """Take the token that was sampled under `allowed`, or another in its place, which is returned.

        Args:
            logits: gives the row of shape (vocabulary size,) that the token was chosen from, before any penalty.
        """
        ...

    def forced(self) -> list[int]:
        """Tokens that must come next, taken; they need no logits and may be none."""
        ...

    @property
    def finished(self) -> bool:
        """Nothing can follow: the answer is complete."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """What the engine is asked for.

    Attributes:
        prompt: token ids, at least one.
        mask: constrains the answer; None: anything.
        adapter: answered by the base model with this adapter; None: by the base alone.
        salt: requests of different salts never share cached blocks (a tenant's name).
        priority: lower goes first; equal ones in the order they came.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    mask: MaskProvider | None = None
    adapter: Adapter | None = None
    salt: str = ""
    priority: int = 0


class Status(Enum):
    WAITING = "waiting"  # holds no block
    RUNNING = "running"
    FINISHED = "finished"


_NUMBERS = itertools.count()


@dataclass(eq=False, slots=True)
class Sequence:
    """A request's state.

    Attributes:
        tokens: every known token: the prompt, then what was generated (sampled or forced).
        computed: how many of them have their keys and values in `blocks`. A step brings it nearer to len(tokens); when
            it would reach it, the step samples the next token. That is all there is to prefill, chunks and decode.
        blocks: the block table: physical block of each `block_size` positions.
        digests: chained hash of each full block of `tokens`, as far as it was needed; they outlive the blocks.
        cached: tokens of the prompt that were found in the prefix cache when it was last admitted.
        slot: where its adapter is resident while it runs; -1: no adapter.
        limit: what it ran into where `finish` is "length"; "memory" is the pool of blocks, too small for it alone.
        paused: its reader is behind, so it is not scheduled.
        arrived, started, first_token, ended: `time.monotonic` of each, 0.0 until then.
        preemptions: how often its blocks were taken away.
    """

    request: Request
    number: int = field(default_factory=lambda: next(_NUMBERS))
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    cached: int = 0
    slot: int = -1
    status: Status = Status.WAITING
    finish: FinishReason | None = None
    limit: Limit | None = None
    paused: bool = False
    arrived: float = field(default_factory=time.monotonic)
    started: float = 0.0
    first_token: float = 0.0
    ended: float = 0.0
    preemptions: int = 0

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def missing(self) -> int:
        """Known tokens whose keys and values are still to be computed."""
        return len(self.tokens) - self.computed


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A chosen token, and what was asked to be known of it.

    Attributes:
        logprob: natural logarithm of its probability by the model alone, before penalties, temperature and masks;
            None: not asked for.
        top: the most probable alternatives (id, logprob), best first.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
