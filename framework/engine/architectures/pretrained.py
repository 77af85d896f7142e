"""A causal model as transformers loads it, and the little that serving needs of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from framework.engine.forward import ForwardInputs, sampled_alone
from framework.engine.lora import AdapterBank, AdapterWeights, Rows, check_fit
from framework.errors import ModelUnavailable


class Pretrained:
    """A model of transformers. Code that its folder brings along is never run.

    Attributes:
        architecture: the class that serves it.
        replaceable: its attention can be replaced by a function.
        rope_types: the kinds of rotary scaling that its layers use.
        tolerance: largest difference of logits, as a share of the largest logit, that rounding explains.

    Raises:
        ModelUnavailable: transformers can't load it.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.device, self.dtype = device, dtype
        self._model = _loaded(folder, dtype).to(device).eval()
        config = self._model.config.get_text_config()
        self.architecture = type(self._model).__name__
        self.replaceable = bool(self._model._supports_attention_backend)
        self.rope_types = _rope_types(getattr(config, "rope_parameters", None) or {})
        self.tolerance = 1e-3 if dtype == torch.float32 else 0.05
        self.context_length = _context_length(config)
        self._parameters = set(inspect.signature(self._model.forward).parameters)
        self.weight_bytes = sum(weight.nbytes for weight in self._model.parameters())
        self.linears = linear_shapes(self._model)
        head = self._model.get_output_embeddings()
        self.vocabulary = int(head.weight.shape[0]) if head is not None else int(config.vocab_size)
        self._head = next((name for name, module in self._model.named_modules() if module is head), "")
        self._bank = AdapterBank(device, dtype)
        self._hooked = False
        self._rows: tuple[Rows, Rows] | None = None  # of all tokens, and of those whose logits are wanted

    @property
    def attention(self) -> str:
        """What the model computes its attention with, by transformers' name."""
        return str(self._model.config._attn_implementation)

    def use_attention(self, name: str) -> None:
        """Compute attention with this function of transformers' registry."""
        if name != self.attention:
            self._model.set_attn_implementation(name)

    def logits(self, tokens: torch.Tensor, positions: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
        """Logits, float32 (S, vocabulary), of a flat batch, int64 (T,), without a cache of transformers' own."""
        kept = {"logits_to_keep": sampled} if "logits_to_keep" in self._parameters else {}
        mask = torch.ones(1, len(tokens), dtype=torch.long, device=self.device)
        output = self._model(
            input_ids=tokens[None], position_ids=positions[None], attention_mask=mask, use_cache=False, **kept
        )
        found: torch.Tensor = output.logits[0] if kept else output.logits[0, sampled]
        return found.float()

    @torch.inference_mode()
    def whole(self, tokens: Sequence[int]) -> torch.Tensor:
        """Logits, float32 (tokens, vocabulary), of one sequence by itself."""
        found: torch.Tensor = self._model(input_ids=torch.tensor([list(tokens)], device=self.device)).logits[0]
        return found.float()

    def continued(self, tokens: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """Logits, float32 (tokens, vocabulary), of what follows in one sequence, and its cache for the next call.

        Raises:
            ModelUnavailable: the model hands out no cache.
        """
        output = self._model(input_ids=tokens[None], past_key_values=cache, use_cache=True)
        if getattr(output, "past_key_values", None) is None:
            raise ModelUnavailable(
                f"the architecture {self.architecture} keeps its state in a form of its own, which can't be served.",
                hint="Serve it with an engine that knows it, and name that engine's address.",
            )
        return output.logits[0].float(), output.past_key_values

    def set_adapter(self, slot: int, weights: AdapterWeights | None) -> None:
        """As `Decoder.set_adapter`."""
        if weights is not None:
            check_fit(weights, self.linears)
        if not self._hooked:
            for name, module in self._model.named_modules():
                if name.removeprefix("model.") in self.linears:
                    self._hook(name, module)
            self._hooked = True
        self._bank.set(slot, weights)

    @contextmanager
    def adapting(self, inputs: ForwardInputs) -> Iterator[None]:
        """Within, the model's linear layers apply the adapters of the rows that have one."""
        if (inputs.slots >= 0).any():
            self._rows = self._bank.rows(inputs), self._bank.rows(sampled_alone(inputs))
        try:
            yield
        finally:
            self._rows = None

    def _hook(self, full: str, module: torch.nn.Module) -> None:
        name, cut = full.removeprefix("model."), full == self._head and "logits_to_keep" in self._parameters

        def before(_: torch.nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
            if self._rows is None:
                return None
            x = given[0]
            flat = x.reshape(-1, x.shape[-1])
            return (self._bank.scale_input(name, flat, self._rows[cut]).view(x.shape),)

        def after(_: torch.nn.Module, given: tuple[torch.Tensor], y: torch.Tensor) -> torch.Tensor | None:
            if self._rows is None:
                return None
            x = given[0].reshape(-1, given[0].shape[-1])
            return self._bank.linear(name, x, y.reshape(-1, y.shape[-1]), self._rows[cut]).view(y.shape)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)


def linear_shapes(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear layer that an adapter may change, by its name without "model."."""
    return {
        name.removeprefix("model."): (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "expert" not in name  # an expert sees a part of the rows
    }


def reselected(
    texts: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]], blocks: NDArray[np.int32]
) -> ForwardInputs:
    """A step that computes these spans of these texts, all of it sampled; a text with an empty span is left out."""
    used = [
        (text, start, end, row) for text, (start, end), row in zip(texts, spans, blocks, strict=True) if end > start
    ]
    tokens = np.concatenate([text[start:end] for text, start, end, _ in used]).astype(np.int32)
    return ForwardInputs(
        tokens=tokens,
        positions=np.concatenate([np.arange(start, end, dtype=np.int32) for _, start, end, _ in used]),
        starts=np.cumsum([0, *(end - start for _, start, end, _ in used)], dtype=np.int32),
        blocks=np.stack([row for *_, row in used]),
        slots=np.full(len(used), -1, dtype=np.int32),
        sampled=np.arange(len(tokens), dtype=np.int32),
    )


def _loaded(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()  # the hub's downloads obey the same switch
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="eager",
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
        )
    except (ValueError, OSError, KeyError, RuntimeError, ImportError, TypeError, AttributeError) as error:
        raise ModelUnavailable(
            f"transformers can't load {folder}: {str(error)[:300]}",
            hint="Served are causal language models that transformers knows without code of the folder's own.",
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _context_length(config: Any) -> int:
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
    return next((int(value) for name in names if (value := getattr(config, name, None))), 2048)


def _rope_types(parameters: dict[str, Any]) -> set[str]:
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(each.get("rope_type", "default")) for each in nested or [parameters]}
