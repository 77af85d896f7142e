from __future__ import annotations

from framework.terminal import one_line, plain


def test_text_can_not_drive_the_terminal() -> None:
    assert plain("a\x1b[31mred\x07\u202e b\tc\nd\r\x9b2J\udcff") == "a[31mred b\tc\nd2J"


def test_a_name_with_line_feeds_stays_on_its_line() -> None:
    assert one_line("a\n1. forged\thit ") == "a 1. forged hit"
