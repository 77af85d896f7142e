"""Whether the right tools were called, with the right arguments; see `evals.calls`."""

from __future__ import annotations

from collections import Counter

from evals.calls import all_right, valid
from evals.metrics.base import metric
from evals.sample import Output, Sample


def expects_calls(sample: Sample) -> bool:
    return bool(sample.calls)


def expects_none(sample: Sample) -> bool:
    return bool(sample.tools) and not sample.calls


@metric("call_valid")
def call_valid(sample: Sample, output: Output, k: int | None) -> float | None:
    """1 where every call is to a tool that is offered and valid under its schema, over samples with any."""
    return float(all(valid(call, sample.tools) for call in output.calls)) if output.calls else None


@metric("call_tool", applies=expects_calls)
def call_tool(sample: Sample, output: Output, k: int | None) -> float:
    """1 where the right tools are called, each as often as it should be."""
    return float(Counter(call.name for call in output.calls) == Counter(call.name for call in sample.calls))


@metric("call_right", applies=expects_calls)
def call_right(sample: Sample, output: Output, k: int | None) -> float:
    """1 where the calls are right as a whole: tools and every argument."""
    return float(all_right(output.calls, sample.calls))


@metric("no_call", applies=expects_none)
def no_call(sample: Sample, output: Output, k: int | None) -> float:
    """1 where nothing is called, over samples for which no tool fits."""
    return float(not output.calls)
