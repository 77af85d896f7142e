"""A chat model by itself: as a reader that is given the right passage, or as a caller of tools."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from evals.calls import Called
from evals.dataset import Dataset
from evals.sample import Output, Sample
from framework.config import Settings
from framework.documents import Chunk, Document, Hit
from framework.errors import CallerError, ConfigError
from framework.messages import system, user
from framework.models.base import ChatModel, Embedder, GenerationParams, Role, ToolChoice, complete, in_role

if TYPE_CHECKING:
    from agents.config import ReadingConfig


@dataclass(frozen=True, slots=True)
class ReaderConfig:
    """Section `[target]` with `kind = "reader"`: a model reads the passage that has the answer, as an agent reads.

    How, and with how much confidence it answers, is the configuration's section `[agent.reading]`.

    Attributes:
        model: its name; empty: the configured one.
        trained: read with the adapter that the model has for it, where it has one.
        style: "brief" or "sentence".
    """

    kind: Literal["reader"]
    model: str = ""
    trained: bool = True
    style: Literal["brief", "sentence"] = "brief"


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
        self,
        model: ChatModel,
        embedder: Embedder,
        documents: Mapping[str, Document],
        config: ReaderConfig,
        reading: ReadingConfig,
        about: Mapping[str, Any],
    ) -> None:
        self.model = model
        self.embedder = embedder
        self.documents = documents
        self.config = config
        self.reading = reading
        more = {"reading": asdict(reading), "embedder_id": embedder.info.id, "model": model.name}
        self.about = {**about, **asdict(config), **more}

    async def answer(self, sample: Sample) -> Output:
        from agents.reading import in_a_sentence, parts, read

        gold = next((name for name, grade in sample.relevant.items() if grade > 0), None)
        if gold is None or gold not in self.documents:
            raise CallerError(f"The question {sample.id!r} has no passage among the dataset's.", field="dataset.gold")
        document = self.documents[gold]
        chunk = Chunk(gold, document.text, 0, len(document.text), 0)
        found = parts(sample.question, [Hit(gold, chunk, "", 1.0, title=document.title)], self.model, self.reading)
        reading = await read(sample.question, found, self.model, self.embedder, self.reading)
        if reading.declined:
            return Output((gold,), declined=True, steps=1, tokens=reading.usage.total_tokens)
        best, usage = reading.reads[0], reading.usage
        if self.config.style == "brief":
            return Output((gold,), best.text, steps=1, tokens=usage.total_tokens)
        text, more = await in_a_sentence(sample.question, best, self.model)
        return Output((gold,), text, steps=2, tokens=(usage + more).total_tokens)


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
    """A reader with the dataset's passages; `about` tells its model from others.

    Raises: ConfigError: the dataset has no passages, or a folder of them.
    """
    if dataset.passages is None or dataset.passages.folders:
        raise ConfigError("A reader is given passages of JSONL files.", field="dataset.passages")
    from agents.config import AgentConfig
    from framework.models.config import ModelsConfig
    from framework.models.embedders import load_embedder

    documents = {document.id: document for document in dataset.passages.documents()}
    reading = settings.section("agent", AgentConfig).reading
    embedder = await asyncio.to_thread(load_embedder, None, settings.section("models", ModelsConfig))
    async with _model(config.model, "reader" if config.trained else None, settings) as model:
        yield ReaderTarget(model, embedder, documents, config, reading, about)


@asynccontextmanager
async def open_caller(settings: Settings, config: CallsConfig, about: Mapping[str, Any]) -> AsyncIterator[CallsTarget]:
    """A caller; `about` tells its model from others."""
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
