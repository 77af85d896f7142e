"""Preferences by rule: a right answer beside one that is wrong the way that small models are wrong.

Reading: another span of the same type from the passage, an answer to what the passage does not answer, a refusal to
answer what it does. Calling: see `contrast_calls`. The same rows and seed give the same pairs.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from framework.messages import Message, assistant
from framework.prompts.reading import UNANSWERABLE, Asked, Style, taken_apart
from framework.training.contrast_calls import wrong_call
from framework.training.passages import SENTENCE
from framework.training.row_parts import words
from framework.training.rows import ChatRow, PreferenceRow, Provenance

DECLINES: Final = 0.25  # share of answerable questions whose worse answer is to decline
LONGEST: Final = 40  # words of a sentence that is given as a wrong answer
MONTHS: Final = "January|February|March|April|May|June|July|August|September|October|November|December"
NUMBER = re.compile(
    rf"(?<![\w.,])(?:\d{{1,2}} (?:{MONTHS})(?: \d{{4}})?|(?:{MONTHS}) \d{{1,2}}(?:, \d{{4}})?"
    r"|(?:[$€£]\s?)?\d[\d.,:]*(?:\s?%|\s(?!(?:and|are|all|was|were|the|for|from|per|with|has|had|but|who)\b)[a-z]{3,})?)(?!\w)"
)
# One word only within a sentence: at its start any word has a capital.
NAME = re.compile(
    rf"(?!(?:{MONTHS})\b)(?:(?<=[a-z0-9,;:] )|(?=[\w'’-]+ [A-Z]))"
    r"[A-Z][\w'’-]+(?: (?:of |the |de |von |van |and )?[A-Z][\w'’-]+)*"
)
CLAUSE = re.compile(r"[^,.;:()\n]+")
TRUTH: Final = {"yes": "no", "no": "yes"}
NUMBER_WORDS = re.compile(
    r"\b(when|how (?!do|does|did|is|are|was|were|can|could|may|to|should|come)[a-z]+|what (year|date|day|time))\b", re.I
)
NAME_WORDS = re.compile(r"\b(who|whom|whose|where|which|what (city|country|name|company))\b", re.I)


def preference_rows(rows: Sequence[ChatRow], seed: int = 0) -> list[PreferenceRow]:
    """A pair for each answer that a rule can make a worse one of; other rows are passed over."""
    others: dict[str, list[str]] = {}
    for row in rows:
        asked = taken_apart(row.messages[:-1])
        if asked is not None and asked.style is Style.BRIEF and row.messages[-1].content != UNANSWERABLE:
            others.setdefault(row.document, []).append(row.messages[-1].content)
    return [pair for place, row in enumerate(rows) for pair in _pairs(row, others, f"{seed} {place} {row.document}")]


def _pairs(row: ChatRow, others: Mapping[str, Sequence[str]], seed: str) -> Iterator[PreferenceRow]:
    dice = random.Random(seed)
    asked = taken_apart(row.messages[:-1])
    if asked is not None:
        wrong = wrong_answer(asked, row.messages[-1].content, others.get(row.document, ()), dice)
        if wrong is not None:
            yield _row(row, len(row.messages) - 1, assistant(wrong[0]), wrong[1])
        return
    for place, message in enumerate(row.messages):
        if message.role == "assistant" and row.tools:
            call = wrong_call(row.messages[: place + 1], row.tools, dice)
            if call is not None:
                yield _row(row, place, *call)


def _row(row: ChatRow, place: int, rejected: Message, rule: str) -> PreferenceRow:
    known = row.provenance
    provenance = Provenance(known.source, known.licence, known.synthetic, {**known.details, "rejected": rule})
    return PreferenceRow(row.messages[:place], row.messages[place], rejected, row.document, provenance, row.tools)


def wrong_answer(asked: Asked, answer: str, others: Sequence[str], dice: random.Random) -> tuple[str, str] | None:
    """A worse answer and the rule that it was made by; None where no rule finds one.

    Args:
        others: the right answers to other questions on the same passage.
    """
    brief = asked.style is Style.BRIEF
    if answer.strip().rstrip(".").casefold() == UNANSWERABLE:
        made = _guess(asked, others, dice) if brief else _other_sentence(asked, answer, dice)
        return (made, "answers what the passage does not answer") if made else None
    if dice.random() < DECLINES:
        return UNANSWERABLE, "declines what the passage answers"
    made = wrong_span(asked, answer, others, dice) if brief else _wrong_sentence(asked, answer, others, dice)
    return (made, "another span of the same type") if made else (UNANSWERABLE, "declines what the passage answers")


def kind_of_answer(answer: str) -> str:
    """ "truth", "number", "name" or "phrase"."""
    if answer.strip().rstrip(".").casefold() in TRUTH:
        return "truth"
    if re.search(r"\d", answer):
        return "number"
    first_letters = [word[0] for word in answer.split() if len(word) > 3]
    return "name" if first_letters and all(letter.isupper() for letter in first_letters) else "phrase"


def spans(passage: str, kind: str, like: str = "") -> list[str]:
    """Spans of a passage of one type; phrases about as long as `like`."""
    if kind in ("number", "name"):
        found = [match[0].strip().rstrip(".,:") for match in (NUMBER if kind == "number" else NAME).finditer(passage)]
        if kind == "number" and like and not re.search("[a-z]", like):
            found = [re.sub(r"^(\S*\d\S*) [a-z]+$", r"\1", span) for span in found]
        return list(dict.fromkeys(found))
    size = len(like.split())
    clauses = [" ".join(match[0].split()) for match in CLAUSE.finditer(passage)]
    return list(dict.fromkeys(c for c in clauses if size / 2 <= len(c.split()) <= 2 * size + 2))


def wrong_span(asked: Asked, answer: str, others: Sequence[str], dice: random.Random) -> str | None:
    """Another answer of the answer's type: to another question on the passage, or just standing in it."""
    kind = kind_of_answer(answer)
    if kind == "truth":
        return TRUTH[answer.strip().rstrip(".").casefold()]
    candidates = [other for other in others if kind_of_answer(other) == kind] + spans(asked.passage, kind, answer)
    return _one_of(candidates, [answer, asked.question], dice)


