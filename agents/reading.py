"""Reading: each found passage is asked for itself, the best answer is taken, or none.

A small model reads one passage well and several badly, and passages read side by side share one batch. The model's own
doubt decides, with what speaks for the sentence that the answer stands in (`evidence`): an answer counts by how much
more probable the model finds it to answer than to decline (see `framework.prompts.reading`), by how well its passage
was found, and by how near its sentence is to the question. The weights are fitted by `bench/reading_tune.py`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agents.citations import occurrences, sentence_with, without_markers, word_list
from agents.config import ReadingConfig
from agents.evidence import FEATURES, Candidate, features, repeats
from agents.sentences import split_sentences
from agents.turn import usage_of
from framework.documents import Hit
from framework.messages import Completion, Message, Usage
from framework.models.base import ChatModel, Embedder, GenerationParams, Regex, complete
from framework.prompts.reading import UNANSWERABLE, Style, reading_messages
from framework.retrieval.bm25 import Analyzer

LEAST = -12.0  # log-probability of what a model did not name among its first choices
MOST_TOKENS = {Style.BRIEF: 40, Style.SENTENCE: 96}
HELD = 0.6  # share of an answer's words that the sentence cited for it has, or its headings
OVERHEAD = 16  # tokens that a chat template puts around the two messages, at most
LEAST_ROOM = 32  # tokens of a passage; where there is no room for these, the model refuses the prompt and says why
YES_NO = ("yes", "no")
FEW = 4  # words of an answer that needs no sentence: a name, a number, a date
# Nothing that begins as declining does; other words in "un" are barred too, or half of it would be written anyway.
ANSWERING = Regex(rf"([^\s{UNANSWERABLE[0]}]|{UNANSWERABLE[0]}[^{UNANSWERABLE[1]}])[^\n]*")
# What speaks for an answer; the last two are of the sentence that it stands in.
SPEAKING = ("bias", "odds", "sure", "rank", "verbatim", "support", "cosine", "overlap")
_COSINE, _OVERLAP = FEATURES.index("cosine"), FEATURES.index("overlap_heading")
_ARTICLES = frozenset(("a", "an", "the"))


@dataclass(frozen=True, slots=True)
class Part:
    """What is read at once: a passage, or a part of one that is too long, as a span of its text."""

    hit: Hit
    rank: int
    start: int
    end: int

    @property
    def text(self) -> str:
        return self.hit.chunk.text[self.start : self.end]


@dataclass(frozen=True, slots=True)
class Read:
    """What one part of a passage says to the question.

    Attributes:
        text: the answer; empty where the passage has none.
        odds: log-odds that the model answers rather than declines.
        sure: mean log-probability of the answer's tokens.
        usage: tokens that it took.
    """

    question: str
    part: Part
    text: str
    odds: float
    sure: float
    usage: Usage

    @property
    def verbatim(self) -> bool:
        """The answer stands in the passage as it is."""
        return bool(occurrences(self.text, self.part.text, 0, len(self.part.text)))

    @property
    def span(self) -> tuple[int, int]:
        """Of the sentence, in the passage's text, that the answer stands in; or of the one that is nearest to it."""
        answer = "" if self.key in YES_NO else self.text
        return sentence_with(answer, self.question, self.part.hit.chunk.text, (self.part.start, self.part.end))

    @property
    def held(self) -> bool:
        """Its numbers and most of its words stand in the sentence that is cited for it, or in the headings above."""
        if self.key in YES_NO:
            return True
        start, end = self.span
        there = set(word_list(f"{heading(self.part.hit)} {self.part.hit.chunk.text[start:end]}"))
        said = [word for word in word_list(self.text) if word not in _ARTICLES]
        numbers = all(word in there for word in said if any(map(str.isdigit, word)))
        return bool(said) and numbers and sum(word in there for word in said) >= HELD * len(said)

    @property
    def stands_alone(self) -> bool:
        """It is a name, a number or the like, which needs no sentence around it."""
        return self.key not in YES_NO and len(word_list(self.text)) <= FEW

    @property
    def key(self) -> str:
        """Equal for answers that say the same in the same words, whatever their case, marks and articles."""
        return " ".join(word for word in word_list(self.text) if word not in _ARTICLES)


@dataclass(frozen=True, slots=True)
class Reading:
    """The answers that are good enough, best first.

    Attributes:
        confidence: estimated probability that the best answer of all, good enough or not, is right, 0 to 1.
    """

    reads: tuple[Read, ...]
    confidence: float
    usage: Usage = Usage()  # noqa: RUF009  frozen

    @property
    def declined(self) -> bool:
        """No passage has an answer that is good enough."""
        return not self.reads


