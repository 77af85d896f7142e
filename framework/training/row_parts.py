"""The parts of a row: what is asked, what is answered, and what is read for it.

Rows on one passage have most of their text in common, so two rows are compared part by part and not as a whole.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from framework.messages import Message
from framework.training.rows import ChatRow, PairRow, Row

DIGIT = re.compile(r"\d")
SHORT = 60  # words; a user's message up to this is a question as it stands
QUESTION = re.compile(r"^(?:question|query)\s*:[ \t]*(\S.*)$", re.IGNORECASE | re.MULTILINE)
# Scripts that put no spaces between words: each character counts as a word.
WORD = re.compile(
    r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W_\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+"
)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a row is made of, without tool definitions. System messages stand apart: they are the same in many rows."""

    asked: tuple[str, ...]
    answered: tuple[str, ...]
    read: tuple[str, ...]
    told: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """All but what is told."""
        return (*self.asked, *self.answered, *self.read)


def parts_of(row: Row) -> Parts:
    """The parts of any row; a user's message that holds a passage and a question is taken apart."""
    if isinstance(row, PairRow):
        return Parts((row.query,), (), (row.positive, *row.negatives))
    messages = row.messages if isinstance(row, ChatRow) else (*row.prompt, row.chosen, row.rejected)
    asked, answered, read, told = [], [], [], []
    for message in messages:
        if message.role == "user":
            question, rest = take_apart(message.content)
            asked.append(question)
            read += [rest] if rest else []
        elif message.role == "assistant":
            answered += _said(message)
        elif message.role == "tool":
            read.append(message.content)
        else:
            told.append(message.content)
    return Parts(tuple(asked), tuple(answered), tuple(read), tuple(told))


def take_apart(content: str) -> tuple[str, str]:
    """A user's message as its question and the rest.

    The question is the last line that begins with "Question:". Without one a short message is all question, and of a
    long one it is the last paragraph with a question mark, or else the last paragraph.
    """
    marked = list(QUESTION.finditer(content))
    if marked:
        last = marked[-1]
        return last[1].strip(), f"{content[: last.start()]}\n{content[last.end() :]}".strip()
    if len(content.split()) <= SHORT:
        return content.strip(), ""
    paragraphs = [part for part in re.split(r"\n\s*\n", content) if part.strip()]
    place = max((n for n, part in enumerate(paragraphs) if "?" in part), default=len(paragraphs) - 1)
    return paragraphs[place].strip(), "\n\n".join(paragraphs[:place] + paragraphs[place + 1 :])


@lru_cache(maxsize=4096)  # rows on one passage follow each other
def words(text: str) -> tuple[str, ...]:
    """The words of a text as they are compared: without case, accents' encoding and punctuation."""
    return tuple(WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def normal(text: str) -> str:
    """Texts that differ in case, spaces or punctuation alone have the same normal form."""
    return " ".join(words(text))


def numbers(found: Sequence[str]) -> tuple[str, ...]:
    """The words with digits: two questions that differ in these are two questions, however alike they look."""
    return tuple(sorted(filter(DIGIT.search, found)))


def _said(message: Message) -> list[str]:
    return [text for text in (message.content, *(f"{c.name} {c.arguments}" for c in message.tool_calls)) if text]
