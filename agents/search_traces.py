"""Conversations with a search in them, as an agent that writes has them, for rows to train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agents.finish import DECLINED
from agents.prompting import instructions
from framework.bridge import run_sync
from framework.documents import Chunk, Hit
from framework.messages import Message, ToolCall, ToolSpec, assistant, canonical_json, user
from framework.training.passages import Passage
from tools import ToolContext
from tools.builtin.retrieve import RetrieveTool


@dataclass(frozen=True, slots=True)
class _Fixed:
    """A search that finds what it was given."""

    hits: tuple[Hit, ...]
    notices: tuple[str, ...] = ()

    async def search(self, query: str, *, k: int | None = None) -> _Fixed:
        return self


def search_trace(
    question: str, passages: Sequence[Passage], right: int | None, answer: str
) -> tuple[tuple[Message, ...], tuple[ToolSpec, ...]]:
    """Question, search call, numbered passages, and the answer that cites the right one, or none."""
    tool = RetrieveTool(_Fixed(tuple(_hit(passage) for passage in passages)))
    found = run_sync(tool.call({"query": question}, ToolContext()))
    call = ToolCall("call_1", tool.spec.name, canonical_json({"query": question}))
    messages = (
        instructions("write", "assistant", ""),
        user(question),
        Message("assistant", tool_calls=(call,)),
        Message("tool", found.content, tool_call_id=call.id, name=call.name),
        assistant(DECLINED if right is None else f"{answer} [{right + 1}]"),
    )
    return messages, (tool.spec,)


def _hit(passage: Passage) -> Hit:
    title, *path = passage.heading.split(" > ")
    end = passage.start + len(passage.text)
    chunk = Chunk(passage.document, passage.text, passage.start, end, 0, heading_path=tuple(path))
    return Hit(passage.key, chunk, "", 0.0, title=title, source=passage.document)