def parts(
    question: str,
    hits: Sequence[Hit],
    model: ChatModel,
    config: ReadingConfig = ReadingConfig(),  # noqa: B008  frozen
    before: tuple[str, str] | None = None,
) -> list[Part]:
    """What is to be read: the first `config.passages` hits, those that are too long in parts."""
    frame = reading_messages(question, "", "", Style.SENTENCE, before)
    room = model.context_length - prompt_size(frame, model) - MOST_TOKENS[Style.SENTENCE]
    found = []
    for rank, hit in enumerate(hits[: config.passages], start=1):
        most = max(LEAST_ROOM, min(config.tokens, room - model.count_tokens(heading(hit))))
        found += [Part(hit, rank, start, end) for start, end in _cut(hit.chunk.text, most, model)]
    return found


def part_size(
    question: str,
    part: Part,
    model: ChatModel,
    before: tuple[str, str] | None = None,
    style: Style = Style.BRIEF,
) -> int:
    """Tokens that reading a part once takes at most."""
    messages = reading_messages(question, part.text, heading(part.hit), style, before)
    return prompt_size(messages, model) + MOST_TOKENS[style]


def prompt_size(messages: Sequence[Message], model: ChatModel) -> int:
    return sum(model.count_tokens(message.content) for message in messages) + OVERHEAD


