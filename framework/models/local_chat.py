"""A chat model on this machine, by transformers' own `generate`: plain, and what faster engines are compared with.

Requests are served one after another, in the order they came, by one worker thread; the event loop only receives
deltas. An answer has at most one delta a token and at most as many tokens as its budget, which bounds what waits for a
slow reader, so a reader that stalls holds up nobody else.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from framework.errors import CallerError, ModelUnavailable
from framework.messages import Delta, FinishReason, Message, ToolSpec, Usage
from framework.models.base import AUTO, GREEDY, Constraint, GenerationParams, ToolChoice
from framework.models.constraints import Grammar, Vocabulary, constraint_grammar, tool_grammar
from framework.models.decoding import AnswerWriter, Sampler
from framework.models.json_schema import STRING_LIMIT
from framework.models.request import check_request
from framework.prompts.chat_template import ChatTemplate
from framework.prompts.control_tokens import ControlTokens
from framework.prompts.tool_formats import CallReader, turns

if TYPE_CHECKING:
    import torch

Emit: TypeAlias = Callable[[Delta], None]
LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length")


@dataclass(frozen=True, slots=True)
class _Request:
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    tool_choice: ToolChoice
    constraint: Constraint | None
    params: GenerationParams


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request once it is known to be possible: nothing of the model was needed so far."""

    prompt: list[int]
    budget: int
    grammar: Grammar | None


class LocalChat:
    """A model whose folder holds `config.json`, `tokenizer.json`, a chat template and safetensors.

    The weights are loaded when the first request needs them. With tools, the answer follows a grammar, so calls are
    always whole and their arguments valid; calls are streamed one at a time, each in one delta. If the budget of tokens
    runs out within a call, open strings and brackets are closed; `finish_reason` is then "length".

    Args:
        folder: as the catalog resolves it.
        name: what the model is called.
        device: "cpu" or "cuda"; None: CUDA where there is one.
        dtype: "float32", "bfloat16" or "float16"; None: float32 on a CPU, bfloat16 or float16 on CUDA.
        threads: threads for the whole process's torch; None: torch's own choice.
        calls: most tool calls in one answer. Small models repeat themselves where more than one is allowed.
        guided: it is too small to call a tool by itself; see `ChatModel`.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        device: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        calls: int = 1,
        guided: bool = False,
    ) -> None:
        self.folder = folder
        self._name = name
        self._device = device
        self._dtype = dtype
        self._threads = threads
        self._calls = calls
        self.guided = guided
        self._config = _read_json(folder / "config.json", name)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lectern-chat")

    @property
    def name(self) -> str:
        return self._name

    @property
    def context_length(self) -> int:
        text = self._config.get("text_config", self._config)
        length = next((text[key] for key in LENGTHS if isinstance(text.get(key), int)), None)
        if length is None:
            raise ModelUnavailable(f"{self.folder}/config.json does not tell how long the context of {self.name} is.")
        return int(length)

    def count_tokens(self, text: str) -> int:
        return self._tokens.count(text)

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
        request = _Request(tuple(messages), tuple(tools), tool_choice, constraint, params)
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Delta | None] = asyncio.Queue()
        cancelled = threading.Event()

        def hand_over(item: Delta | None) -> None:
            try:
                loop.call_soon_threadsafe(arrived.put_nowait, item)
            except RuntimeError:  # the loop was closed: nobody is waiting any more
                cancelled.set()

        try:
            future = self._worker.submit(self._answer, request, hand_over, cancelled)
        except RuntimeError:
            raise ModelUnavailable(f"{self.name} was closed.", hint="Load it again.") from None
        future.add_done_callback(lambda _: hand_over(None))
        try:
            while (delta := await arrived.get()) is not None:
                yield delta
            if future.cancelled():
                raise ModelUnavailable(f"{self.name} was closed before it answered.", hint="Load it again.")
            future.result()
        finally:
            cancelled.set()
            future.cancel()

    def close(self) -> None:
        """Stop taking requests. Answers that are being written end first."""
        self._worker.shutdown(wait=True, cancel_futures=True)

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), tool_choice: ToolChoice = AUTO
    ) -> list[int]:
        """The token ids that the model continues.

        Raises:
            CallerError: the chat template refuses the conversation.
        """
        offered = tools if tool_choice.mode != "none" else ()
        return self._tokens.encode(self._template.render(turns(messages, offered, self._tokens.guard)))

    def _answer(self, request: _Request, emit: Emit, cancelled: threading.Event) -> None:
        if cancelled.is_set():
            return
        prepared = self._prepare(request)
        calls = None
        if request.tools and request.tool_choice.mode != "none":
            # Equal requests get equal ids, and a conversation's prompts differ, so an id is unique within it.
            key = hashlib.sha256(repr(prepared.prompt).encode()).hexdigest()[:16]
            calls = CallReader([tool.name for tool in request.tools], lambda index: f"call_{key}_{index}")
        matcher = self._vocabulary.matcher(prepared.grammar) if prepared.grammar else None
        sampler = Sampler(request.params, matcher, prepared.budget, self._ends)
        writer = AnswerWriter(
            self._vocabulary, frozenset(self._tokens.special), request.params.stop, calls, self._strips_space
        )
        count = self._generate(prepared.prompt, sampler, writer, emit, cancelled)
        if cancelled.is_set():
            return
        rest = writer.finish()
        if rest is not None:
            emit(rest)
        usage = Usage(len(prepared.prompt), count)
        emit(Delta(finish_reason=_reason(sampler, writer), usage=usage))

    def _prepare(self, request: _Request) -> _Prepared:
        if request.constraint is not None:
            grammar: Grammar | None = constraint_grammar(request.constraint)
        else:
            grammar = tool_grammar(request.tools, request.tool_choice, self._calls)
        prompt = self.prompt(request.messages, request.tools, request.tool_choice)
        room = self.context_length - len(prompt)
        if room < 1:
            raise CallerError(
                f"The prompt has {len(prompt)} tokens, the context of {self.name} holds {self.context_length}.",
                hint="Shorten it; the answer needs room too.",
                field="messages",
            )
        return _Prepared(prompt, min(room, request.params.max_tokens or room), grammar)

    def _generate(
        self, prompt: list[int], sampler: Sampler, writer: AnswerWriter, emit: Emit, cancelled: threading.Event
    ) -> int:
        """Run the model until the answer ends; returns the number of tokens generated."""
        import torch

        model = self._model
        budget = sampler.left
        forced = sampler.forced()
        for token in forced:
            _write(writer, token, None, emit)
        taken = 0

        def choose(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            """The whole choice happens here, with a random generator of the request's own: argmax only repeats it."""
            nonlocal taken
            taken = sampler.pick(scores[0].float().cpu().numpy())
            only = torch.full_like(scores, float("-inf"))
            only[0, taken] = 0.0
            return only

        def is_done(ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            if not sampler.ended:
                _write(writer, taken, sampler.logprobs, emit)
            done = sampler.finished or sampler.left == 0 or writer.stopped or cancelled.is_set()
            return torch.tensor([done], device=ids.device)

        ids = torch.tensor([[*prompt, *forced]], device=model.device)
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=_transformers().GenerationConfig(max_new_tokens=sampler.left, do_sample=False),
            logits_processor=[choose],
            stopping_criteria=[is_done],
        )
        return budget - sampler.left

    @cached_property
    def _tokens(self) -> ControlTokens:
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            raise ModelUnavailable(f"{self.name} has no {path}.", hint="Only tokenizers in that form are read.")
        return ControlTokens(path.read_text(encoding="utf-8"))

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate.of_folder(self.folder, self.name)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        size = self._model.config.get_text_config().vocab_size
        return Vocabulary((self.folder / "tokenizer.json").read_text(encoding="utf-8"), size, sorted(self._ends))

    @cached_property
    def _ends(self) -> frozenset[int]:
        """Ids that end an answer, from wherever the folder names them."""
        tokenizer = _read_json(self.folder / "tokenizer_config.json", self.name, optional=True)
        generation = _read_json(self.folder / "generation_config.json", self.name, optional=True)
        text = tokenizer.get("eos_token")
        named = (
            self._tokens.tokenizer.token_to_id(text["content"] if isinstance(text, dict) else text) if text else None
        )
        found: set[int] = set() if named is None else {named}
        for value in (self._config.get("eos_token_id"), generation.get("eos_token_id")):
            found |= {value} if isinstance(value, int) else set(value or ())
        if not found:
            raise ModelUnavailable(
                f"{self.name} names no token that ends an answer.", hint="Set eos_token_id in its config.json."
            )
        return frozenset(found)

    @cached_property
    def _strips_space(self) -> bool:
        ids = self._tokens.tokenizer.encode("a", add_special_tokens=False).ids
        return self._vocabulary.token_bytes(ids[0]).startswith(b" ") and self._tokens.tokenizer.decode(ids) == "a"

    @cached_property
    def _model(self) -> Any:
        return _load(self.folder, self.name, self._device, self._dtype, self._threads)


