"""Chat rows as token ids, by the renderer that serves: what is trained is what is asked and answered later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from framework.errors import CallerError, TooLarge
from framework.messages import Message, ToolSpec, assistant, user
from framework.models.chat_text import ChatText
from framework.prompts.tool_formats import turns
from framework.training.datasets import ChatRow, PreferenceRow


@dataclass(frozen=True, slots=True)
class Example:
    """One answer of an assistant after everything that stands before it.

    Attributes:
        ids: token ids of prompt and answer.
        prompt: how many of them are the prompt's; the loss is on the others.
        document: what the row was made from.
    """

    ids: tuple[int, ...]
    prompt: int
    document: str


@dataclass(frozen=True, slots=True)
class ExamplePair:
    """A better and a worse answer to one prompt, as token ids."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    document: str


class Renderer:
    """Renders rows for one chat model.

    Args:
        text: tokenizer and template of the base.
    """

    def __init__(self, text: ChatText) -> None:
        self.text = text
        self.end = _end_of_answer(text)

    def examples(self, row: ChatRow) -> Iterator[Example]:
        """One example for each of the row's assistant messages.

        Raises:
            CallerError: the row has none, or the model's chat template refuses it.
        """
        answers = [place for place, message in enumerate(row.messages) if message.role == "assistant"]
        if not answers or answers[0] == 0:
            raise CallerError("A chat row needs an assistant's message after another one.", field="messages")
        for place in answers:
            prompt = self.text.prompt(row.messages[:place], row.tools)
            answer = self.answer(row.messages[place], row.tools)
            yield Example((*prompt, *answer), len(prompt), row.document)

    def pair(self, row: PreferenceRow) -> ExamplePair:
        """The prompt and both answers."""
        prompt = self.text.prompt(row.prompt, row.tools)
        chosen, rejected = (self.answer(message, row.tools) for message in (row.chosen, row.rejected))
        return ExamplePair(tuple(prompt), chosen, rejected, row.document)

    def answer(self, message: Message, tools: Sequence[ToolSpec] = ()) -> tuple[int, ...]:
        """The tokens that the model has to write: content and calls, and the end of the turn."""
        # Tags of tool calls are only told apart from text where tools are in use: a user's turn stands before.
        content = turns([user(""), message], tools, self.text.tokens.guard)[-1]["content"]
        return (*self.text.tokens.encode(content), self.end)


def check_length(tokens: int, limit: int, document: str) -> None:
    """Raises: TooLarge: an example is longer than `data.max_length`."""
    if tokens > limit:
        raise TooLarge(
            f"An example of {document!r} has {tokens} tokens, the limit is {limit}.",
            hint="Shorten it, or raise data.max_length.",
            field="data.max_length",
        )


def _end_of_answer(text: ChatText) -> int:
    """The token by which the chat template ends an assistant's turn."""
    before = text.prompt([user("a")], ())
    whole = text.prompt([user("a"), assistant("b"), user("c")], ())
    for token in whole[len(before) :]:
        if token in text.ends:
            return token
    return min(text.ends)
