"""`@tool`: a function that a model may call, described by its signature, annotations and docstring."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar, cast, overload

from framework.errors import CallerError
from framework.messages import ToolSpec
from tools.base import ToolContext, ToolResult
from tools.docstrings import parse
from tools.rendering import render
from tools.schema import read_signature

P = ParamSpec("P")
R = TypeVar("R")
_Outcome: TypeAlias = ToolResult | BaseException
TIMEOUT = 30.0
MAX_STUCK = 4
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class FunctionTool(Generic[P, R]):
    """A function as a `Tool`; it stays callable as the function it was.

    An `async def` runs on the event loop and must not block it. A plain function runs in a daemon thread of its own:
    Python can't end a thread, so one that hangs is left behind when the time is up and goes on holding what it holds.
    The run continues meanwhile, and with `MAX_STUCK` calls left behind the tool refuses further ones until one returns.

    Raises:
        CallerError: the signature can't be offered to a model; the message names function and parameter.
    """

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        description: str | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        if not (inspect.isfunction(function) or inspect.ismethod(function)):
            raise CallerError(f"{function!r} is not a Python function.", hint="Wrap it: def name(...): return ...")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise CallerError(f"The tool function {function.__qualname__} yields.", hint="Return a list instead.")
        if not timeout > 0:
            raise CallerError(f"timeout must be above 0 seconds, got {timeout!r}.", field="timeout")
        prose, parameters = parse(function.__doc__)
        self.function: Callable[P, R] = function
        self.timeout = timeout
        self._signature = read_signature(function, parameters)
        title = check_name(name or function.__name__)
        self.spec = ToolSpec(title, description or prose or title.replace("_", " "), self._signature.schema)
        self._abandoned: list[threading.Thread] = []
        update_wrapper(self, function, updated=())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<tool {self.spec.name}>"

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult:
        """Type the arguments, run the function, render what it returns.

        Raises:
            ModelFault: the arguments do not fit the annotations. Whatever the function raises goes through.
        """
        bound = self._signature.bind(arguments, context)
        # Called with checked keyword arguments, which the parameter specification can't express.
        function = cast(Callable[..., Any], self.function)
        if inspect.iscoroutinefunction(function):
            return render(await function(**bound))
        return await self._in_thread(lambda: render(function(**bound)))

    async def _in_thread(self, work: Callable[[], ToolResult]) -> ToolResult:
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        if len(self._abandoned) >= MAX_STUCK:
            raise RuntimeError(f"{MAX_STUCK} earlier calls of {self.spec.name} still hang; it is not called again")
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[_Outcome] = loop.create_future()

        def settle(outcome: _Outcome) -> None:
            if not arrived.done():
                arrived.set_result(outcome)

        def run() -> None:
            outcome = _attempt(work)
            with suppress(RuntimeError):  # the loop has ended meanwhile: nobody waits
                loop.call_soon_threadsafe(settle, outcome)

        # A plain thread: the interpreter waits at exit for those of the default executor, and a hung one would hold it.
        thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
        thread.start()
        try:
            outcome = await arrived
        except asyncio.CancelledError:
            self._abandoned.append(thread)
            raise
        if isinstance(outcome, KeyboardInterrupt):  # no signal comes to a thread, and it would end the event loop
            raise RuntimeError("the tool raised KeyboardInterrupt") from outcome
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def _attempt(work: Callable[[], ToolResult]) -> _Outcome:
    try:
        return work()
    except BaseException as error:  # noqa: BLE001  carried to the awaiting side, which decides
        return error


@overload
def tool(function: Callable[P, R], /) -> FunctionTool[P, R]: ...


@overload
def tool(
    *, name: str | None = None, description: str | None = None, timeout: float = TIMEOUT
) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...


def tool(
    function: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float = TIMEOUT,
) -> FunctionTool[P, R] | Callable[[Callable[P, R]], FunctionTool[P, R]]:
    """Make a function callable by models: `@tool`, or `@tool(name=..., description=..., timeout=...)`.

    Name, description and parameters' descriptions come from the function and its docstring (Google, NumPy or reST
    style), the schema from the annotations. A parameter annotated `ToolContext` is filled in and not shown.
    `timeout` is in seconds.

    Raises:
        CallerError: a parameter has no annotation, or a type that JSON can't carry.
    """

    def decorate(function: Callable[P, R]) -> FunctionTool[P, R]:
        return FunctionTool(function, name=name, description=description, timeout=timeout)

    return decorate if function is None else decorate(function)


def check_name(name: str) -> str:
    """The name, if the chat API allows it.

    Raises:
        CallerError: it is empty, longer than 64, or has other characters than letters, digits, "_" and "-".
    """
    if not NAME.fullmatch(name):
        raise CallerError(
            f"{name!r} is no name for a tool.", hint="Use 1 to 64 of: letters, digits, '_' and '-'.", field="name"
        )
    return name
