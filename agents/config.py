"""Section `[agent]` of lectern.toml. Imports nothing heavy: every command reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from agents.limits import Budget
from framework.errors import CallerError

MOST_CHOICES = 9  # one digit each


@dataclass(frozen=True, slots=True)
class QuotingConfig:
    """Section `[agent.quoting]`: how to quote.

    Attributes:
        hits: passages that are read, best first.
        sentences: most sentences to quote.
        within: a further sentence is quoted if its score lies at most this far below the best one's.
        threshold: least confidence to answer with; below it the question is declined.
        choice: weight, beside `ORDER`, of the log-probability that the chat model chooses a sentence. At 0 it is not
            asked: SmolLM2-135M takes the first sentence whatever it says, so its choice adds nothing (bench/LOG.md).
        shortlist: sentences that the chat model chooses among, where it is asked; 9 at most.
        language: of the documents, for stemming (ISO 639-1).

    Raises:
        CallerError: a shortlist that one digit can't number.
    """

    hits: int = 6
    sentences: int = 3
    within: float = 2.0
    threshold: float = 0.45
    choice: float = 0.0
    shortlist: int = 6
    language: str = "en"

    def __post_init__(self) -> None:
        if not 1 <= self.shortlist <= MOST_CHOICES:
            raise CallerError(f"shortlist must be 1 to {MOST_CHOICES}, got {self.shortlist}.", field="shortlist")


@dataclass(frozen=True, slots=True)
class ReadingConfig:
    """Section `[agent.reading]`: how passages are read one by one, and when a question is declined.

    Attributes:
        passages: that are read, best first.
        tokens: most tokens of a passage that are read at once; a longer one is read in parts.
        answers: how an answer is given: "brief" as found, "sentence" within one, "auto" as found if it has up to four
            words and is not yes or no, otherwise within a sentence.
        doubt: least log-odds of answering, by the model, at which a passage that it would decline is asked for its
            answer all the same; what that is worth is judged with the others. 0: never.
        threshold: least confidence to answer with; below it the question is declined.
        language: of the documents, for stemming (ISO 639-1).
        bias, odds, sure, rank, verbatim, support, cosine, overlap: weights of what speaks for an answer, which add up
            to its log-odds of being right; `agents.reading.speaking` tells what each one is.

    Raises:
        CallerError: fewer than one passage, fewer than 64 tokens, doubt above 0, or a threshold that is no probability.
    """

    passages: int = 6
    tokens: int = 600
    answers: Literal["auto", "sentence", "brief"] = "auto"
    doubt: float = -3.0
    threshold: float = 0.25
    language: str = "en"
    bias: float = -1.86
    odds: float = 0.26
    sure: float = 0.36
    rank: float = -0.65
    verbatim: float = 0.09
    support: float = 0.5
    cosine: float = 1.37
    overlap: float = 0.48

    def __post_init__(self) -> None:
        for name, least in (("passages", 1), ("tokens", 64)):
            if getattr(self, name) < least:
                raise CallerError(f"reading.{name} must be {least} or more, got {getattr(self, name)}.", field=name)
        if not self.doubt <= 0:
            raise CallerError(f"reading.doubt must be 0 or less, got {self.doubt}.", field="doubt")
        if not 0 <= self.threshold <= 1:
            raise CallerError(f"reading.threshold must be from 0 to 1, got {self.threshold}.", field="threshold")


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """The agent that `lectern ask`, `chat` and `serve` use where nothing else is said.

    Attributes:
        name: its name, and its model name on the server.
        instructions: what it is told about its task.
        collections: what it answers from.
        tools: names of installed tools that it may use beside its searches.
        mode: "read" answers from one passage, with the sentence that says so; "quote" answers with sentences of the
            documents; "write" lets the model write from all passages, with citations; "auto" reads where the model has
            an adapter for it, and quotes otherwise.
        model: a chat model's name; None: the one of `[models]`.
        budget: the most that one run may use.
        quoting: how sentences are chosen, and when a question is declined.
        reading: how passages are read, and when a question is declined.
    """

    name: str = "assistant"
    instructions: str = ""
    collections: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    mode: Literal["auto", "read", "quote", "write"] = "auto"
    model: str | None = None
    budget: Budget = field(default_factory=Budget)
    quoting: QuotingConfig = field(default_factory=QuotingConfig)
    reading: ReadingConfig = field(default_factory=ReadingConfig)
