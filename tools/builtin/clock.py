"""What time it is: a model can't know."""

from __future__ import annotations

from datetime import datetime
from difflib import get_close_matches
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from framework.errors import ModelFault
from tools.decorator import tool


@tool(timeout=5.0)
def current_time(time_zone: str = "UTC") -> str:
    """Tell the present date, weekday and time.

    Args:
        time_zone: IANA name, such as Europe/Berlin or America/New_York.
    """
    try:
        zone = ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        close = get_close_matches(time_zone[:64], sorted(available_timezones()), n=3)
        advice = f"Did you mean {' or '.join(close)}?" if close else "Use an IANA name, such as Europe/Berlin."
        raise ModelFault(f"There is no time zone {time_zone[:64]!r}.", hint=advice, field="time_zone") from error
    now = datetime.now(zone)
    return f"{now:%A}, {now.isoformat(timespec='seconds')} ({time_zone})"
