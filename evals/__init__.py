"""Evaluation: tasks, data sets, metrics, runs. A function that is measured may return an `Output`."""

from evals.sample import Cited, Output, Sample

__all__ = ["Cited", "Output", "Sample"]
