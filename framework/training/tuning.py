"""Which parameters are trained: all, LoRA's or (IA)³'s, and how many that are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from framework.errors import CallerError
from framework.training.config import AdapterConfig

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig

# Names of the layers that (IA)³ scales: keys, values, and what the feed-forward's last layer takes in. By family, as
# PEFT lists them for few; these are the names that nearly all decoders use.
IA3_TARGETS: Final = ("k_proj", "v_proj", "down_proj")
IA3_INPUTS: Final = ("down_proj",)


@dataclass(frozen=True, slots=True)
class Parameters:
    """How many numbers a model has, and how many of them are trained."""

    trained: int
    all: int

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.trained / self.all

    def __str__(self) -> str:
        return f"{self.trained:,} of {self.all:,} parameters are trained ({self.share:.2%})"


def adapter_of(config: AdapterConfig, task: str = "CAUSAL_LM", **options: Any) -> PeftConfig | None:
    """PEFT's configuration; None for full tuning.

    Args:
        task: PEFT's name of the task.
        options: further arguments of PEFT's class, such as `modules_to_save`.
    """
    import peft

    if config.kind == "full":
        return None
    if config.kind == "ia3":
        targets = list(config.targets or IA3_TARGETS)
        inputs = [name for name in IA3_INPUTS if name in targets]
        return peft.IA3Config(task_type=task, target_modules=targets, feedforward_modules=inputs, **options)
    if config.rank < 1:
        raise CallerError(f"adapter.rank must be at least 1, got {config.rank}.", field="adapter.rank")
    return peft.LoraConfig(
        task_type=task,
        r=config.rank,
        lora_alpha=config.alpha or 2 * config.rank,  # type: ignore[arg-type]  # PEFT takes a float too
        lora_dropout=config.dropout,
        target_modules=list(config.targets) or "all-linear",
        **options,
    )


def count(model: torch.nn.Module) -> Parameters:
    """What the optimizer will train; shared tensors count once."""
    unique = {id(parameter): parameter for parameter in model.parameters()}.values()
    return Parameters(sum(p.numel() for p in unique if p.requires_grad), sum(p.numel() for p in unique))


def lora_parameters(shapes: list[tuple[int, int]], rank: int) -> int:
    """LoRA's parameters for linear layers of shape (out, in): 2,304 for one of 512 × 64 at rank 4 (full: 32,768)."""
    return sum(rank * (out + into) for out, into in shapes)
