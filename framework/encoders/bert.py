"""The BERT family (BERT, RoBERTa, XLM-RoBERTa) as one plain forward over memory-mapped weights.

transformers would do, but importing it takes seconds, which a command that embeds one query can't spend.
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

ROBERTA = ("roberta", "xlm-roberta", "camembert")
TYPES = ("bert", *ROBERTA)


def supports(config: Mapping[str, Any]) -> bool:
    """Whether `BertEncoder` computes what a config.json asks for, to the letter."""
    return (
        config.get("model_type") in TYPES
        and config.get("hidden_act", "gelu") == "gelu"
        and config.get("position_embedding_type", "absolute") in ("absolute", None)
        and not config.get("is_decoder")
        and not config.get("quantization_config")
    )


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
        self._epsilon: float = config.get("layer_norm_eps", 1e-12)
        padding = config.get("pad_token_id", 1)
        self._first_position = padding + 1 if config["model_type"] in ROBERTA else 0
        self._device = device
        self._weights = {_plain_name(name): tensor for name, tensor in weights.items()}
        self._words = self._tensor("embeddings.word_embeddings.weight", config["vocab_size"], self.width)
        places = self._tensor("embeddings.position_embeddings.weight", config["max_position_embeddings"], self.width)
        segments = self._tensor("embeddings.token_type_embeddings.weight", config["type_vocab_size"], self.width)
        # One segment only, so its vector is a constant of each position.
        self._positions = places + segments[0]
        self._embedding_norm = self._affine("embeddings.LayerNorm", self.width)
        inner = config["intermediate_size"]
        self._layers = [self._layer(f"encoder.layer.{i}", inner) for i in range(config["num_hidden_layers"])]
        self._weights.clear()

    @classmethod
    def load(cls, config: Mapping[str, Any], files: Sequence[Path], device: str = "cpu") -> BertEncoder:
        """Map the weights from safetensors files; their pages are read when they are first used."""
        weights: dict[str, Tensor] = {}
        for file in files:
            weights.update(load_file(file))
        return cls(config, weights, device)

    def __call__(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Hidden states (texts, tokens, width) of `ids` (texts, tokens), padded on the right beyond `lengths`."""
        count, tokens = ids.shape
        place = self._first_position
        x = functional.embedding(ids, self._words) + self._positions[place : place + tokens]
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

    def _layer(self, name: str, inner: int) -> _Layer:
        width = self.width
        heads = [self._affine(f"{name}.attention.self.{part}", width, width) for part in ("query", "key", "value")]
        return _Layer(
            _Affine(torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])),
            self._affine(f"{name}.attention.output.dense", width, width),
            self._affine(f"{name}.attention.output.LayerNorm", width),
            self._affine(f"{name}.intermediate.dense", inner, width),
            self._affine(f"{name}.output.dense", width, inner),
            self._affine(f"{name}.output.LayerNorm", width),
        )

    def _affine(self, name: str, *shape: int) -> _Affine:
        return _Affine(self._tensor(f"{name}.weight", *shape), self._tensor(f"{name}.bias", shape[0]))

    def _tensor(self, name: str, *shape: int) -> Tensor:
        tensor = self._weights[name]
        if tensor.shape != shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not {shape} as config.json says")
        return tensor.to(device=self._device, dtype=torch.float32)


def _plain_name(name: str) -> str:
    """Without the family's prefix, and with the names that TensorFlow checkpoints gave to norms made new."""
    family, _, rest = name.partition(".")
    if family in ("bert", "roberta"):
        name = rest
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
