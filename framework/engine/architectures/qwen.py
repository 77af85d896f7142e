"""Qwen2 and Qwen2.5 (biases on q, k and v) and Qwen3 (a norm on each head's queries and keys instead)."""

from __future__ import annotations

from framework.engine.architectures.fields import Config, integer, shapes
from framework.engine.spec import DecoderSpec


def qwen2(config: Config) -> DecoderSpec | None:
    """Qwen2 (Yang et al., 2024).

    Returns:
        None where only some layers have a sliding window.

    Raises:
        ModelUnavailable: config.json lacks a field or has an impossible one.
    """
    window = _window(config)
    return None if window is None else shapes(config, kv_heads=32, attention_bias=True, sliding_window=window)


def qwen3(config: Config) -> DecoderSpec | None:
    """Qwen3 (Yang et al., 2025).

    Returns:
        None where only some layers have a sliding window.

    Raises:
        ModelUnavailable: config.json lacks a field or has an impossible one.
    """
    window, bias = _window(config), bool(config.get("attention_bias"))
    if window is None:
        return None
    return shapes(
        config,
        kv_heads=32,
        head_dim=128,
        attention_bias=bias,
        output_bias=bias,
        qk_norm=True,
        sliding_window=window,
    )


def _window(config: Config) -> int | None:
    """The sliding window that all layers have, 0 if none has one, None if they differ."""
    if not config.get("use_sliding_window") or config.get("sliding_window", 4096) is None:
        return 0
    layers = integer(config, "num_hidden_layers")
    full = min(integer(config, "max_window_layers", 28, least=0), layers)
    kinds = config.get("layer_types") or ["full_attention"] * full + ["sliding_attention"] * (layers - full)
    if len(set(kinds)) > 1:
        return None
    return integer(config, "sliding_window", 4096) if kinds[0] == "sliding_attention" else 0
