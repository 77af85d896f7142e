"""Reading config.json: what Llama-like families share, every value checked before memory is asked for by it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from framework.engine.spec import DecoderSpec
from framework.errors import ModelUnavailable

Config = Mapping[str, Any]
MOST = 2**31 - 1  # what the kernels count with
MOST_LAYERS = 4096
MOST_TOKENS = 2**22  # of a vocabulary or a context: the sampler adds up that many weights, a table has that many rows
SCALINGS = ("default", "linear", "llama3")  # kinds of rotary scaling that `rope_table` knows


def integer(config: Config, key: str, default: int | None = None, least: int = 1, most: int = MOST) -> int:
    """A whole number of config.json; missing and null are the default.

    Raises:
        ModelUnavailable: it is missing without a default, no whole number, below `least` or above `most`.
    """
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ModelUnavailable(f"config.json has {key} = {value!r}: a whole number from {least} to {most} is needed.")
    return value


def number(config: Config, key: str, default: float | None = None) -> float:
    """A finite positive number of config.json; missing and null are the default.

    Raises:
        ModelUnavailable: it is missing without a default, not finite or not positive.
    """
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
        raise ModelUnavailable(f"config.json has {key} = {value!r}: a positive number is needed.")
    return float(value)


def rope(config: Config) -> dict[str, Any]:
    """The rotary parameters in one form, whether config.json is of transformers 5 or of an older version.

    Raises:
        ModelUnavailable: a number that the scaling needs is missing or wrong.
    """
    found = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = found.get("rope_type") or found.get("type") or "default"
    result = {**found, "rope_type": kind, "rope_theta": number({**config, **found}, "rope_theta", 10000.0)}
    result.setdefault("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    if kind in ("linear", "llama3"):
        result["factor"] = number(found, "factor")
    if kind == "llama3":
        original = {**found, **{k: config[k] for k in ("original_max_position_embeddings",) if config.get(k)}}
        context = integer(config, "max_position_embeddings", 2048)
        result["original_max_position_embeddings"] = integer(original, "original_max_position_embeddings", context)
        for key in ("low_freq_factor", "high_freq_factor"):
            result[key] = number(found, key)
    return result


def shapes(config: Config, *, kv_heads: int | None = None, head_dim: int | None = None, **choices: Any) -> DecoderSpec:
    """The specification by the names that all Llama-like families use.

    Args:
        kv_heads, head_dim: the family's defaults, where config.json leaves them out; None: those of Llama.
        choices: the family's own fields of `DecoderSpec`.

    Raises:
        ModelUnavailable: a field is missing or its value is impossible.
    """
    heads, hidden = integer(config, "num_attention_heads"), integer(config, "hidden_size")
    spec = DecoderSpec(
        layers=integer(config, "num_hidden_layers", most=MOST_LAYERS),
        hidden=hidden,
        intermediate=integer(config, "intermediate_size"),
        heads=heads,
        kv_heads=integer(config, "num_key_value_heads", kv_heads or heads),
        head_dim=integer(config, "head_dim", head_dim or hidden // heads),
        vocabulary=integer(config, "vocab_size", most=MOST_TOKENS),
        context_length=integer(config, "max_position_embeddings", 2048, most=MOST_TOKENS),
        eps=number(config, "rms_norm_eps", 1e-6),
        rope=rope(config),
        tied=bool(config.get("tie_word_embeddings")),
        **choices,
    )
    if spec.heads % spec.kv_heads or spec.head_dim % 2:
        raise ModelUnavailable(
            f"config.json has {spec.heads} query heads for {spec.kv_heads} key heads of width {spec.head_dim}:"
            " the first must be a multiple of the second, and the width even."
        )
    return spec


def plain(config: Config) -> bool:
    """Nothing in config.json asks for arithmetic that our decoder lacks."""
    scaling = rope(config)
    return (
        config.get("hidden_act", "silu") in ("silu", "swish")
        and scaling["rope_type"] in SCALINGS
        and scaling["partial_rotary_factor"] == 1.0
        and all(str(name).endswith("ForCausalLM") for name in config.get("architectures") or ())
    )
