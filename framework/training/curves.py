"""The run's curves as a picture."""

from __future__ import annotations

from framework.training.run import RunFolder


def draw(run: RunFolder) -> None:
    """Write `curves.png`: loss of training and validation, and the learning rate, by update."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    reports = run.reports()
    if not reports:
        return
    figure, (losses, rates) = pyplot.subplots(
        2, 1, figsize=(8, 6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    for key, label, style in (("loss", "training", "-"), ("validation_loss", "validation", "o-")):
        points = [(report["step"], report[key]) for report in reports if key in report]
        if points:
            losses.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    losses.set_ylabel("loss per token")
    losses.legend()
    losses.grid(alpha=0.3)
    points = [(report["step"], report["learning_rate"]) for report in reports if report.get("learning_rate")]
    if points:
        rates.plot(*zip(*points, strict=True))
    rates.set_ylabel("learning rate")
    rates.set_xlabel("update")
    rates.grid(alpha=0.3)
    figure.savefig(run.path / "curves.png", dpi=110)
    pyplot.close(figure)
