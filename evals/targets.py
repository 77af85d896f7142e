"""What is measured: a retriever, an agent, or a function of the user's own, behind one asynchronous call."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from evals.dataset import Dataset
from evals.sample import Cited, Output, Sample
from evals.task import Task
from framework.config import Settings
from framework.documents import content_hash
from framework.errors import CallerError, ConfigError

C = TypeVar("C")
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
    """Section `[target]` with `kind = "python"`: `function = "FILE.py:NAME"`, relative to the task file."""

    kind: Literal["python"]
    function: str


class PythonTarget:
    """A function of one question, plain or async.

    It returns the answer as text, or document ids (best first), or an `Output`, or a mapping with `Output`'s fields. A
    plain function runs in a thread; one that outlives the time-out can't be stopped and goes on in the background.
    """

    def __init__(self, function: Callable[[str], Any], about: Mapping[str, Any]) -> None:
        self.function = function
        self.about = about

    @classmethod
    def load(cls, config: PythonConfig, base: Path) -> PythonTarget:
        """Import the file and take the function.

        Raises:
            ConfigError: no such file or function, or the file can't be imported.
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
        return cls(function, {"kind": "python", "function": name, "source": source})

    async def answer(self, sample: Sample) -> Output:
        if inspect.iscoroutinefunction(self.function):
            return to_output(await self.function(sample.question))
        return to_output(await asyncio.to_thread(self.function, sample.question))


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


def section(values: Mapping[str, Any], kind: type[C], task: Task, settings: Settings) -> C:
    """The keys as the dataclass `kind`, with errors that name `target.KEY` and the task file."""
    return Settings({"target": values}, settings.base, task.path).section("target", kind)


@asynccontextmanager
async def open_target(task: Task, dataset: Dataset, settings: Settings, progress: Progress) -> AsyncIterator[Target]:
    """The target that a task names, ready to answer: its corpus is indexed.

    Raises:
        ConfigError: an unknown kind or key, or a target that needs passages where the dataset has none.
    """
    kind = task.target.get("kind")
    if kind == "python":
        yield PythonTarget.load(section(task.target, PythonConfig, task, settings), task.base)
    else:
        known = "retriever, agent, python"
        raise ConfigError(f"target.kind must be one of {known}, got {kind!r}.", field="target.kind")