def _load(folder: Path, name: str, device: str | None, dtype: str | None, threads: int | None) -> Any:
    import torch
    from safetensors import SafetensorError

    transformers = _transformers()
    logging = transformers.utils.logging
    if threads is not None:
        torch.set_num_threads(threads)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype is None:
        dtype = "float32" if device == "cpu" else "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False, local_files_only=True
        ).to(device)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelUnavailable(
            f"{name} can't be loaded from {folder}: {str(error)[:500]}",
            hint="Code that comes with a model is never run, and weights are read from safetensors only.",
        ) from error
    finally:
        if bar:
            logging.enable_progress_bar()
    model.eval()
    # What the folder wants sampled (top_k, penalties) would bend an answer that was asked for plainly.
    model.generation_config = transformers.GenerationConfig()
    return model


def _transformers() -> Any:
    import transformers

    return transformers


def _write(writer: AnswerWriter, token: int, logprobs: Any, emit: Emit) -> None:
    delta = writer.write(token, logprobs)
    if delta is not None:
        emit(delta)


def _reason(sampler: Sampler, writer: AnswerWriter) -> FinishReason:
    """Why the answer ended; "length" too where a limit of ours, not the model, ended a part of it."""
    if (
        not (writer.stopped or sampler.finished)
        or sampler.cut
        or writer.unfinished
        or any(_at_limit(call.arguments) for call in writer.calls_made)
    ):
        return "length"
    return "tool_calls" if writer.calls_made else "stop"


def _at_limit(arguments: str) -> bool:
    left = [json.loads(arguments)]
    while left:
        value = left.pop()
        if isinstance(value, str) and len(value) == STRING_LIMIT:
            return True
        if isinstance(value, dict | list):
            left.extend(value.values() if isinstance(value, dict) else value)
    return False


def _read_json(path: Path, name: str, optional: bool = False) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise ModelUnavailable(f"{name} has no {path}.") from None
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{path} can't be read: {error}.") from error
    if not isinstance(values, dict):
        raise ModelUnavailable(f"{path} does not hold a JSON object.")
    return values
