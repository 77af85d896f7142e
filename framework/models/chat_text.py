"""The text side of a chat model's folder: from a conversation to token ids, and what its tokens look like.

All of it is read when first needed, by any of several threads, and needs neither weights nor tensors.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from framework.errors import ModelUnavailable
from framework.messages import Message, ToolSpec
from framework.models.base import AUTO, ToolChoice
from framework.models.constraints import Vocabulary
from framework.prompts.chat_template import ChatTemplate
from framework.prompts.control_tokens import ControlTokens
from framework.prompts.tool_formats import turns

T = TypeVar("T")
_SHARED: WeakValueDictionary[tuple[Path, tuple[tuple[str, int, int], ...]], ChatText] = WeakValueDictionary()
_SHARED_LOCK = threading.Lock()
MOST_TOKENS = 2**22  # of a vocabulary; the sampler counts on it
LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length")


def shared_text(folder: Path, name: str) -> ChatText:
    """The one `ChatText` of a folder's present files: a base's adapters read one tokenizer and render in one process.

    Raises:
        ModelUnavailable: config.json is missing or damaged.
    """
    if not folder.is_dir():
        raise ModelUnavailable(f"The folder {folder} of {name} is gone.")
    stats = ((path.name, path.stat()) for path in sorted(folder.iterdir()) if path.suffix in (".json", ".jinja"))
    key = folder.resolve(), tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats)
    with _SHARED_LOCK:
        found = _SHARED.get(key)
        if found is None:
            found = _SHARED[key] = ChatText(folder, name)
        return found


class ChatText:
    """A folder's tokenizer, chat template and special tokens.

    Args:
        name: the model's, for messages.

    Raises:
        ModelUnavailable: a file is missing or damaged; the message names it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self._config = _read_json(folder / "config.json", name)
        self._text_config: dict[str, Any] = self._config.get("text_config") or self._config
        self._lock = threading.RLock()
        self._read: dict[str, Any] = {}

    @property
    def context_length(self) -> int:
        length = next((self._text_config[key] for key in LENGTHS if isinstance(self._text_config.get(key), int)), None)
        if length is None:
            raise ModelUnavailable(f"{self.folder}/config.json does not tell how long the context of {self.name} is.")
        return int(length)

    def prompt(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], tool_choice: ToolChoice = AUTO
    ) -> list[int]:
        """The token ids that the model continues.

        Raises:
            CallerError: the chat template refuses the conversation.
            ModelUnavailable: the tokenizer wrote a token that the model does not have.
        """
        offered = tools if tool_choice.mode != "none" else ()
        ids = self.tokens.encode(self.template.render(turns(messages, offered, self.tokens.guard)))
        if max(ids, default=0) >= self.vocabulary_size:
            raise ModelUnavailable(
                f"The tokenizer in {self.folder} wrote token {max(ids)}, and {self.name} has tokens 0 to"
                f" {self.vocabulary_size - 1}.",
                hint="Its tokenizer.json and config.json belong to different models.",
            )
        return ids

    @property
    def tokens(self) -> ControlTokens:
        return self._once("tokens", lambda: ControlTokens(self._tokenizer_json()))

    @property
    def template(self) -> ChatTemplate:
        return self._once("template", lambda: ChatTemplate.of_folder(self.folder, self.name))

    @property
    def vocabulary(self) -> Vocabulary:
        return self._once("vocabulary", self._vocabulary)

    @property
    def vocabulary_size(self) -> int:
        """Width of the model's logits; ids of tokens are below it."""
        size = self._text_config.get("vocab_size")
        if not isinstance(size, int) or not 0 < size <= MOST_TOKENS:
            raise ModelUnavailable(
                f"{self.folder}/config.json does not tell how many tokens {self.name} knows: vocab_size is {size!r}."
            )
        return size

    @property
    def ends(self) -> frozenset[int]:
        """Ids that end an answer, from wherever the folder names them."""
        return self._once("ends", self._ends)

    @property
    def strips_space(self) -> bool:
        """The tokenizer's own decoder drops a space in front of the first word."""
        return self._once("strips_space", self._strips_space)

    def close(self) -> None:
        """End the process that renders the template, if there is one."""
        with self._lock:
            if "template" in self._read:
                self._read["template"].close()

    def _once(self, name: str, read: Callable[[], T]) -> T:
        with self._lock:
            if name not in self._read:
                self._read[name] = read()
            found: T = self._read[name]
            return found

    def _tokenizer_json(self) -> str:
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            raise ModelUnavailable(f"{self.name} has no {path}.", hint="Only tokenizers in that form are read.")
        return path.read_text(encoding="utf-8")

    def _vocabulary(self) -> Vocabulary:
        try:
            return Vocabulary(self._tokenizer_json(), self.vocabulary_size, sorted(self.ends))
        except (ValueError, OverflowError) as error:  # the tokenizer has more tokens, or an end is none of them
            raise ModelUnavailable(
                f"The tokenizer in {self.folder} does not fit {self.name}: {str(error)[:300]}.",
                hint="Its tokenizer.json and config.json belong to different models.",
            ) from error

    def _ends(self) -> frozenset[int]:
        tokenizer = _read_json(self.folder / "tokenizer_config.json", self.name, optional=True)
        generation = _read_json(self.folder / "generation_config.json", self.name, optional=True)
        text = tokenizer.get("eos_token")
        named = self.tokens.tokenizer.token_to_id(text["content"] if isinstance(text, dict) else text) if text else None
        found: set[int] = set() if named is None else {named}
        for value in (self._config.get("eos_token_id"), generation.get("eos_token_id")):
            found |= {value} if isinstance(value, int) else set(value or ())
        if not found:
            raise ModelUnavailable(
                f"{self.name} names no token that ends an answer.", hint="Set eos_token_id in its config.json."
            )
        return frozenset(found)

    def _strips_space(self) -> bool:
        ids = self.tokens.tokenizer.encode("a", add_special_tokens=False).ids
        return self.vocabulary.token_bytes(ids[0]).startswith(b" ") and self.tokens.tokenizer.decode(ids) == "a"


def _read_json(path: Path, name: str, optional: bool = False) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise ModelUnavailable(f"{name} has no {path}.") from None
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{path} can't be read: {error}.") from error
    if not isinstance(values, dict):
        raise ModelUnavailable(f"{path} does not hold a JSON object.")
    return values
