"""What is measured: a retriever, an agent, a model, or a function of the user's own, behind one asynchronous call."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

from evals.dataset import Dataset
from evals.identity import adapter_of, chat_about, chat_identity, reranker_identity
from evals.sample import Cited, Output, Sample
from evals.task import Task
from framework.config import Settings
from framework.documents import content_hash
from framework.errors import CallerError, ConfigError, ModelUnavailable, NotFound
from framework.models.config import ModelsConfig
from framework.retrieval.config import MAX_K

if TYPE_CHECKING:
    from agents import Agent, Answer
    from framework.retrieval.retriever import Retriever

C = TypeVar("C")
# Documents ranked for a metric that looks at the whole ranking.
DEFAULT_DEPTH = 100
Progress: TypeAlias = Callable[[str, int, int], None]


class Target(Protocol):
    """Something that answers samples.

    `about` is what decides its answers, as JSON: a run is only continued by a target that says the same of itself.
    """

    @property
    def about(self) -> Mapping[str, Any]: ...

    async def answer(self, sample: Sample) -> Output: ...


@dataclass(frozen=True, slots=True)
class PythonConfig:
    """Section `[target]` with `kind = "python"`.

    Attributes:
        function: "FILE.py:NAME", relative to the task file.
        model: what the function gets as its second argument; empty: it has only one. `promote` sets it.
    """

    kind: Literal["python"]
    function: str
    model: str = ""


class PythonTarget:
    """A function of a question, or of a question and a model's name, plain or async.

    It returns the answer as text, or document ids (best first), or an `Output`, or a mapping with `Output`'s fields. A
    plain function runs in a thread; one that outlives the time-out can't be stopped and goes on in the background.
    """

    def __init__(self, function: Callable[..., Any], about: Mapping[str, Any], *more: str) -> None:
        self.function = function
        self.about = about
        self.more = more

    @classmethod
    def load(cls, config: PythonConfig, base: Path, settings: Settings) -> PythonTarget:
        """Import the file and take the function.

        Raises:
            ConfigError: no such file or function, or the file can't be imported.
            Conflict: the model is an adapter that can't be used.
        """
        file, colon, name = config.function.rpartition(":")
        path = base / file
        if not colon or not path.is_file():
            hint = 'Write function = "FILE.py:NAME".'
            raise ConfigError(f"target.function: there is no {config.function!r}.", hint=hint, field="target.function")
        function = getattr(_import_file(path), name, None)
        if not callable(function):
            raise ConfigError(f"{path} has no function {name!r}.", field="target.function")
        source = content_hash(path.read_text(encoding="utf-8"))
        about: dict[str, Any] = {"kind": "python", "function": name, "source": source}
        if not config.model:
            return cls(function, about)
        about["model"] = config.model
        for part in (chat_identity, adapter_of):
            with suppress(NotFound, ModelUnavailable):  # it may mean anything by the name
                about |= part(config.model, settings)
        return cls(function, about, config.model)

    async def answer(self, sample: Sample) -> Output:
        if inspect.iscoroutinefunction(self.function):
            return to_output(await self.function(sample.question, *self.more))
        return to_output(await asyncio.to_thread(self.function, sample.question, *self.more))


def to_output(value: Any) -> Output:
    """What a user's function returned, as an `Output`.

    Raises:
        CallerError: it is none of the accepted kinds.
    """
    if isinstance(value, Output):
        return value
    if isinstance(value, str):
        return Output(text=value)
    if isinstance(value, Mapping):
        fields = dict(value)
        try:
            fields["ranking"] = tuple(str(document) for document in fields.get("ranking", ()))
            fields["citations"] = tuple(Cited(**citation) for citation in fields.get("citations", ()))
            return Output(**fields)
        except TypeError as error:
            raise CallerError(f"The function's mapping is no output: {error}.") from error
    if isinstance(value, list | tuple):
        return Output(ranking=tuple(str(document) for document in value))
    raise CallerError(
        f"The function returned {type(value).__name__}.",
        hint="Return the answer as text, a list of document ids, a mapping, or an evals.Output.",
    )


def _import_file(path: Path) -> ModuleType:
    name = f"lectern_eval_{content_hash(str(path.resolve()))[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file.", field="target.function")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's file may raise anything
        del sys.modules[name]
        raise ConfigError(
            f"{path} can't be imported: {type(error).__name__}: {error}.", field="target.function"
        ) from error
    return module


class RetrieverTarget:
    """Ranks documents by their best chunk.

    Args:
        depth: documents that the ranking should have; chunks are asked for until there are as many, or no more.
    """

    def __init__(self, retriever: Retriever, about: Mapping[str, Any], depth: int) -> None:
        self.retriever = retriever
        self.about = {**about, "kind": "retriever", "depth": depth, "search": asdict(retriever.config)}
        self.depth = depth

    async def answer(self, sample: Sample) -> Output:
        wanted = self.depth + len(sample.excluded)
        k = min(wanted * 2, MAX_K)
        while True:
            found = await self.retriever.search(sample.question, k=k)
            ranking = tuple(dict.fromkeys(hit.chunk.document_id for hit in found.hits))
            if len(ranking) >= wanted or found.shortfall or k == MAX_K:
                # The last notice of a short result says that it is short, of chunks that were asked for to be safe.
                notices = found.notices[:-1] if found.shortfall else found.notices
                return Output(ranking[:wanted], notices=notices)
            k = min(k * 2, MAX_K)


class AgentTarget:
    """Asks an agent; each sample is a conversation of its own. `ranking` is what its searches found, in order."""

    def __init__(self, agent: Agent, about: Mapping[str, Any]) -> None:
        self.agent = agent
        self.about = {**about, "kind": "agent"}

    async def answer(self, sample: Sample) -> Output:
        from agents.events import RunFinished, ToolReturned

        found: list[str] = []
        answer: Answer | None = None
        async with aclosing(self.agent.astream(sample.question)) as events:
            async for event in events:
                if isinstance(event, ToolReturned):
                    found += [hit.chunk.document_id for hit in event.result.hits]
                elif isinstance(event, RunFinished):
                    answer = event.answer
        assert answer is not None, "a run ends with RunFinished"
        return Output(
            tuple(dict.fromkeys(found)),
            without_markers(answer),
            tuple(Cited(citation.document_id, citation.quote) for citation in answer.citations),
            answer.stop == "declined",
            answer.steps,
            answer.usage.total_tokens,
            notices=answer.notices,
        )


def without_markers(answer: Answer) -> str:
    """The answer's text without the [1] of its citations."""
    numbers = "|".join(str(citation.number) for citation in answer.citations)
    return re.sub(rf"\s*\[(?:{numbers})\]", "", answer.text) if numbers else answer.text


