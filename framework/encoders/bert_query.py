"""The BERT family's forward pass for one text, in numpy: a command that embeds one query can't wait for torch's import.

The same computation as `bert` and `pooling`, for float32 weights; the vectors agree to some 1e-7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from framework.encoders import bert_layout
from framework.encoders.mapped import map_tensors

Array = NDArray[np.float32]

# erf(x) = x P(x²) / Q(x²) for |x| <= 4, as in Eigen and XLA; in double precision its error is below 6.5e-8.
ERF_P = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
         -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)  # fmt: skip
ERF_Q = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
         -1.42647390514189e-02)  # fmt: skip

# Multiplications in a product that OpenBLAS makes in one thread, and rows of its left side.
PIECE, ROWS = 2**18, 16


class BertQuery:
    """Token ids of one text to its unit vector. Maps the weights; their pages are read when they are first used.

    Attributes:
        width: dimensions of the vector.
        usable: whether all weights are float32, which is all that is computed here.

    Raises:
        SafetensorError, OSError: a file is damaged.
        KeyError: a tensor is missing.
        ValueError: a tensor has another shape than the configuration says.
    """

    def __init__(self, config: Mapping[str, Any], files: Sequence[Path]) -> None:
        self._weights: dict[str, Array] = {}
        shapes: dict[str, list[int]] = {}
        for file in files:
            for name, (shape, values) in map_tensors(file).items():
                shapes[bert_layout.plain_name(name)] = shape
                if values is not None:
                    self._weights[bert_layout.plain_name(name)] = values
        bert_layout.check(config, shapes)
        self.usable = bert_layout.shapes(config).keys() <= self._weights.keys()
        self.width: int = config["hidden_size"]
        self._layers: int = config["num_hidden_layers"]
        self._heads: int = config["num_attention_heads"]
        self._first_position = bert_layout.first_position(config)
        self._epsilon = bert_layout.epsilon(config)

    def __call__(self, ids: Sequence[int], pooling: str) -> Array:
        """The vector (width,) of one text of at least one token."""
        words, places, segments = (self._weights[f"embeddings.{part}_embeddings.weight"] for part in
                                   ("word", "position", "token_type"))  # fmt: skip
        start = self._first_position
        with np.errstate(all="ignore"):  # what is not finite shows in the vector
            x = self._norm("embeddings.LayerNorm", words[ids] + (places[start : start + len(ids)] + segments[0]))
            for i in range(self._layers):
                x = self._block(bert_layout.LAYER.format(i), x)
            pooled = x[0] if pooling == "cls" else x[-1] if pooling == "last" else x.sum(0)
            unit: Array = pooled / np.maximum(np.linalg.norm(pooled), np.float32(1e-12))
        return unit

    def _block(self, layer: str, x: Array) -> Array:
        q, k, v = (
            self._linear(f"{layer}.attention.self.{part}", x).reshape(len(x), self._heads, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        heads = [self._attend(*head) for head in zip(q, k, v, strict=True)]
        attended = self._linear(f"{layer}.attention.output.dense", np.concatenate(heads, axis=1))
        x = self._norm(f"{layer}.attention.output.LayerNorm", attended + x)
        wide = _gelu(self._linear(f"{layer}.intermediate.dense", x))
        return self._norm(f"{layer}.output.LayerNorm", self._linear(f"{layer}.output.dense", wide) + x)

    def _attend(self, q: Array, k: Array, v: Array) -> Array:
        scores = _product(q, k.T) / np.float32(np.sqrt(q.shape[1]))
        weights = np.exp(scores - scores.max(1, keepdims=True))
        return _product(weights / weights.sum(1, keepdims=True), v)

    def _linear(self, name: str, x: Array) -> Array:
        return _product(x, self._weights[f"{name}.weight"].T) + self._weights[f"{name}.bias"]

    def _norm(self, name: str, x: Array) -> Array:
        x = x - x.mean(-1, keepdims=True)
        scale = np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(self._epsilon))
        normed: Array = x / scale * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return normed


def _gelu(x: Array) -> Array:
    z = np.clip(x * np.float32(np.sqrt(0.5)), -4, 4).astype(np.float64)
    erf = z * np.polyval(ERF_P, z * z) / np.polyval(ERF_Q, z * z)
    return np.asarray(x * (0.5 + 0.5 * erf), dtype=np.float32)


def _product(a: Array, b: Array) -> Array:
    """a @ b in pieces too small for OpenBLAS to share out: its threads lose a second spinning where a core is busy."""
    (rows, inner), columns = a.shape, b.shape[1]
    tall = -(-rows // ROWS)
    wide = -(-columns * -(-rows // tall) * inner // PIECE)
    out = np.empty((rows, columns), np.float32)
    for left, target in zip(np.array_split(a, tall), np.array_split(out, tall), strict=True):
        for right, part in zip(np.array_split(b, wide, 1), np.array_split(target, wide, 1), strict=True):
            np.matmul(left, right, out=part)
    return out
