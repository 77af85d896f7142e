"""The metrics. Importing this package registers the built-in ones; plugins use the entry points `lectern.metrics`."""

from evals.metrics import answers, calls, citations, cost, ranking
from evals.metrics.base import METRICS, Metric, MetricKind, metric, parse_metric

__all__ = [
    "METRICS",
    "Metric",
    "MetricKind",
    "answers",
    "calls",
    "citations",
    "cost",
    "metric",
    "parse_metric",
    "ranking",
]
