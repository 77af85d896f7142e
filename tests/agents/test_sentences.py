from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.sentences import split_sentences


def units(text: str) -> list[str]:
    return [text[s.start : s.end] for s in split_sentences(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("It costs $3.50 or 1.234,56 in all. It is dear.", ["It costs $3.50 or 1.234,56 in all.", "It is dear."]),
        ("Dr. Smith met Mr. J. R. Tolkien, Jr. at home.", ["Dr. Smith met Mr. J. R. Tolkien, Jr. at home."]),
        ("See Fig. 3 and No. 5, e.g. Table 2.", ["See Fig. 3 and No. 5, e.g. Table 2."]),
        ("He joined the U.S. Army. He left.", ["He joined the U.S. Army.", "He left."]),
        ("It closed at 5 p.m. The end came.", ["It closed at 5 p.m.", "The end came."]),
        ('"Go!" she said. "Why?" He went.', ['"Go!" she said.', '"Why?"', "He went."]),
        ("Wait... what? Yes.", ["Wait... what?", "Yes."]),
        ("Use version 2.1.3. Then e.g. this works.", ["Use version 2.1.3.", "Then e.g. this works."]),
        ("Read config.toml. It is short.", ["Read config.toml.", "It is short."]),
        ("In law , it refers . The End .", ["In law , it refers .", "The End ."]),
        ("A line\nthat is wrapped. Next\none.", ["A line\nthat is wrapped.", "Next\none."]),
        ("One paragraph\n\nAnother paragraph", ["One paragraph", "Another paragraph"]),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text: str, expected: list[str]) -> None:
    assert units(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("中文句子。第二句！「第三句。」后面", ["中文句子。", "第二句！", "「第三句。」", "后面"]),
        ("यह एक वाक्य है। दूसरा वाक्य।", ["यह एक वाक्य है।", "दूसरा वाक्य।"]),
        ("هل هذا سؤال؟ نعم هو كذلك.", ["هل هذا سؤال؟", "نعم هو كذلك."]),
    ],
)
def test_other_scripts_end_their_own_way(text: str, expected: list[str]) -> None:
    assert units(text) == expected


def test_list_items_are_units_without_their_markers() -> None:
    text = "Steps:\n- first thing\n* second, which\n  goes on\n1. third. With two.\n2) fourth"
    assert units(text) == ["Steps:", "first thing", "second, which\n  goes on", "third.", "With two.", "fourth"]


def test_table_rows_are_units_and_their_ruler_is_none() -> None:
    assert units("| name | port |\n|------|:----:|\n| web. Main | 80 |") == ["| name | port |", "| web. Main | 80 |"]


def test_lines_of_code_are_units_and_fences_are_none() -> None:
    text = "Run this. Then wait.\n```sh\npip install x. Y\n# a comment\n\nls\n```\nDone. Now go."
    assert units(text) == [
        "Run this.",
        "Then wait.",
        "pip install x. Y",
        "# a comment",
        "ls",
        "Done.",
        "Now go.",
    ]


def test_rows_whose_cells_are_parted_by_bars_alone_are_units() -> None:
    assert units("what | how\nport. Main | 8000\n\nProse here. And there.") == [
        "what | how",
        "port. Main | 8000",
        "Prose here.",
        "And there.",
    ]


@pytest.mark.parametrize(
    "text",
    ["a = 1. B\nb = 2\n```\nDone. Now go.", "a = 1. B\nb = 2\n```\n\nDone. Now go.\n\n```sh\nls\n```\n"],
    ids=["a closing fence alone", "an opening fence with its language after it"],
)
def test_a_text_cut_out_of_a_block_of_code_begins_with_code(text: str) -> None:
    assert units(text)[:4] == ["a = 1. B", "b = 2", "Done.", "Now go."]


def test_a_text_cut_off_in_a_block_of_code_ends_with_code() -> None:
    assert units("Do this. Then that.\n\n```\na = 1. B\nb = 2") == ["Do this.", "Then that.", "a = 1. B", "b = 2"]


def test_headings_and_rules_are_boundaries_only() -> None:
    assert units("# Title. Here\nBody one\n---\nBody two\n## Next\n\nBody three") == [
        "Body one",
        "Body two",
        "Body three",
    ]


def test_what_has_no_letter_or_digit_is_no_unit() -> None:
    assert units("... !!! \n\n***\n\n - \n") == []
    assert units("") == []


@given(st.text(alphabet="ab A.B!?。\n-|`#1 >", max_size=120))
def test_units_are_in_order_apart_and_trimmed(text: str) -> None:
    found = split_sentences(text)
    for left, right in pairwise(found):
        assert left.end <= right.start
    for sentence in found:
        unit = text[sentence.start : sentence.end]
        assert unit
        assert unit == unit.strip()


@given(st.lists(st.sampled_from(["Tea is hot.", "Is it?", "Dr. No left!", "3.5 is more."]), min_size=1, max_size=8))
def test_sentences_put_together_come_apart_again(sentences: list[str]) -> None:
    assert units(" ".join(sentences)) == sentences


@given(st.text(alphabet='ab Z.B!?。7,\n"', max_size=120))
def test_no_letter_of_plain_text_is_lost(text: str) -> None:
    kept = {position for s in split_sentences(text) for position in range(s.start, s.end)}
    assert all(position in kept for position, c in enumerate(text) if c.isalnum())
