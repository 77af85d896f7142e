"""The structures of model.h, field by field."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_void_p
from typing import ClassVar

FLOAT32, BFLOAT16, INT8 = 0, 1, 2
PANEL, CHUNK = 64, 32


class Linear(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, c_int32) for name in ("inputs", "outputs", "type", "parts", "interleaved")),
        ("first", c_int32 * 3),
        ("names", c_int32 * 3),
        ("unused", c_int32),
        *((name, c_void_p) for name in ("weights", "scale", "bias")),
    ]


class Layer(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, Linear) for name in ("qkv", "o", "gate_up", "down")),
        *((name, c_void_p) for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm")),
        *((name, c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
    ]


class Change(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, c_void_p) for name in ("a", "b", "input_scale", "output_scale")),
        *((name, c_int32) for name in ("rank", "columns")),
    ]


class Model(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, c_int32) for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate")),
        *((name, c_int32) for name in ("vocabulary", "block_size", "sliding_window")),
        *((name, c_int32) for name in ("cache_type", "adapter_type", "changes")),
        ("eps", c_float),
        ("embedding_type", c_int32),
        *((name, c_void_p) for name in ("embedding", "cosines", "sines", "norm")),
        ("head", Linear),
        *((name, c_void_p) for name in ("layer", "adapters")),
    ]


class Step(ctypes.Structure):
    _fields_: ClassVar = [
        *((name, c_int32) for name in ("tokens", "sequences", "sampled", "blocks")),
        *((name, c_void_p) for name in ("ids", "positions", "starts", "tables", "slots", "wanted", "logits")),
    ]


def sizes() -> list[int]:
    """Sizes in bytes, in the order of `lectern_layout`."""
    return [ctypes.sizeof(structure) for structure in (Linear, Layer, Change, Model, Step)]