def _cut(text: str, most: int, model: ChatModel) -> list[tuple[int, int]]:
    """The text's span; of a text of more than `most` tokens, spans of as many sentences as fit."""
    whole = model.count_tokens(text)
    if whole <= most:
        return [(0, len(text))]
    longest = max(1, len(text) * most // whole)  # characters, where a sentence alone is too long
    ends = [sentence.end for sentence in split_sentences(text)] or [len(text)]
    spans: list[tuple[int, int]] = []
    start = last = 0
    for end in [*ends[:-1], len(text)]:
        if last > start and model.count_tokens(text[start:end]) > most:
            spans.append((start, last))
            start = last
        while model.count_tokens(text[start:end]) > most and end - start > longest // 2:
            middle = start + min(longest, (end - start + 1) // 2)
            spans.append((start, middle))
            start = middle
        last = end
    return [*spans, (start, len(text))] if start < len(text) else spans


async def read(
    question: str,
    found: Sequence[Part],
    model: ChatModel,
    embedder: Embedder,
    config: ReadingConfig = ReadingConfig(),  # noqa: B008  frozen
    before: tuple[str, str] | None = None,
    most: int = MOST_TOKENS[Style.BRIEF],
) -> Reading:
    """Ask each part.

    Args:
        embedder: tells how near the answers' sentences are to the question.
        before: the question and answer that this question follows.
        most: tokens of an answer.
    """
    tasks = [asyncio.ensure_future(read_part(question, part, model, before, config.doubt, most)) for part in found]
    try:
        reads = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()  # the others, where one has failed
    asked = f"{before[0]} {question}" if before else question
    rows = await asyncio.to_thread(speaking, asked, reads, embedder, config.language)
    return judge(reads, rows, config)


def speaking(question: str, reads: Sequence[Read], embedder: Embedder, language: str) -> NDArray[np.float64]:
    """For each answer what speaks for it: array of shape (answers, len(SPEAKING)).

    - odds, sure: see `Read`; verbatim: whether it stands in the passage as it is
    - rank: logarithm of the passage's rank; support: of one more than the other passages that say the same
    - cosine: of the question and the sentence that the answer stands in; overlap: share of the question's words, by
      their weight, that this sentence and its headings hold
    """
    answers = [each for each in reads if each.text]
    if not answers:
        return np.zeros((0, len(SPEAKING)))
    near = features(question, [_candidate(each) for each in answers], embedder, Analyzer(language))
    table = [
        (
            1.0,
            a.odds,
            a.sure,
            math.log(a.part.rank),
            a.verbatim,
            math.log1p(agreeing(a, answers)),
            row[_COSINE],
            row[_OVERLAP],
        )
        for a, row in zip(answers, near, strict=True)
    ]
    return np.array(table, dtype=np.float64)


def _candidate(each: Read) -> Candidate:
    chunk, (start, end) = each.part.hit.chunk, each.span
    return Candidate(each.part.hit, each.part.rank - 1, chunk.start + start, chunk.start + end, chunk.text[start:end])


def judge(reads: Sequence[Read], rows: NDArray[np.float64], config: ReadingConfig) -> Reading:
    """The answers in order, without those that are not good enough; `rows` are what `speaking` gives."""
    usage = sum((each.usage for each in reads), Usage())
    answers = [each for each in reads if each.text]
    if not answers:
        return Reading((), 0.0, usage)
    scores = rows @ np.array([getattr(config, name) for name in SPEAKING])
    sure = 1 / (1 + np.exp(-np.clip(scores, -700.0, 700.0)))
    order = np.argsort(-scores, kind="stable")
    return Reading(tuple(answers[i] for i in order if sure[i] >= config.threshold), float(sure[order[0]]), usage)


def agreeing(one: Read, answers: Sequence[Read]) -> int:
    """Other passages that give the same answer."""
    return len({each.part.rank for each in answers if each.key == one.key} - {one.part.rank})


async def read_part(
    question: str,
    part: Part,
    model: ChatModel,
    before: tuple[str, str] | None = None,
    doubt: float = 0.0,
    most: int = MOST_TOKENS[Style.BRIEF],
) -> Read:
    """One part's answer in few words; none where it is not held by the part, or was cut.

    Where the model declines but is in doubt, it is asked for what it would have answered: whether that is good enough
    is decided when all parts are read.

    Args:
        doubt: least log-odds of answering at which that is asked; 0: never.
        most: tokens of the answer.
    """
    messages = reading_messages(question, part.text, heading(part.hit), Style.BRIEF, before)
    params = GenerationParams(max_tokens=min(most, MOST_TOKENS[Style.BRIEF]), logprobs=20)
    answer = await complete(model, messages, params=params)
    usage, declined = usage_of(answer, messages, model), _declines(answer)
    odds = _odds(answer, declined)
    if declined and odds >= doubt and doubt < 0:
        answer = await complete(model, messages, constraint=ANSWERING, params=params)
        usage, declined = usage + usage_of(answer, messages, model), _declines(answer)
    chosen = [token.logprob for token in answer.logprobs]
    sure = sum(chosen) / len(chosen) if chosen else 0.0
    # A passage's own [7], which an answer has copied, would be taken for a citation.
    text = "" if declined or answer.finish_reason == "length" else without_markers(answer.message.content).strip()
    made = Read(question, part, text, odds, sure, usage)
    return made if text and made.held and not _only_asks(made) else replace(made, text="")


def _declines(answer: Completion) -> bool:
    text = answer.message.content.strip()
    return not text or text.casefold().startswith(UNANSWERABLE)


def _only_asks(each: Read) -> bool:
    """The question itself stands around the answer: an example of asking it answers nothing."""
    start, end = each.span
    return repeats(each.question, each.part.hit.chunk.text[start:end])


async def in_a_sentence(
    question: str,
    best: Read,
    model: ChatModel,
    before: tuple[str, str] | None = None,
    most: int = MOST_TOKENS[Style.SENTENCE],
) -> tuple[str, Usage]:
    """The same answer as a sentence; the short one where the sentence leaves it out, or was cut after `most` tokens."""
    messages = reading_messages(question, best.part.text, heading(best.part.hit), Style.SENTENCE, before)
    answer = await complete(model, messages, params=GenerationParams(max_tokens=min(most, MOST_TOKENS[Style.SENTENCE])))
    text = " ".join(without_markers(answer.message.content).split())
    said, short = word_list(text), word_list(best.text)
    whole = answer.finish_reason == "stop" and not _declines(answer)
    same = said[:1] == [best.key] if best.key in YES_NO else f" {' '.join(short)} " in f" {' '.join(said)} "
    alone = best.text.capitalize() if best.key in YES_NO else best.text
    return text if whole and same else alone, usage_of(answer, messages, model)


def heading(hit: Hit) -> str:
    """Title and headings of a passage, on one line, each once."""
    return " > ".join(dict.fromkeys(part for part in (hit.title, *hit.chunk.heading_path) if part))


def _odds(answer: Completion, declined: bool) -> float:
    """Log-odds of answering, from the first token; a server that reports no log-probabilities gives its choice."""
    if not answer.logprobs:
        return LEAST if declined else -LEAST
    first = answer.logprobs[0]
    known = dict(first.top) or {first.token: first.logprob}
    declining = [
        logprob for token, logprob in known.items() if token.strip() and UNANSWERABLE.startswith(token.strip())
    ]
    share = min(sum(math.exp(logprob) for logprob in declining), 1.0)
    share = min(max(share, math.exp(LEAST)), 1 - math.exp(LEAST))
    return math.log((1 - share) / share)
