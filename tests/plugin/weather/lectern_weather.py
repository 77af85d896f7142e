"""A plugin as a user would write it: one function, one entry point."""

from __future__ import annotations

from typing import Literal

from tools import tool


@tool
def forecast(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> dict[str, object]:
    """Tell tomorrow's weather.

    Args:
        city: name of the city.
    """
    return {"city": city, "unit": unit, "high": 21 if unit == "celsius" else 70}
