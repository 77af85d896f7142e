"""What a tool is: a specification that the model sees, and an asynchronous call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from framework.documents import Hit
from framework.messages import ToolSpec


@dataclass(frozen=True, slots=True)
class ToolContext:
    """Who a call is made for. A tool that changes something passes `idempotency_key` on to the system it changes.

    Attributes:
        idempotency_key: the same for every repetition of one call after a crash, different for any other call.
        deadline: `time.monotonic()` value after which the answer is no longer wanted; None: no limit.
    """

    tenant: str = "default"
    run_id: str = ""
    call_id: str = ""
    idempotency_key: str = ""
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gives back.

    Attributes:
        content: what the model reads.
        hits: chunks that the content quotes, in order; only these can be cited.
        error: the call failed and `content` says how.
        truncated: characters that were cut from the content to keep within the limit; 0 if none.
    """

    content: str
    hits: tuple[Hit, ...] = ()
    error: bool = False
    truncated: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Tool(Protocol):
    """Something that a model may call.

    `timeout` is in seconds. `call` gets arguments that were validated against `spec.parameters`; it raises `ModelFault`
    for what the model can mend, any other exception is reported to the model as a failure without its traceback.
    """

    @property
    def spec(self) -> ToolSpec: ...

    @property
    def timeout(self) -> float: ...

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolResult: ...
