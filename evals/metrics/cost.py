"""What an output cost."""

from __future__ import annotations

from evals.metrics.base import metric
from evals.sample import Output, Sample


@metric("seconds", higher_is_better=False)
def seconds(sample: Sample, output: Output, k: int | None) -> float:
    """Wall time of a sample; run with `run.concurrency = 1` to measure latency alone."""
    return output.seconds


@metric("steps", higher_is_better=False)
def steps(sample: Sample, output: Output, k: int | None) -> float:
    """Steps that the agent took."""
    return float(output.steps)


@metric("tokens", higher_is_better=False)
def tokens_used(sample: Sample, output: Output, k: int | None) -> float:
    """Tokens of all prompts and completions."""
    return float(output.tokens)
