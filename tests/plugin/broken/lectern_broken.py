"""A plugin that fails in a way that is no ImportError."""

from __future__ import annotations

raise ZeroDivisionError("this module divides by zero")
