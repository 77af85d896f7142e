"""The skeleton that the Llama-like decoders share, as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Shapes and choices of a Llama-like decoder: pre-norm, rotary positions, grouped queries, gated SiLU.

    Layer i has the weights (out, in) layers.i.self_attn.{q,k,v,o}_proj and layers.i.mlp.{gate,up,down}_proj, the norms
    layers.i.input_layernorm and layers.i.post_attention_layernorm, with qk_norm also layers.i.self_attn.{q,k}_norm.
    Before and after the layers come embed_tokens, norm and, unless tied, lm_head.

    Attributes:
        hidden: width of the residual stream; the MLP's is `intermediate`.
        heads, kv_heads, head_dim: query heads, heads of keys and values, width of each.
        context_length: positions that the rotary table is made for.
        eps: of the RMS norms.
        rope: "rope_theta" and what else config.json says of rotary positions.
        attention_bias: q, k, v have biases (Qwen2); `output_bias`: o has one too (some Llamas).
        mlp_bias: gate, up and down have biases.
        qk_norm: queries and keys are normalised a head (Qwen3).
        sliding_window: a token sees this many positions, its own among them (Mistral); 0: all.
        tied: the head is the embedding.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_length: int
    eps: float
    rope: Mapping[str, Any] = field(default_factory=dict)
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int = 0
    tied: bool = True

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(out, in) of each linear layer of a block, by the name that checkpoints and adapters use."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (queries, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, queries),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    @property
    def all_linears(self) -> dict[str, tuple[int, int]]:
        """(out, in) of each linear layer of the whole decoder, by its full name."""
        whole = {f"layers.{i}.{name}": shape for i in range(self.layers) for name, shape in self.linears.items()}
        return {**whole, "lm_head": (self.vocabulary, self.hidden)}
