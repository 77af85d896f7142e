"""Reading: one passage and one question in, an answer in the passage's words out, or word that it has none.

Agents ask in this form, and rows for training are rendered in it, so that a tuned reader is asked as it was taught. The
passage comes first: questions on one passage share all that stands before them.
"""

from __future__ import annotations

from enum import StrEnum

from framework.messages import Message, system, user

UNANSWERABLE = "unanswerable"
SYSTEM = f"Answer the question from the passage, and from nothing else. If it has no answer, say: {UNANSWERABLE}"


class Style(StrEnum):
    """How long an answer is."""

    BRIEF = "Answer in few words."
    SENTENCE = "Answer in a sentence."


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
