"""Late interaction: each token of a query looks for the token of the text that is most like it.

Khattab and Zaharia 2020 (ColBERT, arXiv:2004.12832), with a weight for each token of the query, learned from its
vector, and without a query's marks for classification and separation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from framework.encoders.bert import BertEncoder

WEIGHT, BIAS = "token_weight.weight", "token_weight.bias"


class LateInteraction:
    """Queries and texts to vectors of their tokens, and both to scores.

    Args:
        encoder: what reads them, one text at a time.
        head: `token_weight.weight` (1, width) and `token_weight.bias` (1,).
        device: where the encoder is.

    Raises:
        KeyError: a tensor of the head is missing.
        ValueError: one has the wrong shape, or is not finite.
    """

    def __init__(self, encoder: BertEncoder, head: Mapping[str, Tensor], device: str = "cpu") -> None:
        self._encoder = encoder
        self._weight, self._bias = (head[name].to(device, torch.float32) for name in (WEIGHT, BIAS))
        shapes = tuple(self._weight.shape), tuple(self._bias.shape)
        if shapes != ((1, encoder.width), (1,)):
            raise ValueError(f"the head's tensors have the shapes {shapes}, not {((1, encoder.width), (1,))}")
        if not (self._weight.isfinite().all() and self._bias.isfinite().all()):
            raise ValueError("the head is not finite")

    def query(self, ids: Tensor) -> Tensor:
        """Vectors (tokens, width) of a query (tokens,) whose first and last token are marks; lengths are weights."""
        hidden = self._encoder(ids[None], torch.tensor([len(ids)], device=ids.device))[0, 1:-1]
        weights = functional.softplus(functional.linear(hidden, self._weight, self._bias))
        return functional.normalize(hidden, dim=-1) * (weights / weights.sum())

    def texts(self, ids: Tensor, lengths: Tensor) -> list[Tensor]:
        """Unit vectors (tokens, width) of each text of `ids` (texts, tokens), padded on the right beyond `lengths`."""
        vectors = functional.normalize(self._encoder(ids, lengths), dim=-1)
        return [row[:length].clone() for row, length in zip(vectors, lengths.tolist(), strict=True)]


def score(query: Tensor, text: Tensor) -> Tensor:
    """From -1 to 1: the mean over the query's tokens, by weight, of their best cosine with a token of the text."""
    return (text @ query.T).amax(0).sum()
