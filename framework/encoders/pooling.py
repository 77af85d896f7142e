"""From the vectors of tokens to one unit vector a text."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn.functional import normalize

Pooling = Literal["mean", "cls", "last"]


def pool(hidden: Tensor, lengths: Tensor, pooling: Pooling) -> Tensor:
    """One L2-normalised vector a text, in float32.

    Args:
        hidden: vectors of tokens, (texts, tokens, width), padded on the right.
        lengths: tokens of each text that are not padding, (texts,).
        pooling: the mean over those tokens, the first one, or the last one of them.

    Returns:
        (texts, width).
    """
    hidden = hidden.float()
    if pooling == "cls":
        pooled = hidden[:, 0]
    elif pooling == "last":
        pooled = hidden[lengths.new_tensor(range(len(hidden))), lengths - 1]
    else:
        padding = lengths.new_tensor(range(hidden.shape[1])) >= lengths[:, None]
        # The sum's scale does not matter: it is normalised.
        pooled = hidden.masked_fill(padding[:, :, None], 0.0).sum(1)
    return normalize(pooled, dim=-1)
