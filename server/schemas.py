"""Requests and responses of the HTTP API: OpenAI's shapes, strict at the edge.

A key that is not listed here is refused by name, since dropping it in silence would answer another question than the
one that was asked. One module, though a long one: the whole wire format is read in one place.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_KEYS = 64  # of one object: more are never right here, and each would be reported on its own
MAX_MESSAGES = 4096
MAX_INPUTS = 2048
MAX_CHOICES = 1024
MAX_IDS = 1024  # of tokens in one list
TOOL_NAME = r"^[a-zA-Z0-9_-]{1,64}$"


class Strict(BaseModel):
    """A part of a request: no unknown keys, no conversions, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_KEYS:
            raise ValueError(f"an object here has at most {MAX_KEYS} keys, this one {len(value)}")
        return value


class TextPart(Strict):
    """The only kind of content that these models read."""

    type: Literal["text"]
    text: str


Content: TypeAlias = str | Annotated[list[TextPart], Field(fail_fast=True)]


class SystemMessage(Strict):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Strict):
    role: Literal["user"]
    content: Content
    name: str | None = None


class CalledFunction(Strict):
    name: str
    arguments: str


class Call(Strict):
    """A tool call that an earlier answer asked for."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Strict):
    """An earlier answer. What a client may hand back with it (refusal, annotations, citations) is not read."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Annotated[list[Call], Field(fail_fast=True)] | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    citations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class ToolMessage(Strict):
    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


ChatMessage: TypeAlias = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class FunctionSpec(Strict):
    """`strict` is accepted either way: a local model's calls always fit the schema."""

    name: Annotated[str, Field(pattern=TOOL_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Strict):
    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    type: Literal["json_object"]


class SchemaSpec(Strict):
    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: SchemaSpec


class StructuredOutputs(Strict):
    """vLLM's way to constrain an answer, by exactly one of these."""

    json_: Annotated[dict[str, Any] | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Annotated[list[str], Field(max_length=MAX_CHOICES, fail_fast=True)] | None = None


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class ChatRequest(Strict):
    """`POST /v1/chat/completions`. Without a temperature the answer is decoded greedily, so it can be repeated."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None = (
        None
    )
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | Annotated[list[str], Field(max_length=16, fail_fast=True)] | None = None
    seed: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=MAX_IDS)] | None = None

    # vLLM's names for what OpenAI does not have.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=MAX_IDS, fail_fast=True)] | None = None
    structured_outputs: StructuredOutputs | None = None

    # Accepted with their neutral value only, which many clients send.
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None

    # OpenAI's own, which can't alter the answer.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None


class EmbeddingRequest(Strict):
    """`POST /v1/embeddings`. Token ids are not read: send the text."""

    model: str
    input: str | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _no_token_ids(cls, value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], int | list):
            raise ValueError("token ids are not read here; send the text instead")
        return value


class UsageBody(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprobBody(TopLogprob):
    top_logprobs: list[TopLogprob]


class LogprobsBody(BaseModel):
    content: list[TokenLogprobBody] | None = None
    refusal: None = None


class CitationBody(BaseModel):
    """Where a marker such as [1] in the answer points: `quote` stands at start:end of that version of the document."""

    number: int
    document_id: str
    version: str
    start: int
    end: int
    quote: str
    title: str
    source: str
    heading_path: list[str]
    page: int | None = None


class UrlCitation(BaseModel):
    """OpenAI's form of a citation: the span is the marker's place in the answer."""

    start_index: int
    end_index: int
    title: str
    url: str


class Annotation(BaseModel):
    type: Literal["url_citation"] = "url_citation"
    url_citation: UrlCitation


class FunctionBody(BaseModel):
    name: str | None = None
    arguments: str


class CallBody(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: FunctionBody


class MessageBody(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[CallBody] | None = None
    annotations: list[Annotation] | None = None
    citations: list[CitationBody] | None = None


class StepBody(BaseModel):
    """What an agent did on the way: a thought, a tool's call, or what it returned.

    `omitted` counts the characters of the result that `text` does not show.
    """

    type: Literal["thought", "tool_call", "tool_result"]
    text: str | None = None
    call_id: str | None = None
    tool: str | None = None
    arguments: str | None = None
    omitted: int | None = None
    error: bool | None = None
    seconds: float | None = None
    hits: int | None = None


class RunBody(BaseModel):
    """How an agent's run went: `stop` says why it ended, `notices` what was cut, skipped or not applied."""

    run_id: str
    stop: str
    supported: bool
    notices: list[str]
    steps: list[StepBody] | None = None


FinishReasonBody: TypeAlias = Literal["stop", "length", "tool_calls"]


class ChoiceBody(BaseModel):
    index: int = 0
    message: MessageBody
    logprobs: LogprobsBody | None = None
    finish_reason: FinishReasonBody


class ChatCompletion(BaseModel):
    """An answer. `run` is there when an agent gave it."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChoiceBody]
    usage: UsageBody
    run: RunBody | None = None


class CallDeltaBody(BaseModel):
    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionBody


class DeltaBody(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[CallDeltaBody] | None = None
    annotations: list[Annotation] | None = None
    citations: list[CitationBody] | None = None


class ChunkChoice(BaseModel):
    index: int = 0
    delta: DeltaBody
    logprobs: LogprobsBody | None = None
    finish_reason: FinishReasonBody | None = None


class ChatChunk(BaseModel):
    """One server-sent event of a streamed answer. `step` and `run` come from agents."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageBody | None = None
    step: StepBody | None = None
    run: RunBody | None = None


class EmbeddingBody(BaseModel):
    """`embedding` is a list of numbers, or the base64 text of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    object: Literal["list"] = "list"
    data: list[EmbeddingBody]
    model: str
    usage: EmbeddingUsage


class ModelBody(BaseModel):
    """`kind` tells what the model serves: chat and agent complete chats, embedding embeds."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    kind: Literal["chat", "agent", "embedding"]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelBody]


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    status: Literal["ready"] = "ready"
    models: list[str]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Every error has this shape."""

    error: ErrorDetail
