"""Any causal model of transformers, through its attention interface, over our paged cache.

transformers lets a model's attention be replaced by a function. Ours keeps keys and values in the paged cache and
attends over them, so that a flat batch of many sequences passes through the model as if it were one. Nothing in a model
promises that its other parts don't mix the tokens of a batch (a convolution, a state, positions that it counts by
itself), so a model is tried when it is loaded: two sequences in one batch, cut and continued, must give what each gives
alone. One that fails is served sequence by sequence (`SeparateDecoder`), and tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from framework.engine.architectures.pretrained import Pretrained, reselected
from framework.engine.architectures.separate import SeparateDecoder
from framework.engine.attention import Extras, Plan, attend, weigh
from framework.engine.forward import Decoder, ForwardInputs
from framework.engine.kv_cache import LayerShape, PagedCache
from framework.engine.loader import Weights
from framework.engine.torch_decoder import DTYPES
from framework.errors import ModelUnavailable

NAME = "lectern_paged"  # of our function in transformers' registries
STRANGE = (TypeError, ValueError, RuntimeError, LookupError, AttributeError)  # a stranger's code, given a flat batch
MOVING_ROPE = ("dynamic", "longrope")  # rotary scalings that follow the longest sequence of a batch


class _Unsuited(Exception):
    """The model's attention is none that we can compute over the paged cache; says why."""


@dataclass(slots=True)
class _Pass:
    """A forward pass on its way through a model: a served one, or with `shapes` the first, that measures the layers.

    Attributes:
        windows: of each layer, by the number that the model gives it; 0: none.
    """

    windows: dict[int, int]
    shapes: dict[int, LayerShape] | None = None
    plan: Plan | None = None
    cache: PagedCache | None = None
    places: dict[int, int] = field(default_factory=dict)
    context: int = 0


_PASS: ContextVar[_Pass] = ContextVar("lectern_pass")


def load_general(
    folder: Path, weights: Weights, *, block_size: int, dtype: str, kv_dtype: str, device: torch.device
) -> Decoder:
    """A decoder for a model that only transformers knows.

    Raises:
        ModelUnavailable: transformers can't load it, it is rounded or is to be, or it can't be served in pieces.
    """
    if weights.is_quantized or dtype == "int8":
        raise ModelUnavailable(
            "8-bit weights are for Llama, Mistral, Qwen2 and Qwen3 models.", hint='Set dtype to "auto" or "float32".'
        )
    model = Pretrained(folder, DTYPES[dtype], device)
    try:
        if agrees(TransformersDecoder(model, block_size=block_size, kv_dtype="auto"), model, block_size):
            return TransformersDecoder(model, block_size=block_size, kv_dtype=kv_dtype)
    except (_Unsuited, *STRANGE):
        pass
    if kv_dtype not in ("auto", dtype):
        raise ModelUnavailable(
            f"the architecture {model.architecture} keeps keys and values in {dtype} only.",
            hint='Set kv_dtype to "auto".',
        )
    model.use_attention("eager")
    separate = SeparateDecoder(model, block_size=block_size)
    if not agrees(separate, model, block_size):
        raise ModelUnavailable(
            f"the architecture {model.architecture} can't be continued from what was computed before.",
            hint="Serve it with an engine that knows it, and name that engine's address.",
        )
    return separate


class TransformersDecoder:
    """A model of transformers over the paged cache (a `Decoder`).

    Raises:
        _Unsuited: its attention can't be computed over the paged cache.
    """

    shares_prefixes = True

    def __init__(self, model: Pretrained, *, block_size: int, kv_dtype: str) -> None:
        self.model = model
        self.device, self.vocabulary, self.context_length = model.device, model.vocabulary, model.context_length
        self.weight_bytes, self.linears = model.weight_bytes, model.linears
        self.set_adapter = model.set_adapter
        self._block_size = block_size
        self._windows, shapes = _measured(model)
        self._places = {layer: place for place, layer in enumerate(sorted(shapes))}
        dtype = model.dtype if kv_dtype == "auto" else DTYPES[kv_dtype]
        self._cache = PagedCache([shapes[layer] for layer in self._places], block_size, dtype, model.device)
        self.allocate, self.copy_blocks = self._cache.allocate, self._cache.copy_blocks

    @property
    def block_bytes(self) -> int:
        return self._cache.block_bytes

    @torch.inference_mode()
    def forward(self, inputs: ForwardInputs) -> torch.Tensor:
        plan = Plan(inputs, self._block_size, self.device, deterministic=False)
        token = _PASS.set(_Pass(self._windows, plan=plan, cache=self._cache, places=self._places))
        try:
            with self.model.adapting(inputs):
                return self.model.logits(plan.tokens, plan.positions, plan.sampled)
        finally:
            _PASS.reset(token)


