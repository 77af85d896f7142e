"""How much an engine may hold at once."""

from __future__ import annotations

from dataclasses import dataclass

from framework.errors import CallerError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What an engine may hold at once.

    Attributes:
        max_sequences: running at once.
        max_tokens_per_step: computed in one forward pass; at least max_sequences.
        max_waiting: requests beyond max_sequences that may be here; one more is refused.
        block_size: tokens in a block of the key-value cache.
        blocks: blocks that there are.
        context_length: most tokens of a sequence, prompt and answer.
        vocabulary: ids of tokens are below it.
        adapter_slots: adapters resident at once.
        prefix_cache: known prefixes are shared.
    """

    blocks: int
    context_length: int
    vocabulary: int = 2**31 - 1
    max_sequences: int = 64
    max_tokens_per_step: int = 512
    max_waiting: int = 256
    block_size: int = 16
    adapter_slots: int = 64
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        for name in ("blocks", "context_length", "max_sequences", "max_waiting", "block_size"):
            if getattr(self, name) < 1:
                raise CallerError(f"{name} is {getattr(self, name)}, and must be at least 1.", field=name)
        if self.max_tokens_per_step < self.max_sequences:
            raise CallerError(
                f"max_tokens_per_step ({self.max_tokens_per_step}) is less than max_sequences ({self.max_sequences}).",
                hint="Each running sequence needs one token in every step.",
                field="max_tokens_per_step",
            )

    @property
    def room(self) -> int:
        """Blocks' places for tokens."""
        return self.blocks * self.block_size

    @property
    def longest_prompt(self) -> int:
        """Tokens; one more has to fit into the context."""
        return min(self.context_length - 1, self.room)
