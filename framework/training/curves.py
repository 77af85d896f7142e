"""The run's curves as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from framework.training.run import RunFolder

# A panel's label, and the lines in it: key in the log to name. Panels without points are left out.
PANELS: Final[Mapping[str, Mapping[str, str]]] = {
    "loss": {"loss": "training", "validation_loss": "validation"},
    "margin": {
        "rewards/margins": "training",
        "eval_rewards/margins": "validation",
        "margin": "training",
        "eval_margin": "validation",
    },
    "reward": {"reward": "training", "eval_reward": "validation"},
    "KL divergence": {"kl": "training", "eval_kl": "validation"},
    "learning rate": {"learning_rate": ""},
}


def draw(run: RunFolder) -> None:
    """Write `curves.png`: loss of training and validation, what the recipe measures, the learning rate, by update."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    reports = run.reports()
    if not reports:
        return
    panels = {
        label: lines for label, lines in PANELS.items() if any(report.get(key) for report in reports for key in lines)
    }
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(8, 1.5 + 1.9 * len(panels)), sharex=True, layout="constrained", squeeze=False
    )
    for (label, lines), axis in zip(panels.items(), axes[:, 0], strict=True):
        for key, name in lines.items():
            points = [(report["step"], report[key]) for report in reports if report.get(key) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), "o-" if name == "validation" else "-", label=name, markersize=4)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        if all(lines.values()):
            axis.legend()
    axes[-1, 0].set_xlabel("update")
    figure.savefig(run.path / "curves.png", dpi=110)
    pyplot.close(figure)
