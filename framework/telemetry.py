"""Logs: one JSON object a line on standard error, at the level that LECTERN_LOG names.

What a log line says of a request or a document is its name, size and time, never its content.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

from framework.errors import ConfigError

LEVELS = ("debug", "info", "warning", "error")


class JsonLines(logging.Formatter):
    """`logger.info("request", extra={"fields": {...}})` becomes one line with those fields beside the usual ones."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def configure_logging(
    default: str = "warning", stream: TextIO | None = None, environ: Mapping[str, str] = os.environ
) -> None:
    """Send the process's logs to `stream` (standard error unless given); calling it again replaces the former set-up.

    Raises:
        ConfigError: LECTERN_LOG is not a level.
    """
    level = environ.get("LECTERN_LOG", default).lower()
    if level not in LEVELS:
        raise ConfigError(f"LECTERN_LOG is {level!r}.", hint=f"Use one of {', '.join(LEVELS)}.", field="LECTERN_LOG")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
