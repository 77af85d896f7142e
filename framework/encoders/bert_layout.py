"""What a config.json of the BERT family says of the weights: whose they are, their names and their shapes. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ROBERTA = ("roberta", "xlm-roberta", "camembert")
TYPES = ("bert", *ROBERTA)
LAYER = "encoder.layer.{}"


def supports(config: Mapping[str, Any]) -> bool:
    """Whether `BertEncoder` and `BertQuery` compute what a config.json asks for, to the letter."""
    return (
        config.get("model_type") in TYPES
        and config.get("hidden_act", "gelu") == "gelu"
        and config.get("position_embedding_type", "absolute") in ("absolute", None)
        and not config.get("is_decoder")
        and not config.get("quantization_config")
    )


def first_position(config: Mapping[str, Any]) -> int:
    """The row of the position table that a text's first token has."""
    return int(config.get("pad_token_id", 1)) + 1 if config["model_type"] in ROBERTA else 0


def epsilon(config: Mapping[str, Any]) -> float:
    """What is added to the variance in a layer norm."""
    return float(config.get("layer_norm_eps", 1e-12))


def check(config: Mapping[str, Any], found: Mapping[str, Sequence[int]]) -> None:
    """Compare the shapes of tensors, by their plain names, with those that the configuration asks for.

    Raises:
        KeyError: a tensor is missing, or the configuration lacks a size.
        ValueError: a tensor has another shape than the configuration says.
    """
    for name, shape in shapes(config).items():
        if tuple(found[name]) != shape:
            raise ValueError(f"{name} has the shape {tuple(found[name])}, not {shape} as config.json says")


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """All tensors that the forward pass reads, by their plain names."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    named: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
    }
    affine: dict[str, tuple[int, ...]] = {"embeddings.LayerNorm": (width,)}
    for i in range(config["num_hidden_layers"]):
        layer = LAYER.format(i)
        affine |= {f"{layer}.attention.self.{part}": (width, width) for part in ("query", "key", "value")}
        affine |= {
            f"{layer}.attention.output.dense": (width, width),
            f"{layer}.attention.output.LayerNorm": (width,),
            f"{layer}.intermediate.dense": (inner, width),
            f"{layer}.output.dense": (width, inner),
            f"{layer}.output.LayerNorm": (width,),
        }
    for name, shape in affine.items():
        named |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return named


def plain_name(name: str) -> str:
    """Without the family's prefix, and with the names that TensorFlow checkpoints gave to norms made new."""
    family, _, rest = name.partition(".")
    if family in ("bert", "roberta"):
        name = rest
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
