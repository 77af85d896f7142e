"""A bound on how far a model goes from its base while it is trained with rewards."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

STATE: Final = "kl.json"
LARGEST: Final = 64  # times what the coefficient began with: a larger one would take long to fall back
STEP: Final = 0.1  # of the way back to the start


@dataclass(slots=True)
class KLBound:
    """The coefficient of the KL divergence, and the way back to where training began.

    As in PPO with an adaptive penalty (Schulman et al. 2017, section 4): while the divergence is above the bound the
    coefficient doubles with each update, up to 64 times what it began with; below half of it, it halves down to that.

    Attributes:
        most: the bound, in nats a token.
        least: the coefficient to begin with.
        coefficient: the present one.
        start: the trained tensors by name, as they were before the training.
    """

    most: float
    least: float
    coefficient: float = 0.0
    start: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.coefficient = self.coefficient or self.least

    def begin(self, model: torch.nn.Module) -> None:
        """Remember where the training begins."""
        self.start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def seen(self, divergence: float) -> float:
        """Take in what was measured; the coefficient from now on."""
        if divergence > self.most:
            self.coefficient = min(self.least * LARGEST, self.coefficient * 2)
        elif divergence < self.most / 2:
            self.coefficient = max(self.least, self.coefficient / 2)
        return self.coefficient

    def pull_back(self, model: torch.nn.Module, times: int) -> None:
        """Move the weights so that a tenth less of the way from the start is left, for the `times`-th time.

        What lies on the straight line between start and end earns nearly the reward of a run that went less far
        (Ramé et al. 2024, "WARP").
        """
        import torch

        left = (1 - times * STEP) / (1 - (times - 1) * STEP)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.start:
                    parameter.lerp_(self.start[name].to(parameter), 1 - left)

    def save(self, folder: Path) -> None:
        """Write the coefficient into a checkpoint."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STATE).write_text(json.dumps({"coefficient": self.coefficient}), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Read it from a checkpoint."""
        self.coefficient = json.loads((folder / STATE).read_text(encoding="utf-8"))["coefficient"]
