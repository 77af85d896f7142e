"""A chat model on this machine: text here, token ids in the engine that it shares with others of its folder.

A request is prepared in a worker thread (template, tokens, grammar), neither on the event loop nor in the engine's
thread. The engine's tokens become deltas on the loop of whoever reads them; a reader that stalls pauses its own answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from framework.engine.adapter import Adapter
from framework.engine.sequence import Request, SamplingParams
from framework.errors import CallerError, ModelUnavailable, NotFound
from framework.messages import Delta, FinishReason, Message, ToolSpec, Usage
from framework.models import engines
from framework.models.adapters import split_name
from framework.models.base import AUTO, GREEDY, TENANT, Constraint, GenerationParams, Role, ToolChoice
from framework.models.chat_text import shared_text
from framework.models.config import EngineConfig
from framework.models.constraints import Grammar, constraint_grammar, tool_grammar
from framework.models.decoding import AnswerWriter
from framework.models.grammar_mask import GrammarMask
from framework.models.json_schema import STRING_LIMIT
from framework.models.request import check_ids, check_request
from framework.prompts.tool_formats import CallReader

if TYPE_CHECKING:
    from framework.engine.scheduler import Event


@dataclass(frozen=True, slots=True)
class _Asked:
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    tool_choice: ToolChoice
    constraint: Constraint | None
    params: GenerationParams
    salt: str


class LocalChat:
    """A model whose folder holds `config.json`, `tokenizer.json`, a chat template and safetensors.

    The weights are loaded when the first request needs them; chats of the same folder and settings share them. With
    tools, the answer follows a grammar, so calls are always whole and their arguments valid; calls are streamed one at
    a time, each in one delta. If the budget of tokens runs out within a call, open strings and brackets are closed;
    `finish_reason` is then "length".

    Args:
        folder: as the catalog resolves it.
        name: what the model is called.
        config: how the engine runs it.
        threads: threads for the whole process's torch; None: torch's own choice.
        calls: most tool calls in one answer. Small models repeat themselves where more than one is allowed.
        guided: it is too small to call a tool by itself; see `ChatModel`.
        adapter: gives the adapter that answers, asked for each request, so that it can be replaced while others run.
        salt: prompts of different salts never share what is cached; None: the tenant that the task works for.
        priority: of its requests; lower goes first.
        roles: what gives the adapter that it was trained with for a role; see `framework.models.base.in_role`.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        config: EngineConfig = EngineConfig(),  # noqa: B008  frozen
        threads: int | None = None,
        calls: int = 1,
        guided: bool = False,
        adapter: Callable[[], Adapter] | None = None,
        salt: str | None = None,
        priority: int = 0,
        roles: Mapping[Role, tuple[str, Callable[[], Adapter]]] | None = None,
    ) -> None:
        self.folder = folder
        self.guided = guided
        self._name = name
        self._calls = calls
        self._adapter = adapter
        self._salt = salt
        self._priority = priority
        self._roles = dict(roles or {})
        self._in_role: dict[Role, LocalChat] = {}
        self._role_lock = threading.Lock()
        self._config, self._threads = config, threads
        self._text = shared_text(folder, name)
        self._lease = engines.lease(folder, split_name(name)[0] if adapter else name, config, threads)
        self._closed = False
        self._dropped = weakref.finalize(self, self._lease.abandon)
        self._dropped.atexit = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def context_length(self) -> int:
        return self._text.context_length

    def in_role(self, role: Role) -> LocalChat | None:
        """This model with the adapter for a role, in the same engine; None where there is none.

        Raises:
            Conflict: the adapter is deactivated, or was refused by the parity gate.
        """
        if role not in self._roles:
            return None
        name, adapter = self._roles[role]
        try:
            adapter()
        except NotFound:
            return None
        with self._role_lock:
            if role not in self._in_role and not self._closed:
                self._in_role[role] = LocalChat(
                    self.folder,
                    f"{self._name}:{name}",
                    config=self._config,
                    threads=self._threads,
                    calls=self._calls,
                    adapter=adapter,
                    salt=self._salt,
                    priority=self._priority,
                )
            return self._in_role.get(role)

    def count_tokens(self, text: str) -> int:
        return self._text.tokens.count(text)

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), tool_choice: ToolChoice = AUTO
    ) -> list[int]:
        """The token ids that the model continues.

        Raises:
            CallerError: the chat template refuses the conversation.
        """
        return self._text.prompt(messages, tools, tool_choice)

    async def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        tool_choice: ToolChoice = AUTO,
        constraint: Constraint | None = None,
        params: GenerationParams = GREEDY,
    ) -> AsyncIterator[Delta]:
        check_request(messages, tools, tool_choice, constraint)
        salt = TENANT.get() if self._salt is None else self._salt
        asked = _Asked(tuple(messages), tuple(tools), tool_choice, constraint, params, salt)
        if self._closed:
            raise ModelUnavailable(f"{self.name} was closed.", hint="Load it again.")
        self._lease.engine.check_process()
        preparing = self._lease.workers.submit(self._prepare, asked)
        answer = await asyncio.wrap_future(preparing)
        async with aclosing(self._lease.engine.generate(answer.request)) as events:
            async for event in events:
                for delta in answer.read(event):
                    yield delta
                if answer.writer.stopped:
                    self._lease.engine.satisfied(answer.request)
                    break
        for delta in answer.end():
            yield delta

    async def drain(self, seconds: float) -> None:
        """Take no more requests and close; answers that are being written get so many seconds to end in."""
        self._closed = True
        self._dropped.detach()
        for other in self._others():
            await other.drain(seconds)
        await self._lease.drain(seconds)
        self._text.close()

    def close(self) -> None:
        """Stop at once: answers that are being written end with an error, unless other chats share the engine."""
        self._closed = True
        self._dropped.detach()
        for other in self._others():
            other.close()
        self._lease.release()
        self._text.close()

    def _others(self) -> list[LocalChat]:
        """Those that answer in a role, which close with this one."""
        with self._role_lock:
            return [self._in_role.pop(role) for role in list(self._in_role)]

    def _prepare(self, asked: _Asked) -> _Answer:
        """What can be known before the model is needed. Runs in a worker thread.

        Raises:
            CallerError: the request can't be served.
        """
        grammar = _grammar(asked, self._calls)
        prompt = self.prompt(asked.messages, asked.tools, asked.tool_choice)
        room = self.context_length - len(prompt)
        if room < 1:
            raise CallerError(
                f"The prompt has {len(prompt)} tokens, the context of {self.name} holds {self.context_length}.",
                hint="Shorten it; the answer needs room too.",
                field="messages",
            )
        self._lease.engine.start()  # loads beside what follows
        budget = min(room, asked.params.max_tokens or room)
        vocabulary = self._text.vocabulary
        check_ids(asked.params, vocabulary.size)
        ends = self._text.ends | asked.params.stop_ids
        mask = None
        if grammar is not None:
            mask = GrammarMask(vocabulary.matcher(grammar), budget, ends, forces=asked.params.logprobs is None)
        request = Request(
            tuple(prompt),
            _sampling(asked.params, budget, ends),
            mask,
            self._adapter() if self._adapter is not None else None,
            asked.salt,
            self._priority,
        )
        writer = AnswerWriter(
            vocabulary,
            frozenset(self._text.tokens.special),
            asked.params.stop,
            _call_reader(asked, prompt),
            self._text.strips_space,
        )
        return _Answer(request, mask, writer)


