"""Tools in the prompt and calls in the answer, as text that any chat model can read and write.

The form is the one that the Hermes models made common: tools as JSON lines inside `<tools>`, a call as JSON inside
`<tool_call>`, a result inside `<tool_response>`. It is written into ordinary system and user turns, so it needs nothing
of a model's chat template. Each function takes a `guard`, applied to all text that is not ours (see control_tokens).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeAlias

from framework.errors import ModelFault
from framework.messages import Message, Role, ToolCall, ToolSpec

Guard: TypeAlias = Callable[[str, Role], str]
CALL, CALL_END = "<tool_call>", "</tool_call>"
RESPONSE, RESPONSE_END = "<tool_response>", "</tool_response>"
TOOLS, TOOLS_END = "<tools>", "</tools>"
TAGS = (CALL, CALL_END, RESPONSE, RESPONSE_END, TOOLS, TOOLS_END)

NO_TOOL = "None of my tools can do that."  # what a model that was trained to call tools says where none fits

INSTRUCTIONS = f"""You can call these tools. Each line describes one, with the JSON schema of its parameters:
{TOOLS}
{{tools}}
{TOOLS_END}
To call a tool, answer with its name and arguments in this form and nothing else:
{CALL}
{{{{"name": "tool name", "arguments": {{{{"parameter": "value"}}}}}}}}
{CALL_END}
The result comes back between {RESPONSE} and {RESPONSE_END}. Otherwise answer in plain text."""


def turns(messages: Sequence[Message], tools: Sequence[ToolSpec], guard: Guard) -> list[dict[str, str]]:
    """The conversation as plain `role` and `content` turns: system, user and assistant only.

    Tools go into the system turn, calls into the assistant's, results into a user turn; results that follow each other
    share one, since many templates insist that roles alternate.
    """
    written: list[dict[str, str]] = []
    in_use = bool(tools) or any(message.tool_calls or message.role == "tool" for message in messages)
    results = False
    for message in messages:
        content = guard(_without_tags(message) if in_use else message.content, message.role)
        if message.role == "tool":
            content = f"{RESPONSE}\n{content}\n{RESPONSE_END}"
            if results:
                written[-1]["content"] += "\n" + content
            else:
                written.append({"role": "user", "content": content})
        elif message.role == "assistant":
            calls = [format_call(call, guard) for call in message.tool_calls]
            written.append({"role": "assistant", "content": "\n".join(part for part in (content, *calls) if part)})
        else:
            written.append({"role": message.role, "content": content})
        results = message.role == "tool"
    return _with_tools(written, tools, guard) if tools else written


def _with_tools(written: list[dict[str, str]], tools: Sequence[ToolSpec], guard: Guard) -> list[dict[str, str]]:
    text = INSTRUCTIONS.format(tools="\n".join(guard(_describe(tool), "tool") for tool in tools))
    if written[0]["role"] == "system":
        first = {"role": "system", "content": f"{written[0]['content']}\n\n{text}".lstrip()}
        return [first, *written[1:]]
    return [{"role": "system", "content": text}, *written]


def _describe(tool: ToolSpec) -> str:
    whole = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return _escape(json.dumps(whole, ensure_ascii=False))


def call_prefix(name: str) -> str:
    """What stands before the arguments of a call."""
    return f'{CALL}\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '


CALL_SUFFIX = f"}}\n{CALL_END}"


def format_call(call: ToolCall, guard: Guard) -> str:
    return f"{call_prefix(call.name)}{guard(_escape(call.arguments), 'assistant')}{CALL_SUFFIX}"


def _without_tags(message: Message) -> str:
    """Content in which the tags of this form are no tags: `<tool_response>` of a document ends no tool's reply."""
    if message.role not in ("user", "tool"):
        return message.content
    text = message.content
    for tag in TAGS:
        text = text.replace(tag, "&lt;" + tag[1:])
    return text


def _escape(text: str) -> str:
    """The same for JSON text, which has an escape of its own."""
    for tag in TAGS:
        text = text.replace(tag, "\\u003c" + tag[1:])
    return text


class CallReader:
    """Splits generated text into content and calls, piece by piece.

    Content comes out as soon as it can't be the beginning of a call; a call comes out when it is whole, so half a call
    is never seen: `unfinished` tells that one was begun.
    """

    def __init__(self, names: Sequence[str], make_id: Callable[[int], str]) -> None:
        self.names = names
        self.make_id = make_id
        self.count = 0
        self._held = ""
        self._inside = False

    @property
    def unfinished(self) -> bool:
        return self._inside

    @property
    def held(self) -> int:
        """Characters that were read and not given out."""
        return len(self._held)

    def read(self, text: str) -> tuple[str, list[ToolCall]]:
        """The content and the calls that this piece completes."""
        self._held += text
        content: list[str] = []
        calls: list[ToolCall] = []
        while True:
            if not self._inside:
                before, tag, after = self._held.partition(CALL)
                if not tag:
                    keep = partial_suffix(before, (CALL,))
                    content.append(self._shown(before[: len(before) - keep]))
                    self._held = before[len(before) - keep :]
                    break
                content.append(self._shown(before))
                self._held, self._inside = after, True
            call, rest = self._take_call(self._held)
            if call is None:
                break
            calls.append(call)
            self._held, self._inside = rest, False
        return "".join(content), calls

    def _shown(self, text: str) -> str:
        """White space between calls belongs to the form, not to the answer."""
        return "" if self.count and text.isspace() else text

    def flush(self) -> str:
        """Content that was held back as a possible beginning of a call."""
        held, self._held = ("" if self._inside else self._held), ""
        return held

    def _take_call(self, text: str) -> tuple[ToolCall | None, str]:
        # A string among the arguments may hold the end tag too: the call ends at the first one where the JSON is whole.
        end = text.find(CALL_END)
        while end != -1:
            call = self._parse(text[:end].strip())
            if call is not None:
                return call, text[end + len(CALL_END) :]
            end = text.find(CALL_END, end + 1)
        return None, text

    def _parse(self, body: str) -> ToolCall | None:
        try:
            json.loads(body)
        except ValueError:
            return None
        for name in self.names:
            prefix = call_prefix(name).removeprefix(CALL).lstrip()
            if body.startswith(prefix):
                self.count += 1
                return ToolCall(self.make_id(self.count - 1), name, body[len(prefix) : -1])
        raise ModelFault(f"The model wrote a call in a form of its own: {body[:200]}")


def partial_suffix(text: str, markers: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of the markers without completing it."""
    longest = max((len(marker) for marker in markers), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[-length:]
        if any(len(marker) > length and marker.startswith(end) for marker in markers):
            return length
    return 0
