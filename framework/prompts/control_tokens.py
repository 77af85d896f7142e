"""Text that is not ours never becomes a control token.

A prompt is one string by the time it is tokenized, and there `<|im_end|>` means the end of a turn, whoever wrote it. So
`guard` puts a mark into every control token that stands in a message's text, the template is rendered, and `encode`
takes the marks out again while it encodes the marked ones as the plain characters that they are.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from framework.errors import CallerError
from framework.messages import Role

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Half a surrogate pair is no text, so it is in no message that `guard` lets through.
MARK = "\ud800"
SURROGATES = re.compile("[\ud800-\udfff]")


class ControlTokens:
    """The control tokens of one tokenizer.

    Args:
        tokenizer_json: content of `tokenizer.json`.
    """

    def __init__(self, tokenizer_json: str) -> None:
        from tokenizers import Tokenizer

        self.tokenizer: Tokenizer = Tokenizer.from_str(tokenizer_json)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        added = self.tokenizer.get_added_tokens_decoder()
        self.special = {id_ for id_, token in added.items() if token.special}
        self._all = {id_: token.content for id_, token in added.items()}
        self._pattern = _pattern(list(self._all.values()))
        self._special_pattern = _pattern([self._all[id_] for id_ in self.special])
        values = json.loads(tokenizer_json)
        values["added_tokens"] = []
        self._plain: Tokenizer = Tokenizer.from_str(json.dumps(values))
        self._plain.no_truncation()
        self._plain.no_padding()

    def guard(self, text: str, role: Role) -> str:
        """The text with a mark in each control token.

        An assistant's own turn may hold added tokens that are not special, such as `<think>`, as it wrote them.

        Raises:
            CallerError: the text has half a surrogate pair.
        """
        if not text.isascii() and (half := SURROGATES.search(text)):
            raise CallerError(
                f"The text has half a surrogate pair, {half[0]!r}, at character {half.start()}.",
                hint="Send whole characters.",
                field="messages",
            )
        pattern = self._special_pattern if role == "assistant" else self._pattern
        return pattern.sub(lambda found: found[0][0] + MARK + found[0][1:], text)

    def encode(self, rendered: str) -> list[int]:
        """Token ids of a rendered prompt; marked control tokens become plain text."""
        pieces = rendered.split(MARK)
        text = "".join(pieces)
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        if len(pieces) == 1:
            return list(encoding.ids)
        marked, place = set(), 0
        for piece in pieces[:-1]:
            place += len(piece)
            marked.add(place)
        ids: list[int] = []
        for id_, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if id_ in self._all and any(place in marked for place in range(start + 1, end)):
                ids += self._as_text(text[start:end])
            else:
                ids.append(id_)
        return ids

    def _as_text(self, token: str) -> list[int]:
        ids = list(self._plain.encode(token, add_special_tokens=False).ids)
        if not set(ids) & set(self._all):
            return ids
        # A vocabulary that holds the token as a word of its own; its parts are none.
        return [
            id_ for part in (token[:1], token[1:]) for id_ in self._plain.encode(part, add_special_tokens=False).ids
        ]

    def count(self, text: str) -> int:
        """Tokens in a text, as one message's content."""
        return len(self.encode(self.guard(text, "user")))


def _pattern(tokens: list[str]) -> re.Pattern[str]:
    longest_first = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