class _Answer:
    """One request and what became of it so far: the engine's events to deltas."""

    def __init__(self, request: Request, mask: GrammarMask | None, writer: AnswerWriter) -> None:
        self.request = request
        self.mask = mask
        self.writer = writer
        self.tokens = 0
        self._stopped = False

    def read(self, event: Event) -> Iterator[Delta]:
        """What the event's tokens show, up to a stop string."""
        for sampled in event.tokens:
            self.tokens += 1
            if sampled.token in self.request.params.stop_ids:
                continue  # it ends the answer and is no part of it
            logprobs = None if sampled.logprob is None else (sampled.logprob, list(sampled.top))
            delta = self.writer.write(sampled.token, logprobs)
            if delta is not None:
                yield delta
            if self.writer.stopped:
                return
        self._stopped = event.finish == "stop"

    def end(self) -> Iterator[Delta]:
        """What was held back, then the last delta."""
        rest = self.writer.finish()
        if rest is not None:
            yield rest
        yield Delta(finish_reason=self._reason(), usage=Usage(len(self.request.prompt), self.tokens))

    def _reason(self) -> FinishReason:
        """Why the answer ended; "length" too where a limit of ours, not the model, ended a part of it."""
        writer = self.writer
        if (
            not (writer.stopped or self._stopped)
            or (self.mask is not None and self.mask.cut)
            or writer.unfinished
            or any(_at_limit(call.arguments) for call in writer.calls_made)
        ):
            return "length"
        return "tool_calls" if writer.calls_made else "stop"


def _sampling(params: GenerationParams, budget: int, ends: frozenset[int]) -> SamplingParams:
    return SamplingParams(
        max_tokens=budget,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias=params.logit_bias,
        seed=params.seed,
        stop_ids=ends,
        logprobs=params.logprobs,
    )


def _grammar(asked: _Asked, calls: int) -> Grammar | None:
    if asked.constraint is not None:
        return constraint_grammar(asked.constraint)
    return tool_grammar(asked.tools, asked.tool_choice, calls)


def _call_reader(asked: _Asked, prompt: list[int]) -> CallReader | None:
    if not asked.tools or asked.tool_choice.mode == "none":
        return None
    # Equal requests get equal ids, and a conversation's prompts differ, so an id is unique within it.
    key = hashlib.sha256(repr(prompt).encode()).hexdigest()[:16]
    return CallReader([tool.name for tool in asked.tools], lambda index: f"call_{key}_{index}")


def _at_limit(arguments: str) -> bool:
    left = [json.loads(arguments)]
    while left:
        value = left.pop()
        if isinstance(value, str) and len(value) == STRING_LIMIT:
            return True
        if isinstance(value, dict | list):
            left.extend(value.values() if isinstance(value, dict) else value)
    return False
