"""Which families of decoders are our own, by the name that config.json gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from framework.engine.architectures.fields import Config, plain
from framework.engine.architectures.llama import llama, mistral
from framework.engine.architectures.qwen import qwen2, qwen3
from framework.engine.spec import DecoderSpec

FAMILIES: Mapping[str, Callable[[Config], DecoderSpec | None]] = {
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
}


def spec_of(config: Config) -> DecoderSpec | None:
    """The specification of a model, from its config.json.

    Returns:
        None where it is of no Llama-like family, or asks for something that our decoder lacks (another activation,
        another rotary scaling, windows on some layers only): the general path takes those.

    Raises:
        ModelUnavailable: a Llama-like model's config.json lacks a field or has an impossible one.
    """
    family = FAMILIES.get(str(config.get("model_type")))
    return family(config) if family and plain(config) else None
