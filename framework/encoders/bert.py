"""The BERT family (BERT, RoBERTa, XLM-RoBERTa) as one plain forward over memory-mapped weights.

transformers would do, but importing it takes seconds. One query from cold is `bert_query`'s: importing torch takes one.
Devlin et al. 2018 (arXiv:1810.04805); post-norm blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from framework.encoders import bert_layout


@dataclass(frozen=True, slots=True)
class _Affine:
    weight: Tensor
    bias: Tensor

    def linear(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)

    def norm(self, x: Tensor, epsilon: float) -> Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, epsilon)


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: _Affine
    attended: _Affine
    attended_norm: _Affine
    up: _Affine
    down: _Affine
    down_norm: _Affine


class BertEncoder:
    """Token ids to the last hidden states.

    Args:
        config: the model's config.json.
        weights: its tensors by name, with or without the family's prefix ("bert.").
        device: where to compute; float32 everywhere.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor has another shape than the configuration says.
    """

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor], device: str = "cpu") -> None:
        self.width: int = config["hidden_size"]
        self._heads: int = config["num_attention_heads"]
        self._epsilon = bert_layout.epsilon(config)
        self._first_position = bert_layout.first_position(config)
        self._device = device
        self._weights = {bert_layout.plain_name(name): tensor for name, tensor in weights.items()}
        bert_layout.check(config, {name: tensor.shape for name, tensor in self._weights.items()})
        self._words = self._tensor("embeddings.word_embeddings.weight")
        # A single text has one segment only, so its vector is a constant of each position.
        segments = self._tensor("embeddings.token_type_embeddings.weight")
        self._positions = self._tensor("embeddings.position_embeddings.weight") + segments[0]
        self._second = segments[1] - segments[0] if len(segments) > 1 else None
        self._embedding_norm = self._affine("embeddings.LayerNorm")
        self._layers = [self._layer(bert_layout.LAYER.format(i)) for i in range(config["num_hidden_layers"])]
        self._weights.clear()

    @classmethod
    def load(
        cls,
        config: Mapping[str, Any],
        files: Sequence[Path],
        device: str = "cpu",
        updates: Mapping[str, Tensor] | None = None,
    ) -> BertEncoder:
        """Map the weights from safetensors files; their pages are read when they are first used.

        Args:
            updates: what is added to weights, by their plain names: an adapter, multiplied out.
        """
        weights = load_tensors(files)
        for name, update in (updates or {}).items():
            weights[name] = weights[name].float() + update
        return cls(config, weights, device)

    def __call__(self, ids: Tensor, lengths: Tensor, segments: Tensor | None = None) -> Tensor:
        """Hidden states (texts, tokens, width) of `ids` (texts, tokens), padded on the right beyond `lengths`.

        Args:
            segments: (texts, tokens), 1 where a token belongs to the second text of a pair; None: there is none.
        """
        count, tokens = ids.shape
        place = self._first_position
        x = functional.embedding(ids, self._words) + self._positions[place : place + tokens]
        if segments is not None and self._second is not None:
            x = x + segments[:, :, None] * self._second
        x = self._embedding_norm.norm(x, self._epsilon)
        mask = None
        if int(lengths.min()) < tokens:
            mask = (torch.arange(tokens, device=ids.device) < lengths[:, None])[:, None, None, :]
        for layer in self._layers:
            x = self._block(layer, x, mask)
        return x.view(count, tokens, self.width)

    def _block(self, layer: _Layer, x: Tensor, mask: Tensor | None) -> Tensor:
        count, tokens, width = x.shape
        split = layer.qkv.linear(x).view(count, tokens, 3, self._heads, width // self._heads)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        heads = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        attended = layer.attended.linear(heads.transpose(1, 2).reshape(count, tokens, width)).add_(x)
        x = layer.attended_norm.norm(attended, self._epsilon)
        wide = functional.gelu(layer.up.linear(x))
        return layer.down_norm.norm(layer.down.linear(wide).add_(x), self._epsilon)

    def _layer(self, name: str) -> _Layer:
        heads = [self._affine(f"{name}.attention.self.{part}") for part in ("query", "key", "value")]
        return _Layer(
            _Affine(torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])),
            self._affine(f"{name}.attention.output.dense"),
            self._affine(f"{name}.attention.output.LayerNorm"),
            self._affine(f"{name}.intermediate.dense"),
            self._affine(f"{name}.output.dense"),
            self._affine(f"{name}.output.LayerNorm"),
        )

    def _affine(self, name: str) -> _Affine:
        return _Affine(self._tensor(f"{name}.weight"), self._tensor(f"{name}.bias"))

    def _tensor(self, name: str) -> Tensor:
        return self._weights[name].to(device=self._device, dtype=torch.float32)


def load_tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of safetensors files, mapped, by their plain names."""
    return {bert_layout.plain_name(name): tensor for file in files for name, tensor in load_file(file).items()}
