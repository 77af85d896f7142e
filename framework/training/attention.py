"""Attention for packed sequences on a CPU, as two batched matrix products.

PyTorch's fused attention for CPUs takes 42% of a training step of a 135M model at 512 tokens in bfloat16; this form,
whose scores fit the cache at these lengths, takes 20% (bench/LOG.md). On a GPU the fused form is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

NAME: Final = "lectern_packed"


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Softmax attention; the query heads that share a key head are one matrix.

    Args:
        query: (batch, heads, tokens, head size); `key` and `value` with their own number of heads.
        attention_mask: added to the scores, (batch, 1, tokens, tokens).

    Returns:
        Array of shape (batch, tokens, heads, head size), and no weights.
    """
    import torch

    batch, heads, tokens, size = query.shape
    groups, keys = key.shape[1], key.shape[2]
    shared = heads // groups
    rows = (query * scaling).reshape(batch * groups, shared * tokens, size)
    scores = torch.bmm(rows, key.reshape(batch * groups, keys, size).transpose(1, 2))
    # In bfloat16 the least float32 is minus infinity, and a row of padding would become NaN.
    mask = attention_mask.clamp_min(torch.finfo(scores.dtype).min).to(scores.dtype)
    mask = mask.expand(batch, groups, tokens, keys).reshape(batch * groups, 1, tokens, keys)
    weights = torch.softmax(scores.view(batch * groups, shared, tokens, keys) + mask, dim=-1, dtype=scores.dtype)
    mixed = torch.bmm(weights.reshape(batch * groups, shared * tokens, keys), value.reshape(batch * groups, keys, size))
    return mixed.view(batch, heads, tokens, size).transpose(1, 2).contiguous(), None


def register() -> str:
    """Make it known to transformers; returns its name for `attn_implementation`. Padded batches and caches work too."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    return NAME
