"""From a run's state to the messages that a model gets, within its context."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from string import Template

from agents.citations import without_markers
from agents.state import Run
from framework.messages import Message, ToolSpec, assistant, canonical_json, system, user
from framework.models.base import ChatModel

OVERHEAD = 8  # tokens that a chat template puts around one message, at most
ANSWER_ROOM = 0.25  # share of the context that is left to the answer
FOLLOW_UP = re.compile(r"(and|or|but|so|then|also|what about|how about|why|how so)\b", re.IGNORECASE)
POINTING = re.compile(
    r"\b(it|its|they|them|their|theirs|he|him|his|she|her|hers|this|those|these|one|ones)\b", re.IGNORECASE
)
FEW_WORDS = 4
KEPT_TURNS = 100


@cache
def prompt(name: str) -> Template:
    """A template of agents/prompts."""
    return Template(files("agents").joinpath("prompts", f"{name}.md").read_text(encoding="utf-8"))


def instructions(kind: str, name: str, text: str) -> Message:
    """The system message."""
    written = prompt(kind).substitute(name=name, instructions=text)
    return system("\n".join(line.rstrip() for line in written.strip().splitlines()))


def search_query(question: str, turns: Sequence[Message]) -> tuple[str, str]:
    """What to search for, and a notice if that is not the question alone.

    A simple rule, in English: a question that opens like a continuation ("and in 2023?"), that points at something
    ("what does it cost?") in few words, or that has hardly any words, is put after the question before it.
    """
    before = next((turn.content for turn in reversed(turns) if turn.role == "user"), None)
    words = question.split()
    pointing = len(words) <= 2 * FEW_WORDS and POINTING.search(question)
    opening = len(words) <= 2 * FEW_WORDS and FOLLOW_UP.match(question.strip())
    scarce = len(words) < FEW_WORDS and len(question) < 8 * FEW_WORDS
    if before is None or not (pointing or opening or scarce):
        return question, ""
    query = f"{before.strip()} {question.strip()}"
    return query, f"The question was read as a continuation; searched for: {query}"


def remembered(run: Run, text: str, searches: Collection[str]) -> list[Message]:
    """A finished run as later turns see it: question, calls and answer, without searches.

    Passages would fill the context, and their numbers would be taken for those of the new question's.
    """
    return [user(run.question), *without_searches(run.messages, searches), assistant(without_markers(text))]


def without_searches(messages: Sequence[Message], searches: Collection[str]) -> list[Message]:
    """The calls of other tools and their results."""
    dropped = {call.id for message in messages for call in message.tool_calls if call.name in searches}
    kept = []
    for message in messages:
        calls = tuple(call for call in message.tool_calls if call.id not in dropped)
        if message.role == "tool" and message.tool_call_id in dropped:
            continue
        if message.role == "assistant" and not calls:
            continue
        kept.append(replace(message, tool_calls=calls))
    return kept


def assemble_messages(
    head: Message, turns: Sequence[Message], run: Run, model: ChatModel, tools: Sequence[ToolSpec]
) -> tuple[list[Message], int, str]:
    """The messages, their size in tokens, and a notice if earlier turns had to be left out.

    The oldest turns leave first, each whole, so that no tool's result stands without its call. The run's own messages
    are never cut: if they do not fit, the model refuses them and gives both lengths.
    """
    present = [user(run.question), *run.messages]
    fixed = sum(size_of(message, model) for message in (head, *present))
    fixed += sum(model.count_tokens(canonical_json(spec.to_openai())) for spec in tools)
    room = int(model.context_length * (1 - ANSWER_ROOM)) - fixed
    kept: list[Message] = []
    groups = by_turn(turns)
    while groups:
        size = sum(size_of(message, model) for message in groups[-1])
        if size > room:
            break
        room, fixed = room - size, fixed + size
        kept = [*groups.pop(), *kept]
    notice = f"The {len(groups)} oldest turns of this conversation did not fit and were left out." if groups else ""
    return [head, *kept, *present], fixed, notice


def by_turn(messages: Sequence[Message]) -> list[list[Message]]:
    """Messages in groups, each from a user's message to the next."""
    groups: list[list[Message]] = []
    for message in messages:
        if message.role == "user" or not groups:
            groups.append([])
        groups[-1].append(message)
    return groups


def size_of(message: Message, model: ChatModel) -> int:
    """Tokens that a message takes, its place in the chat template included."""
    calls = "".join(call.name + call.arguments for call in message.tool_calls)
    return model.count_tokens(message.content) + (model.count_tokens(calls) if calls else 0) + OVERHEAD


def bounded(turns: list[Message]) -> tuple[list[Message], str]:
    """The newest turns that a thread keeps, and a notice if older ones left."""
    groups = by_turn(turns)
    left = len(groups) - KEPT_TURNS
    if left <= 0:
        return turns, ""
    kept = [message for group in groups[left:] for message in group]
    return kept, f"A thread keeps {KEPT_TURNS} turns; the oldest {left} left."