def agrees(decoder: Decoder, model: Pretrained, block_size: int) -> bool:
    """Two short sequences, in one batch and cut into pieces, give what the model gives for each by itself."""
    generator = np.random.default_rng(0)
    texts = [generator.integers(0, model.vocabulary, count).tolist() for count in (9, 6)]
    served = model.attention
    model.use_attention("eager")
    expected = [model.whole(text) for text in texts]
    model.use_attention(served)
    width = -(-9 // block_size)
    decoder.allocate(2 * width)
    blocks = np.arange(2 * width, dtype=np.int32).reshape(2, width)[:, ::-1]
    close = True
    for spans in ([(0, 5), (0, 4)], [(5, 6), (4, 6)], [(6, 9), (6, 6)]):
        inputs = reselected(texts, spans, blocks)
        wanted = torch.cat([rows[start:end] for rows, (start, end) in zip(expected, spans, strict=True)])
        error = (decoder.forward(inputs) - wanted).abs().max()
        close = close and bool(error <= model.tolerance * wanted.abs().max())
    decoder.allocate(0)
    return close


def _measured(model: Pretrained) -> tuple[dict[int, int], dict[int, LayerShape]]:
    """Each layer's sliding window and shape, as they show when the model runs."""
    if not model.replaceable or any(kind in MOVING_ROPE for kind in model.rope_types):
        raise _Unsuited(model.architecture)
    _register()
    model.use_attention(NAME)
    measuring = _Pass({}, shapes={}, context=model.context_length)
    token = _PASS.set(measuring)
    try:
        ids = torch.arange(4, device=model.device)
        model.logits(ids, ids, ids)
    finally:
        _PASS.reset(token)
    if not measuring.shapes:
        raise _Unsuited(model.architecture)
    return measuring.windows, measuring.shapes


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _paged_attention)
    AttentionMaskInterface.register(NAME, _window)


def _window(*, mask_function: Callable[..., torch.Tensor], **_: Any) -> torch.Tensor | None:
    """transformers asks for a mask: nothing when serving; when measuring, its window as a tensor of four dimensions."""
    measuring = _PASS.get()
    if measuring.shapes is None:
        return None
    key, counts = torch.arange(measuring.context), []
    for position in (measuring.context - 2, measuring.context - 1):
        seen = mask_function(0, 0, torch.tensor(position), key)
        count = int(seen.sum())
        if not seen[position + 1 - count : position + 1].all():
            raise _Unsuited("a mask that is no sliding window")
        counts.append(count)
    if counts[0] == counts[1]:
        return torch.tensor(counts[0])[None, None, None, None]
    if counts[1] == measuring.context and counts[0] == measuring.context - 1:
        return torch.tensor(0)[None, None, None, None]
    raise _Unsuited("attention in chunks")


def _paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers' models call: (1, heads, T, width) of each, gives (1, T, heads, width of the values)."""
    current, extras = _PASS.get(), Extras(scaling, softcap, s_aux)
    layer = getattr(module, "layer_idx", None)
    if position_bias is not None or layer is None:
        raise _Unsuited("a position bias, or a layer without a number")
    if current.shapes is not None:
        if layer in current.shapes or attention_mask is None or attention_mask.shape != (1, 1, 1, 1):
            raise _Unsuited("a mask of its own, or a layer that is used twice")
        current.shapes[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3])
        current.windows[layer] = int(attention_mask)
        return weigh(query, key, value, None, extras).transpose(1, 2), None
    assert current.plan is not None
    assert current.cache is not None
    place = current.places[layer]
    current.cache.write(place, current.plan.places, key[0].transpose(0, 1), value[0].transpose(0, 1))
    pieces = current.plan.pieces(current.windows[layer])
    return attend(query[0].transpose(0, 1), current.cache, place, pieces, extras)[None], None
