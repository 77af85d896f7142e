"""A chat model by itself: as a reader that is given the right passage, or as a caller of tools."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from evals.calls import Called
from evals.dataset import Dataset
from evals.sample import Output, Sample
from framework.config import Settings
from framework.documents import Document
from framework.errors import CallerError, ConfigError
from framework.messages import system, user
from framework.models.base import ChatModel, GenerationParams, Role, ToolChoice, complete, in_role


@dataclass(frozen=True, slots=True)
class ReaderConfig:
    """Section `[target]` with `kind = "reader"`: a model reads the passage that has the answer.

    Attributes:
        model: its name; empty: the configured one.
        trained: read with the adapter that the model has for it, where it has one.
        style: "brief" or "sentence".
        max_tokens: of an answer.
    """

    kind: Literal["reader"]
    model: str = ""
    trained: bool = True
    style: Literal["brief", "sentence"] = "brief"
    max_tokens: int = 96


@dataclass(frozen=True, slots=True)
class CallsConfig:
    """Section `[target]` with `kind = "calls"`: a model is given a request and tools, and calls or does not.

    Attributes:
        model: its name; empty: the configured one.
        trained: call with the adapter that the model has for it, where it has one.
        choice: "auto": the model may call; "required": it must.
        instructions: the system message; empty: none but the tools.
        max_tokens: of an answer.
    """

    kind: Literal["calls"]
    model: str = ""
    trained: bool = True
    choice: Literal["auto", "required"] = "auto"
    instructions: str = ""
    max_tokens: int = 512


class ReaderTarget:
    """Asks a model about the first relevant document of each sample, whole."""

    def __init__(
        self, model: ChatModel, documents: Mapping[str, Document], config: ReaderConfig, about: Mapping[str, Any]
    ) -> None:
        self.model = model
        self.documents = documents
        self.config = config
        self.about = {**about, **asdict(config), "model": model.name}

    async def answer(self, sample: Sample) -> Output:
        from framework.prompts.reading import UNANSWERABLE, Style, reading_messages

        gold = next((name for name, grade in sample.relevant.items() if grade > 0), None)
        if gold is None or gold not in self.documents:
            raise CallerError(f"The question {sample.id!r} has no passage among the dataset's.", field="dataset.gold")
        document, style = self.documents[gold], Style[self.config.style.upper()]
        messages = reading_messages(sample.question, document.text, document.title, style)
        done = await complete(self.model, messages, params=GenerationParams(max_tokens=self.config.max_tokens))
        text = done.message.content.strip()
        declined = text.casefold().startswith(UNANSWERABLE)
        return Output((gold,), text, declined=declined, steps=1, tokens=done.usage.total_tokens)


class CallsTarget:
    """Gives a model the sample's tools; a sample without a call is declined."""

    def __init__(self, model: ChatModel, config: CallsConfig, about: Mapping[str, Any]) -> None:
        self.model = model
        self.config = config
        self.about = {**about, **asdict(config), "model": model.name}

    async def answer(self, sample: Sample) -> Output:
        head = [system(self.config.instructions)] if self.config.instructions else []
        done = await complete(
            self.model,
            [*head, *(sample.messages or (user(sample.question),))],
            tools=sample.tools,
            tool_choice=ToolChoice(self.config.choice),
            params=GenerationParams(max_tokens=self.config.max_tokens),
        )
        calls = tuple(Called(call.name, call.arguments) for call in done.message.tool_calls)
        text, spent = done.message.content.strip(), done.usage.total_tokens
        return Output(text=text, declined=not calls, steps=1, tokens=spent, calls=calls)


@asynccontextmanager
async def open_reader(
    dataset: Dataset, settings: Settings, config: ReaderConfig, about: Mapping[str, Any]
) -> AsyncIterator[ReaderTarget]:
    """A reader with the dataset's passages; `about` tells its adapter from others.

    Raises: ConfigError: the dataset has no passages, or a folder of them.
    """
    if dataset.passages is None or dataset.passages.folders:
        raise ConfigError("A reader is given passages of JSONL files.", field="dataset.passages")
    documents = {document.id: document for document in dataset.passages.documents()}
    async with _model(config.model, "reader" if config.trained else None, settings) as model:
        yield ReaderTarget(model, documents, config, about)


@asynccontextmanager
async def open_caller(settings: Settings, config: CallsConfig, about: Mapping[str, Any]) -> AsyncIterator[CallsTarget]:
    """A caller; `about` tells its adapter from others."""
    async with _model(config.model, "caller" if config.trained else None, settings) as model:
        yield CallsTarget(model, config, about)


@asynccontextmanager
async def _model(name: str, role: Role | None, settings: Settings) -> AsyncIterator[ChatModel]:
    from framework.models.chat import load_chat
    from framework.models.config import ModelsConfig

    models = settings.section("models", ModelsConfig)
    model = await asyncio.to_thread(load_chat, name or None, models, settings=settings)
    trained = await asyncio.to_thread(in_role, model, role) if role else None
    try:
        yield trained or model
    finally:
        close = getattr(model, "close", None)
        if close is not None:
            await asyncio.to_thread(close)
