"""Llama and what is built exactly like it: SmolLM, TinyLlama and Vicuna (all "llama"), and Mistral."""

from __future__ import annotations

from framework.engine.architectures.fields import Config, integer, shapes
from framework.engine.spec import DecoderSpec


def llama(config: Config) -> DecoderSpec:
    """Llama (Touvron et al., 2023): one switch gives q, k, v and o their biases, another the MLP.

    Raises:
        ModelUnavailable: config.json lacks a field or has an impossible one.
    """
    bias = bool(config.get("attention_bias"))
    return shapes(config, attention_bias=bias, output_bias=bias, mlp_bias=bool(config.get("mlp_bias")))


def mistral(config: Config) -> DecoderSpec:
    """Mistral (Jiang et al., 2023): Llama without biases, where a token may see a window only.

    Raises:
        ModelUnavailable: config.json lacks a field or has an impossible one.
    """
    window = 4096 if "sliding_window" not in config else integer(config, "sliding_window", 0, least=0)
    return shapes(config, kv_heads=8, sliding_window=window)
