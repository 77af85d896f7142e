"""A chat model behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, Ollama, LM Studio, or OpenAI's own.

Each request has a connection of its own, closed with the request. So a cancelled answer frees the server at once, no
request meets a connection that an earlier one left in doubt, and the object works on any event loop. What it costs is a
TCP (and TLS) handshake for an answer that takes seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from framework.errors import CallerError, LecternError, ModelUnavailable
from framework.messages import Delta, Message, ToolSpec, Usage
from framework.models.base import AUTO, GREEDY, Choice, Constraint, GenerationParams, JsonSchema, Regex, ToolChoice
from framework.models.config import EndpointConfig
from framework.models.constraints import check_schema, constraint_grammar
from framework.models.json_schema import misfit
from framework.models.openai_stream import StreamReader, error_text, events
from framework.models.request import check_request

if TYPE_CHECKING:
    import ssl

    import httpx

CONNECT_SECONDS = 10.0
LONGEST_WAIT = 10.0  # seconds between two tries, whatever the server asks for
LONGEST_ERROR = 1 << 16  # bytes of an error's body
UNKNOWN_CONTEXT = 8192
TRY_AGAIN = {429, 500, 502, 503, 504}
# Values of sampling parameters that ask for nothing; 0 for those not named here.
NEUTRAL: dict[str, Any] = {"top_p": 1, "repetition_penalty": 1, "logit_bias": {}, "stop_token_ids": []}


class OpenAICompatible:
    """One model of one server.

    The server enforces tools and constraints as far as it can; an answer that breaks its constraint is an error here,
    while the arguments of tool calls are for the caller to check. Usage is estimated where the server does not tell it.

    Args:
        endpoint: where the server is, and how to speak to it.
        name: what the model is called here; default: the server's name for it.
    """

    def __init__(self, endpoint: EndpointConfig, name: str = "") -> None:
        self.endpoint = endpoint
        self.url = endpoint.base_url.rstrip("/") + "/chat/completions"
        self._name = name or endpoint.model
        self._plain_schema = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def context_length(self) -> int:
        """As configured; 8192 where it is not known."""
        return self.endpoint.context_length or UNKNOWN_CONTEXT

    def count_tokens(self, text: str) -> int:
        """An estimate, rather too high: a token each for four letters, a digit, a mark, a byte of other scripts."""
        words = sum((len(word) + 3) // 4 for word in re.findall(r"[A-Za-z]+", text))
        marks = len(re.findall(r"[0-9]|[!-/:-@\[-`{-~]|\n|[ \t]{2,}", text))
        other = sum(len(char.encode("utf-8", "replace")) for char in text if not char.isascii())
        return words + marks + other

    async def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        tool_choice: ToolChoice = AUTO,
        constraint: Constraint | None = None,
        params: GenerationParams = GREEDY,
    ) -> AsyncIterator[Delta]:
        import httpx

        check_request(messages, tools, tool_choice, constraint)
        _check_constraint(constraint)
        body = _body(self.endpoint.model, messages, tools, tool_choice, params)
        reader = StreamReader(self.url, lambda index: f"call_{uuid.uuid4().hex[:16]}_{index}")
        timeout = httpx.Timeout(self.endpoint.timeout, connect=min(CONNECT_SECONDS, self.endpoint.timeout))
        async with httpx.AsyncClient(timeout=timeout, verify=self._tls) as client:
            response = await self._open(client, body, constraint)
            try:
                async for event in events(response.aiter_bytes(), self.url):
                    delta = reader.read(event)
                    if delta is not None:
                        yield delta
            except httpx.TimeoutException:
                raise self._silent("in the middle of an answer") from None
            except httpx.TransportError as error:
                raise ModelUnavailable(
                    f"The connection to {self.url} broke in the middle of an answer: {type(error).__name__}.",
                    hint="Ask again; if it goes on, look at the server's log.",
                ) from None
            finally:
                await response.aclose()
        self._check_end(reader, constraint, tool_choice)
        yield Delta(finish_reason=reader.reason, usage=reader.usage or self._estimated(messages, reader))

    def _check_end(self, reader: StreamReader, constraint: Constraint | None, choice: ToolChoice) -> None:
        if reader.empty:
            raise ModelUnavailable(
                f"{self.url} accepted the request and sent no answer.",
                hint="The prompt may be longer than its context; its log should tell.",
            )
        if reader.reason is None:
            raise ModelUnavailable(
                f"{self.url} ended its answer in the middle.",
                hint="Ask again; if it goes on, look at the server's log.",
            )
        if choice.mode == "required" and reader.reason == "stop":
            raise ModelUnavailable(
                f"{self.url} called no tool though it was told to.",
                hint="Not every server enforces tool_choice: name the tool, or use another server.",
            )
        if constraint is not None:
            _check_answer(reader.content, constraint, self.url, reader.reason == "length")

    async def _open(
        self, client: httpx.AsyncClient, body: Mapping[str, Any], constraint: Constraint | None
    ) -> httpx.Response:
        """A response whose body is still to be read. Until there is one, tries are repeated."""
        import httpx

        for attempt in range(self.endpoint.max_retries + 1):
            last = attempt == self.endpoint.max_retries
            content = {**body, **_constrained(constraint, self._plain_schema)}
            try:
                request = client.build_request("POST", self.url, json=content, headers=self._headers())
                response = await client.send(request, stream=True)
            except UnicodeEncodeError as error:
                raise CallerError(f"The request has half a surrogate pair: {error}.", field="messages") from None
            except httpx.TimeoutException as error:
                if isinstance(error, httpx.ConnectTimeout) and not last:
                    continue
                raise self._silent("before it answered") from None
            except (httpx.TransportError, httpx.InvalidURL) as error:
                if not last:
                    await asyncio.sleep(_wait(attempt))
                    continue
                raise ModelUnavailable(
                    f"{self.url} can't be reached: {str(error) or type(error).__name__}.",
                    hint="Start the server, or correct base_url.",
                ) from None
            if response.status_code == 200:
                return response
            text = await self._error_body(response)
            if isinstance(constraint, JsonSchema) and not self._plain_schema and "json_object" in text:
                self._plain_schema = True  # an older dialect: the schema goes beside the type
                return await self._open(client, body, constraint)
            if last or response.status_code not in TRY_AGAIN:
                raise self._refusal(response.status_code, text)
            await asyncio.sleep(_wait(attempt, response.headers.get("retry-after")))
        raise AssertionError("the last try returns or raises")

    async def _error_body(self, response: httpx.Response) -> str:
        import httpx

        held = bytearray()
        with suppress(httpx.TransportError):
            async for piece in response.aiter_bytes():
                held += piece
                if len(held) > LONGEST_ERROR:
                    break
        await response.aclose()
        text = held.decode("utf-8", errors="replace")
        with suppress(ValueError):
            text = error_text(json.loads(text))
        return text[:500].replace(self._key, "***") if self._key else text[:500]

    def _refusal(self, status: int, text: str) -> LecternError:
        said = f"{self.url} answered {status}: {text or 'nothing more'}"
        if status in (401, 403):
            variable = self.endpoint.api_key_env
            return ModelUnavailable(
                said,
                hint=f"Check the key in {variable}." if variable else "Set api_key_env to the variable with the key.",
            )
        if status == 404 or 300 <= status < 400:
            return ModelUnavailable(said, hint=f"Check base_url, and the model's name {self.endpoint.model!r}.")
        if status == 429 or status >= 500:
            return ModelUnavailable(said, hint="Try again later, or look at the server's log.")
        return CallerError(said, field="messages")

    def _silent(self, when: str) -> ModelUnavailable:
        return ModelUnavailable(
            f"{self.url} sent nothing for {self.endpoint.timeout:g} seconds {when}.",
            hint="See whether the server is busy or stuck, or set a longer timeout.",
        )

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    @property
    def _key(self) -> str:
        variable = self.endpoint.api_key_env
        key = os.environ.get(variable, "") if variable else ""
        if variable and not key.strip():
            raise ModelUnavailable(f"The key of {self.name} is missing.", hint=f"Set the variable {variable}.")
        return key.strip()

    @cached_property
    def _tls(self) -> ssl.SSLContext | bool:
        """Certificates take 20 ms to read: once, and only where they are needed."""
        import httpx

        return httpx.create_ssl_context() if self.url.startswith("https:") else False

    def _estimated(self, messages: Sequence[Message], reader: StreamReader) -> Usage:
        prompt = sum(self.count_tokens(message.content) + 4 for message in messages)
        return Usage(prompt, self.count_tokens(reader.content + reader.arguments))


def _body(
    model: str, messages: Sequence[Message], tools: Sequence[ToolSpec], choice: ToolChoice, params: GenerationParams
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": [_wire(message) for message in messages],
        "temperature": params.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if tools:
        # More servers enforce a tool's name than "required": where there is but one tool, the two are the same.
        name = choice.name or (tools[0].name if choice.mode == "required" and len(tools) == 1 else None)
        named = {"type": "function", "function": {"name": name}}
        body |= {"tools": [tool.to_openai() for tool in tools], "tool_choice": named if name else choice.mode}
    if params.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": params.logprobs}
    optional = {"max_tokens": params.max_tokens, "stop": list(params.stop) or None, "seed": params.seed}
    body |= {key: value for key, value in optional.items() if value is not None}
    return body | {key: value for key, value in _sampling(params).items() if value != NEUTRAL.get(key, 0)}


def _sampling(params: GenerationParams) -> dict[str, Any]:
    """How to sample beyond the temperature, by OpenAI's names, and vLLM's where OpenAI has none."""
    return {
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "repetition_penalty": params.repetition_penalty,
        "logit_bias": {str(token): bias for token, bias in params.logit_bias.items()},
        "stop_token_ids": sorted(params.stop_ids),
    }


def _wire(message: Message) -> dict[str, Any]:
    """OpenAI allows `content: null` beside calls; llama-cpp-python refuses it, and nobody refuses empty text."""
    return {**message.to_openai(), "content": message.content}


def _constrained(constraint: Constraint | None, plain_schema: bool) -> dict[str, Any]:
    """OpenAI's own field for a schema; for the others what vLLM (new, old) and SGLang understand and others ignore."""
    if constraint is None:
        return {}
    if isinstance(constraint, JsonSchema):
        schema = dict(constraint.schema)
        if plain_schema:
            return {"response_format": {"type": "json_object", "schema": schema}}
        wrapped = {"name": "answer", "schema": schema, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": wrapped}}
    if isinstance(constraint, Regex):
        pattern = constraint.pattern
        return {"structured_outputs": {"regex": pattern}, "guided_regex": pattern, "regex": pattern}
    options = list(constraint.options)
    either = "(" + "|".join(re.escape(option) for option in options) + ")"
    return {"structured_outputs": {"choice": options}, "guided_choice": options, "regex": either}


def _check_constraint(constraint: Constraint | None) -> None:
    if isinstance(constraint, JsonSchema):
        check_schema(constraint.schema, "response_format")
    elif constraint is not None:
        constraint_grammar(constraint)


def _check_answer(text: str, constraint: Constraint, server: str, cut: bool) -> None:
    """Refuse an answer outside its constraint: a server that does not know the field ignores it.

    Of an answer that was `cut` by its budget, only a choice can still be judged.
    """
    if isinstance(constraint, Choice):
        fits = text in constraint.options or (cut and any(option.startswith(text) for option in constraint.options))
    elif cut:
        fits = True
    elif isinstance(constraint, Regex):
        fits = _matches(text, constraint.pattern)
    else:
        fits = _is_valid(text, constraint.schema)
    if not fits:
        raise ModelUnavailable(
            f"{server} answered outside the constraint: {text[:100]!r}.",
            hint="The server does not enforce it. Use one that does (vLLM, SGLang, llama.cpp's), or a local model.",
        )


def _matches(text: str, pattern: str) -> bool:
    from pydantic import StringConstraints, TypeAdapter, ValidationError

    # pydantic's regular expressions take linear time, whatever the pattern.
    whole: TypeAdapter[str] = TypeAdapter(Annotated[str, StringConstraints(pattern=rf"\A(?:{pattern})\z")])
    try:
        whole.validate_python(text)
    except ValidationError:
        return False
    return True


def _is_valid(text: str, schema: Mapping[str, Any]) -> bool:
    try:
        return not misfit(json.loads(text), schema)
    except ValueError:
        return False


def _wait(attempt: int, asked: str | None = None) -> float:
    seconds = 0.25 * 2.0**attempt
    if asked and asked.strip().isdecimal():
        seconds = max(seconds, float(asked))
    return min(seconds, LONGEST_WAIT)
