"""Reading: one passage and one question in, an answer in the passage's words out, or word that it has none.

Agents ask in this form, and rows for training are rendered in it, so that a tuned reader is asked as it was taught. The
passage comes first: questions on one passage share all that stands before them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from framework.messages import Message, system, user

UNANSWERABLE = "unanswerable"
SYSTEM = f"Answer the question from the passage, and from nothing else. If it has no answer, say: {UNANSWERABLE}"


class Style(StrEnum):
    """How long an answer is."""

    BRIEF = "Answer in few words."
    SENTENCE = "Answer in a sentence."


@dataclass(frozen=True, slots=True)
class Asked:
    """What a reader is asked. `passage` has its heading before it."""

    passage: str
    question: str
    style: Style


_FORM = re.compile(
    r"Passage: (?P<passage>.*)\n\n(?:Earlier question: .*\nEarlier answer: .*\n)?Question: (?P<question>.*)\n(?P<style>"
    + "|".join(re.escape(style.value) for style in Style)
    + ")",
    re.DOTALL,
)


def reading_messages(
    question: str,
    passage: str,
    heading: str = "",
    style: Style = Style.BRIEF,
    before: tuple[str, str] | None = None,
) -> list[Message]:
    """The conversation that asks a reader.

    Args:
        heading: the passage's title and headings, on one line.
        before: the question and answer that this question follows in its conversation.
    """
    earlier = f"Earlier question: {before[0]}\nEarlier answer: {before[1]}\n" if before else ""
    head = f"{heading}\n" if heading else ""
    return [
        system(SYSTEM),
        user(f"Passage: {head}{passage}\n\n{earlier}Question: {question}\n{style.value}"),
    ]


def taken_apart(messages: Sequence[Message]) -> Asked | None:
    """What `reading_messages` has put together; None for another conversation."""
    if len(messages) != 2 or messages[0] != system(SYSTEM) or messages[1].role != "user":
        return None
    found = _FORM.fullmatch(messages[1].content)
    return Asked(found["passage"], found["question"], Style(found["style"])) if found else None
