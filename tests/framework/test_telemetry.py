"""Logs are JSON lines at the level that the environment names."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from framework.errors import ConfigError
from framework.telemetry import configure_logging


@pytest.fixture(autouse=True)
def former_handlers() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_one_line_with_its_fields() -> None:
    stream = io.StringIO()
    configure_logging("info", stream, {})
    logger = logging.getLogger("lectern.test")
    logger.info("two\nlines %s", "\ud800", extra={"fields": {"bytes": 3}})
    logger.debug("unseen")
    (line,) = lines(stream)
    assert line["message"] == "two\nlines \ud800"
    assert (line["level"], line["logger"], line["bytes"]) == ("info", "lectern.test", 3)


def test_an_exception_brings_its_traceback() -> None:
    stream = io.StringIO()
    configure_logging("info", stream, {})
    try:
        raise ZeroDivisionError("oh")
    except ZeroDivisionError:
        logging.getLogger("lectern.test").exception("failed")
    assert "ZeroDivisionError: oh" in str(lines(stream)[0]["traceback"])


def test_the_environment_sets_the_level() -> None:
    stream = io.StringIO()
    configure_logging("info", stream, {"LECTERN_LOG": "ERROR"})
    logging.getLogger("lectern.test").warning("unseen")
    assert lines(stream) == []
    with pytest.raises(ConfigError, match="LECTERN_LOG is 'loud'"):
        configure_logging("info", stream, {"LECTERN_LOG": "loud"})
