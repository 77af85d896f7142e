"""A cross-encoder: the encoder reads query and text as one sequence, and a head makes a score of its first token.

Nogueira and Cho 2019 (arXiv:1901.04085). The heads are those of BERT and RoBERTa for sequence classification.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from framework.encoders.bert import BertEncoder

# The layers of a head, first to last, by what the checkpoint calls them; between two there is a tanh.
HEADS = (("pooler.dense", "classifier"), ("classifier.dense", "classifier.out_proj"))


class CrossEncoder:
    """Token ids of pairs to one score each.

    Args:
        encoder: what reads them.
        weights: the checkpoint's tensors by plain name, among them the head's.
        device: where the encoder is.

    Raises:
        KeyError: there is no head.
        ValueError: the head gives more than one score, or does not fit the encoder.
    """

    def __init__(self, encoder: BertEncoder, weights: Mapping[str, Tensor], device: str = "cpu") -> None:
        self._encoder = encoder
        layers = next((layers for layers in HEADS if f"{layers[1]}.weight" in weights), HEADS[0])
        self._head = [
            (weights[f"{layer}.weight"].to(device, torch.float32), weights[f"{layer}.bias"].to(device, torch.float32))
            for layer in layers
        ]
        shapes = [tuple(weight.shape) for weight, _ in self._head]
        if shapes != [(encoder.width, encoder.width), (1, encoder.width)]:
            raise ValueError(
                f"the head has layers of {shapes}; a reranker's makes one score of {encoder.width} numbers"
            )

    def __call__(self, ids: Tensor, lengths: Tensor, segments: Tensor) -> Tensor:
        """Scores (pairs,) of `ids` (pairs, tokens), padded on the right beyond `lengths`."""
        x = self._encoder(ids, lengths, segments)[:, 0]
        (dense, bias), (out, out_bias) = self._head
        return functional.linear(functional.linear(x, dense, bias).tanh(), out, out_bias)[:, 0]