def section(values: Mapping[str, Any], kind: type[C], task: Task, settings: Settings) -> C:
    """The keys as the dataclass `kind`, with errors that name `target.KEY` and the task file."""
    return Settings({"target": values}, settings.base, task.path).section("target", kind)


def overlaid(task: Task, settings: Settings, name: str, kind: type[C]) -> tuple[str, C]:
    """`target.collection`, and the settings' section `name` with the target's other keys on top."""
    keys = {key: value for key, value in task.target.items() if key not in ("kind", "collection")}
    section(keys, kind, task, settings)  # so that a wrong key is named as the task file has it
    values = {**settings.values.get(name, {}), **keys}
    collection = task.target.get("collection", "")
    if not isinstance(collection, str):
        raise ConfigError(f"target.collection must be a name, got {collection!r}.", field="target.collection")
    return collection, Settings({name: values}, settings.base, settings.path).section(name, kind)


@asynccontextmanager
async def open_target(task: Task, dataset: Dataset, settings: Settings, progress: Progress) -> AsyncIterator[Target]:
    """The target that a task names, ready to answer: what it searches is indexed.

    Raises:
        ConfigError: an unknown kind or key, or nothing to search.
    """
    kind = task.target.get("kind")
    opened = TARGETS.get(str(kind))
    if opened is None:
        raise ConfigError(f"target.kind must be one of {', '.join(TARGETS)}, got {kind!r}.", field="target.kind")
    async with opened(task, dataset, settings, progress) as target:
        yield target


@asynccontextmanager
async def _open_python(task: Task, dataset: Dataset, settings: Settings, progress: Progress) -> AsyncIterator[Target]:
    yield PythonTarget.load(section(task.target, PythonConfig, task, settings), task.base, settings)


@asynccontextmanager
async def _open_retriever(
    task: Task, dataset: Dataset, settings: Settings, progress: Progress
) -> AsyncIterator[Target]:
    from evals.knowledge import open_knowledge
    from framework.retrieval.config import SearchConfig

    collection, config = overlaid(task, settings, "search", SearchConfig)
    depth = max((metric.k or DEFAULT_DEPTH for metric in task.metrics if metric.kind.cutoff != "none"), default=1)
    models = settings.section("models", ModelsConfig)
    async with open_knowledge(collection, dataset, settings, progress) as knowledge:
        about = {**knowledge.about, **(await asyncio.to_thread(reranker_identity, models) if config.rerank else {})}
        yield RetrieverTarget(knowledge.retriever(config), about, depth)


@asynccontextmanager
async def _open_agent(task: Task, dataset: Dataset, settings: Settings, progress: Progress) -> AsyncIterator[Target]:
    from agents import Agent
    from agents.config import AgentConfig
    from evals.knowledge import open_knowledge
    from framework.retrieval.config import SearchConfig

    collection, config = overlaid(task, settings, "agent", AgentConfig)
    search, models = settings.section("search", SearchConfig), settings.section("models", ModelsConfig)
    async with open_knowledge(collection, dataset, settings, progress) as knowledge:
        about = {
            **knowledge.about,
            "agent": asdict(config),
            "search": asdict(search),
            "chat": config.model or models.chat,
            **(await asyncio.to_thread(reranker_identity, models) if search.rerank else {}),
            **await asyncio.to_thread(chat_about, config.model, settings),
        }
        async with Agent.from_config(config, settings, knowledge=[knowledge.retriever(search)]) as agent:
            yield AgentTarget(agent, about)


@asynccontextmanager
async def _open_reader(task: Task, dataset: Dataset, settings: Settings, progress: Progress) -> AsyncIterator[Target]:
    from evals.model_targets import ReaderConfig, open_reader

    config = section(task.target, ReaderConfig, task, settings)
    about = await asyncio.to_thread(chat_about, config.model, settings)
    async with open_reader(dataset, settings, config, about) as target:
        yield target


@asynccontextmanager
async def _open_calls(task: Task, dataset: Dataset, settings: Settings, progress: Progress) -> AsyncIterator[Target]:
    from evals.model_targets import CallsConfig, open_caller

    config = section(task.target, CallsConfig, task, settings)
    about = await asyncio.to_thread(chat_about, config.model, settings)
    async with open_caller(settings, config, about) as target:
        yield target


TARGETS: Mapping[str, Callable[[Task, Dataset, Settings, Progress], AbstractAsyncContextManager[Target]]] = {
    "retriever": _open_retriever,
    "agent": _open_agent,
    "python": _open_python,
    "reader": _open_reader,
    "calls": _open_calls,
}