def _guess(asked: Asked, others: Sequence[str], dice: random.Random) -> str | None:
    """What looks like an answer to a question that has none."""
    kinds = ["number"] if NUMBER_WORDS.search(asked.question) else ["name"] if NAME_WORDS.search(asked.question) else []
    for kind in (*kinds, "name", "number", "phrase"):
        candidates = [other for other in others if kind_of_answer(other) == kind]
        found = _one_of([*candidates, *spans(asked.passage, kind, "five words or so long")], [asked.question], dice)
        if found:
            return found
    return None


def _wrong_sentence(asked: Asked, answer: str, others: Sequence[str], dice: random.Random) -> str | None:
    """The sentence with one number or name exchanged; another sentence of the passage where it has none."""
    for kind in ("number", "name"):
        mine = [span for span in spans(answer, kind) if span.casefold() not in asked.question.casefold()]
        candidates = [other for other in others if kind_of_answer(other) == kind] + spans(asked.passage, kind)
        for span in dice.sample(mine, len(mine)):
            bare = [re.sub(r" [a-z]+$", "", c) if span[-1].isdigit() else c for c in candidates]
            found = _one_of([c for c in bare if c not in answer], [span, asked.question], dice)
            if found:
                return answer.replace(span, found, 1)
    return _other_sentence(asked, answer, dice)


def _other_sentence(asked: Asked, answer: str, dice: random.Random) -> str | None:
    found = [" ".join(match[0].split()) for match in SENTENCE.finditer(asked.passage)]
    mine = set(words(answer))
    far = [s for s in found if 4 <= len(s.split()) <= LONGEST and len(mine & set(words(s))) <= len(mine) / 2]
    return dice.choice(far) if far else None


def _one_of(candidates: Sequence[str], excluded: Sequence[str], dice: random.Random) -> str | None:
    """One that says something else than each excluded text: neither has all the words of the other."""
    taken = [set(words(text)) for text in excluded]
    fresh = [
        candidate
        for candidate in dict.fromkeys(candidates)
        if (own := set(words(candidate))) and not any(own <= other or (other and other <= own) for other in taken)
    ]
    return dice.choice(fresh) if fresh else None
