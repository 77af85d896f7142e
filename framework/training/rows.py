"""What is learned from: a conversation, a preference between two answers, a query with its passage.

Every row names the document that it was made from, so that a split can keep a document's rows together, and its
provenance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from framework.documents import Scalar
from framework.messages import Message, ToolSpec, assistant

Kind: TypeAlias = Literal["chat", "preference", "pair"]
KINDS: tuple[Kind, ...] = ("chat", "preference", "pair")
NO_LICENCE = "NOASSERTION"  # SPDX's word for a licence that nobody stated


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a row comes from: `licence` is an SPDX expression; `details` hold what else is known (model, run ...)."""

    source: str
    licence: str = NO_LICENCE
    synthetic: bool = False
    details: Mapping[str, Scalar] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        return {"source": self.source, "licence": self.licence, "synthetic": self.synthetic, **self.details}


@dataclass(frozen=True, slots=True)
class ChatRow:
    """A conversation whose assistant turns are learned; the last message is one of them."""

    messages: tuple[Message, ...]
    document: str
    provenance: Provenance
    tools: tuple[ToolSpec, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"messages": [message.to_openai() for message in self.messages], **_rest(self, self.tools)}


@dataclass(frozen=True, slots=True)
class PreferenceRow:
    """A conversation that ends before the assistant's turn, a better turn and a worse one."""

    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message
    document: str
    provenance: Provenance
    tools: tuple[ToolSpec, ...] = ()

    def to_json(self) -> dict[str, Any]:
        prompt = [message.to_openai() for message in self.prompt]
        answers = {"chosen": _answer_json(self.chosen), "rejected": _answer_json(self.rejected)}
        return {"prompt": prompt, **answers, **_rest(self, self.tools)}


@dataclass(frozen=True, slots=True)
class PairRow:
    """A query, a passage that answers it and passages that do not."""

    query: str
    positive: str
    document: str
    provenance: Provenance
    negatives: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        negatives = {"negatives": list(self.negatives)} if self.negatives else {}
        return {"query": self.query, "positive": self.positive, **negatives, **_rest(self)}


Row: TypeAlias = ChatRow | PreferenceRow | PairRow


def kind_of(row: Row) -> Kind:
    return "chat" if isinstance(row, ChatRow) else "preference" if isinstance(row, PreferenceRow) else "pair"


def _rest(row: Row, tools: Sequence[ToolSpec] = ()) -> dict[str, Any]:
    offered = {"tools": [tool.to_openai() for tool in tools]} if tools else {}
    return {**offered, "document": row.document, "provenance": row.provenance.to_json()}


def _answer_json(message: Message) -> Any:
    return message.content if message == assistant(message.content) else message.to_openai()
