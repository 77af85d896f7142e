"""`Agent`: the front door for Python. Nothing is opened or loaded before the first question."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, runtime_checkable

from agents.config import AgentConfig, QuotingConfig, ReadingConfig
from agents.events import Answer, Event
from agents.limits import Budget
from framework.bridge import iterate_sync, run_sync
from framework.config import Settings
from framework.errors import CallerError
from framework.messages import Message
from framework.models.base import TENANT, ChatModel
from framework.retrieval.store import Corpus

if TYPE_CHECKING:
    from agents.citations import Shelf
    from agents.deps import Mode
    from agents.feedback import Verdict
    from agents.runner import Runner
    from tools import Tool


@runtime_checkable
class Knowledge(Protocol):
    """What can be searched and cited: a `Retriever`, or anything like one.

    `search(query, *, k=None)` is a coroutine with `hits` and `notices` in its result.
    """

    @property
    def corpus(self) -> Corpus: ...

    @property
    def tenant(self) -> str: ...

    @property
    def collection(self) -> str: ...

    def search(self, query: str, *, k: int | None = None) -> Any: ...


Source: TypeAlias = "str | Knowledge"
MODES = ("auto", "read", "quote", "write")


class Agent:
    """Answers questions from collections and with tools.

        agent = Agent(knowledge=["docs"], tools=[order_status])
        print(agent.run("How long do refunds take?").text)

    Usable from several threads and event loops. The synchronous forms run on a background loop, so they work in
    notebooks too; the `a...` forms are for asynchronous code.

    Args:
        name: how it calls itself.
        instructions: its task and manner, for the model.
        knowledge: collection names, or retrievers. It cites what it finds there.
        tools: functions decorated with `@tool`, other tools, or names of installed ones.
        model: a chat model, or a name that `load_chat` knows; None: the configured one.
        mode: "read" answers from one passage, with its source; "quote" answers with the documents' own
            sentences, which any model can do; "write" lets the model write from numbered passages; "auto" reads where
            the model has an adapter for it, and quotes otherwise. Without knowledge the model always writes.
        budget: the most that one run may use.
        quoting: how sentences are chosen, and when a question is declined.
        reading: how passages are read, and when a question is declined.
        settings: None reads lectern.toml.
        tenant: None takes the settings'.
    """

    def __init__(
        self,
        name: str = "assistant",
        instructions: str = "",
        knowledge: Iterable[Source] = (),
        tools: Iterable[Tool | str] = (),
        model: str | ChatModel | None = None,
        mode: Mode = "auto",
        budget: Budget = Budget(),  # noqa: B008  frozen
        quoting: QuotingConfig = QuotingConfig(),  # noqa: B008  frozen
        reading: ReadingConfig = ReadingConfig(),  # noqa: B008  frozen
        settings: Settings | None = None,
        tenant: str | None = None,
    ) -> None:
        if mode not in MODES:
            raise CallerError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.", field="mode")
        for argument, value in (("knowledge", knowledge), ("tools", tools)):
            if isinstance(value, str):
                raise CallerError(
                    f"{argument} must be a list, got {value!r}.", hint=f"Write [{value!r}].", field=argument
                )
        self.name = name
        self.instructions = instructions
        self.knowledge = tuple(knowledge)
        self.tools = tuple(tools)
        self.mode: Mode = mode
        self.budget = budget
        self.quoting = quoting
        self.reading = reading
        self._settings = settings
        self._tenant = tenant
        self._model = model
        self._lock = threading.Lock()
        self._runner: Runner | None = None
        self._library: Any = None

    @classmethod
    def from_config(
        cls,
        config: AgentConfig,
        settings: Settings | None = None,
        *,
        knowledge: Iterable[Source] | None = None,
        model: str | ChatModel | None = None,
        tenant: str | None = None,
    ) -> Agent:
        """The agent that section `[agent]` describes; what is given besides goes before its own."""
        return cls(
            config.name,
            config.instructions,
            knowledge=config.collections if knowledge is None else knowledge,
            tools=config.tools,
            model=config.model if model is None else model,
            mode=config.mode,
            budget=config.budget,
            quoting=config.quoting,
            reading=config.reading,
            settings=settings,
            tenant=tenant,
        )

    def run(self, question: str, *, thread_id: str | None = None, history: Sequence[Message] = ()) -> Answer:
        """Answer a question.

        Args:
            thread_id: the conversation to continue, or a new one's name; it is stored. None stores nothing.
            history: earlier turns, for callers who keep the conversation themselves. Its system messages are left
                out with a notice.

        Raises:
            CallerError: an empty question, or a thread together with a history.
            ModelUnavailable: the model can't be reached; the thread stays as it was and can be resumed.
        """
        return run_sync(self.arun(question, thread_id=thread_id, history=history))

    def stream(
        self, question: str, *, thread_id: str | None = None, history: Sequence[Message] = ()
    ) -> Generator[Event, None, None]:
        """The same run as it goes: `RunStarted` first, `RunFinished` last. Closing it cancels the run."""
        return iterate_sync(self.astream(question, thread_id=thread_id, history=history))

    async def arun(self, question: str, *, thread_id: str | None = None, history: Sequence[Message] = ()) -> Answer:
        """`run` for asynchronous callers."""
        from agents.runner import collected

        return await collected(self.astream(question, thread_id=thread_id, history=history))

    async def astream(
        self, question: str, *, thread_id: str | None = None, history: Sequence[Message] = ()
    ) -> AsyncGenerator[Event, None]:
        """`stream` for asynchronous callers; use `contextlib.aclosing` to cancel it early."""
        if thread_id is not None and history:
            raise CallerError("A thread keeps its own history.", hint="Give thread_id or history.", field="history")
        runner = await self._open()
        events = runner.once(question, history) if thread_id is None else runner.in_thread(question, thread_id)
        async with aclosing(events) as stream:
            async for event in stream:
                yield event

    def resume(self, thread_id: str) -> Answer:
        """Finish the thread's last run, which was cut short; if it was not, its answer again.

        Raises:
            NotFound: there is no such thread.
        """
        return run_sync(self.aresume(thread_id))

    async def aresume(self, thread_id: str) -> Answer:
        """`resume` for asynchronous callers."""
        from agents.runner import collected

        return await collected((await self._open()).resume(thread_id))

    async def astream_resume(self, thread_id: str) -> AsyncGenerator[Event, None]:
        """`resume` as a stream."""
        async with aclosing((await self._open()).resume(thread_id)) as stream:
            async for event in stream:
                yield event

    def history(self, thread_id: str) -> list[Message]:
        """A thread's turns; NotFound if there is none of that id."""
        return run_sync(self.ahistory(thread_id))

    async def ahistory(self, thread_id: str) -> list[Message]:
        """`history` for asynchronous callers."""
        return await (await self._open()).history(thread_id)

    def forget(self, thread_id: str) -> None:
        """Delete a thread; NotFound if there is none of that id."""
        run_sync(self.aforget(thread_id))

    async def aforget(self, thread_id: str) -> None:
        """`forget` for asynchronous callers."""
        await (await self._open()).forget(thread_id)

    def feedback(self, run_id: str, verdict: Verdict | None = None, *, correction: str = "", comment: str = "") -> None:
        """Say of an answer of this process that it was right ("up") or wrong, or what is right (`correction`).

        It is stored with the question and the passages, in the state directory, for `lectern dataset from-feedback`.

        Args:
            run_id: `Answer.run_id`.

        Raises:
            CallerError: neither verdict nor correction, or a correction of what is "up".
            NotFound: there was no such run.
        """
        from agents.feedback import Feedback

        settings = self._settings or Settings.load()
        tenant = self._tenant or settings.core.tenant
        Feedback(settings.home).judge(tenant, run_id, verdict, correction=correction, comment=comment)

    def close(self) -> None:
        """Close the library that the agent opened; it opens again when asked again."""
        with self._lock:
            library, self._library, self._runner = self._library, None, None
        if library is not None:
            library.close()

    async def aclose(self) -> None:
        """`close` for asynchronous callers."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"Agent({self.name!r}, mode={self.mode!r})"

    async def _open(self) -> Runner:
        runner = self._runner
        return runner if runner is not None else await asyncio.to_thread(self._build)

    def _build(self) -> Runner:
        """Open what the agent works with; only the model waits until it is needed."""
        from agents.deps import Deps
        from agents.runner import Runner
        from agents.threads import Threads
        from tools import Executor, Toolset, load_tools

        with self._lock:
            runner = self._runner
            if runner is None:
                settings = self._settings or Settings.load()
                tenant = self._tenant or settings.core.tenant
                searches, shelves = self._searches(settings, tenant)
                own = Toolset(item for item in self.tools if not isinstance(item, str))
                toolset = searches + own + load_tools(item for item in self.tools if isinstance(item, str))
                deps = Deps(
                    self.name,
                    self.instructions,
                    self.mode,
                    self.budget,
                    tenant,
                    Executor(toolset),
                    shelves,
                    partial(self._chat_model, settings, tenant),
                    self.quoting,
                    self.reading,
                )
                self._runner = runner = Runner(deps, Threads(settings.home))
            return runner

    def _searches(self, settings: Settings, tenant: str) -> tuple[Any, dict[str, Shelf]]:
        """A search tool for each piece of knowledge, and where its citations are checked."""
        from agents.citations import Shelf
        from tools import Toolset
        from tools.builtin.retrieve import RetrieveTool

        found, shelves = [], {}
        for source in self.knowledge:
            retriever = self._retriever(source, settings, tenant)
            if len(self.knowledge) == 1:
                item = RetrieveTool(retriever)
            else:
                name = "search_" + re.sub(r"[^A-Za-z0-9_-]", "_", retriever.collection)[:57]
                item = RetrieveTool(retriever, name, f"Search the documents of {retriever.collection}.")
            found.append(item)
            embedder = partial(getattr, retriever, "embedder", None)
            shelves[item.spec.name] = Shelf(retriever.corpus, retriever.tenant, retriever.collection, embedder)
        return Toolset(found), shelves

    def _retriever(self, source: Source, settings: Settings, tenant: str) -> Knowledge:
        if not isinstance(source, str):
            if not isinstance(source, Knowledge):
                raise CallerError(
                    f"{source!r} is no knowledge.", hint="Give a collection's name or a Retriever.", field="knowledge"
                )
            return source
        if self._library is None:
            from indexers.library import open_library

            self._library = open_library(settings, tenant)
        found: Knowledge = self._library.retriever(source)
        return found

    async def _chat_model(self, settings: Settings, tenant: str) -> ChatModel:
        """The model, which the task that asks for it uses for this tenant."""
        TENANT.set(tenant)
        model = self._model
        if model is None or isinstance(model, str):
            return await asyncio.to_thread(self._load_model, settings, tenant)
        return model

    def _load_model(self, settings: Settings, tenant: str) -> ChatModel:
        with self._lock:
            model = self._model
            if model is None or isinstance(model, str):
                from framework.models.chat import load_chat
                from framework.models.config import ModelsConfig

                self._model = model = load_chat(
                    model, settings.section("models", ModelsConfig), settings=settings, tenant=tenant
                )
            return model
