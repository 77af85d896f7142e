"""Constrained decoding: what an answer must look like, as a grammar, and as a mask over the next token.

A grammar is text for llguidance (https://github.com/guidance-ai/llguidance). A `Matcher` walks it with token ids: ids
in, mask out, no model and no tensor, so that any decoding loop can use it. Schemas are bounded first (see json_schema),
and near the end of the budget `Vocabulary.closing` leaves only what closes the JSON that is open.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from framework.errors import CallerError
from framework.messages import ToolSpec
from framework.models.base import Choice, Constraint, JsonSchema, Regex, ToolChoice
from framework.models.json_schema import bound
from framework.prompts.tool_formats import CALL, CALL_SUFFIX, call_prefix

RESERVE = 32  # tokens kept for what closes a call, beside what each open value still needs
MAX_WRITTEN_OUT = 50_000  # characters of a pattern or of a choice; beyond, a single mask takes tenths of a second
QUOTED = re.compile(r"\s*[0-9]+ \|")  # a line of the grammar in the compiler's message
SAMPLE = 8_000  # characters of a grammar that tell how many tokens a character takes
PATTERN_PARTS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*(?:\]|\Z)|\{(?P<count>[0-9]+)(?:,[0-9]*)?\}|.", re.DOTALL)
# No \u escapes: they could write half a surrogate pair, which is no text. White space is fixed, so it can't run on.
JSON_STYLE = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrbtf\\"',
}


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar, and how many characters any value in it needs at the least; 0: the answer can be cut anywhere."""

    text: str
    largest: int = 0


def check_schema(schema: Mapping[str, Any] | bool, field: str = "schema") -> None:
    """Refuse a JSON schema that can't constrain an answer. It mostly takes a few milliseconds; its size is bounded.

    Raises:
        CallerError: invalid, too large, referring to elsewhere or to itself without end, or with keywords or patterns
            that decoding can't enforce; the message says which, `field` is the one given.
    """
    _check_grammar(_schema_grammar(bound(schema, field).schema), field)


def constraint_grammar(constraint: Constraint, field: str = "response_format") -> Grammar:
    """The grammar of an answer under a constraint.

    Raises:
        CallerError: the schema, pattern or list of choices is wrong; `field` is the one given.
    """
    if isinstance(constraint, JsonSchema):
        bounded = bound(constraint.schema, field)
        grammar = Grammar(_schema_grammar(bounded.schema), bounded.largest)
    elif isinstance(constraint, Regex):
        _bound(written_out(constraint.pattern), field)
        # The whole answer has to match as it is, so anchors at its ends say nothing, and the compiler knows none.
        pattern = re.sub(r"^\^|(?<!\\)\$$", "", constraint.pattern)
        # As in JSON schema, \\d and \\w are ASCII's: Unicode has hundreds of digits that nobody means.
        grammar = Grammar(f"%llguidance {{}}\nstart: /{_llguidance().regex_to_lark(pattern, 'dw')}/")
    else:
        grammar = Grammar(_choice_grammar(constraint, field))
    _check_grammar(grammar.text, field)
    return grammar


def written_out(pattern: str) -> int:
    """Characters of a regular expression in which every repetition stands as often as it must at the least."""
    outer: list[tuple[int, int]] = []
    longest = before = last = 0  # characters of the group's longest alternative, of this one's start, of its last part
    for found in PATTERN_PARTS.finditer(pattern):
        part = found[0]
        if part == "(":
            outer.append((longest, before + last))
            longest = before = last = 0
        elif part == ")" and outer:
            last = max(longest, before + last)
            longest, before = outer.pop()
        elif part == "|":
            longest, before, last = max(longest, before + last), 0, 0
        elif found["count"]:
            last *= max(int(found["count"][:9]), 1)
        elif part not in "*+?":
            before, last = before + last, 1
    return max(longest, before + last)


def _bound(size: int, field: str) -> None:
    if size > MAX_WRITTEN_OUT:
        raise CallerError(
            f"Written out the constraint has {size} characters, the limit is {MAX_WRITTEN_OUT}.",
            hint="Repeat less.",
            field=field,
        )


def tool_grammar(tools: Sequence[ToolSpec], choice: ToolChoice, calls: int = 1) -> Grammar | None:
    """The grammar of an answer that may (`auto`) or must call tools; None where it is plain text.

    Args:
        calls: most calls in one answer; a named tool is called once.

    Raises:
        CallerError: a tool's parameters are no usable schema; `field` names the tool's place.
    """
    if not tools or choice.mode == "none":
        return None
    chosen = [(place, tool) for place, tool in enumerate(tools) if choice.name in (None, tool.name)]
    keys = tuple((place, tool.name, json.dumps(tool.parameters, default=dict)) for place, tool in chosen)
    return _tool_grammar(keys, choice.mode == "auto", 1 if choice.name else calls)


@lru_cache(maxsize=64)
def _tool_grammar(tools: tuple[tuple[int, str, str], ...], free_text: bool, calls: int) -> Grammar:
    rules, largest = [], 1
    for number, (place, name, parameters) in enumerate(tools):
        field = f"tools.{place}.function.parameters"
        bounded = bound(_as_object(json.loads(parameters), field), field)
        _check_grammar(_schema_grammar(bounded.schema), field)
        before = json.dumps(call_prefix(name).removeprefix(CALL), ensure_ascii=False)
        rules.append(f"tool_{number}: {before} %json {_styled(bounded.schema)} {json.dumps(CALL_SUFFIX)}")
        largest = max(largest, bounded.largest)
    body = " | ".join(f"tool_{number}" for number in range(len(tools)))
    more = f'("\\n" call){{0,{calls - 1}}}' if calls > 1 else ""
    # A lazy lexeme ends at the first tag, where the free text's alternative dies.
    start = f"TEXT | first {more}" if free_text else f"call {more}"
    text = [
        "%llguidance {}",
        f"start: {start}",
        f'call: "{CALL}" body',
        f"body: {body}",
        *rules,
        *(["TEXT: /(.|\\n)*/", f'opening[lazy]: TEXT "{CALL}"', "first: opening body"] if free_text else []),
    ]
    return Grammar("\n".join(text), largest)


def _as_object(parameters: Any, field: str) -> dict[str, Any]:
    """A tool without declared parameters takes none."""
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise CallerError("A tool's parameters are a JSON schema of type object.", field=field)
    node = {**parameters, "type": "object"}
    if not set(node) & {"properties", "patternProperties", "additionalProperties", "anyOf", "oneOf", "allOf", "$ref"}:
        node["additionalProperties"] = False
    if node.get("properties") == {}:
        node.setdefault("additionalProperties", False)
    return node


def _choice_grammar(choice: Choice, field: str) -> str:
    given: object = choice.options
    if isinstance(given, str):  # its characters would be the options
        raise CallerError(f"The options of a choice are a tuple of strings, got {given!r}.", field=field)
    if not choice.options or not all(choice.options):
        raise CallerError("A choice needs at least one option, and none that is empty.", field=field)
    _bound(sum(map(len, choice.options)), field)
    return "%llguidance {}\nstart: " + " | ".join(json.dumps(option, ensure_ascii=False) for option in choice.options)


def _styled(schema: Mapping[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": JSON_STYLE}, ensure_ascii=False)


def _schema_grammar(bounded: Mapping[str, Any]) -> str:
    return f"%llguidance {{}}\nstart: %json {_styled(bounded)}"


def _check_grammar(text: str, field: str) -> None:
    problem = _llguidance().LLMatcher.validate_grammar(text)
    if problem:
        # Beyond its first lines the message quotes the grammar, which is not what the caller wrote.
        lines = [line.strip() for line in problem.splitlines() if line.strip() and not QUOTED.match(line)][:5]
        first = " ".join(lines).partition("failed to compile JSON schema: ")
        raise CallerError(
            f"The constraint can't be enforced while decoding: {(first[2] or first[0])[:300]}",
            hint="Simplify it, or leave it out and check the answer.",
            field=field,
        )


def _llguidance() -> Any:
    import llguidance

    return llguidance


class Vocabulary:
    """A tokenizer's tokens as bytes. One serves all grammars; making it takes about a third of a second.

    Args:
        tokenizer: the JSON of a Hugging Face tokenizer (`tokenizer.json`).
        size: width of the model's logits; it may exceed the tokenizer's own count.
        ends: ids that end an answer.
    """

    def __init__(self, tokenizer: str, size: int, ends: Sequence[int]) -> None:
        self._tokenizer = _llguidance().LLTokenizer(tokenizer, n_vocab=size, eos_token=list(ends))
        self.size = size
        self.ends = tuple(ends)
        self._closing = [self._first_id(text) for text in ("}", "]", '"', ",", "null", "true", "0", "-", "[", "{")]
        self._quote = self._first_id('"')
        self._plain = self._first_id("~")

    def matcher(self, grammar: Grammar) -> Matcher:
        """A walk through a grammar, from its start.

        Raises:
            CallerError: the grammar is too complex for this vocabulary.
        """
        return Matcher(self, grammar, _llguidance().LLMatcher(self._tokenizer, grammar.text, log_level=0))

    def tokens_per_character(self, text: str) -> float:
        """Estimated from the beginning: the tokenizer holds up the whole process for as long as it works."""
        beginning = text[:SAMPLE]
        return len(self._tokenizer.tokenize_str(beginning)) / max(len(beginning), 1)

    def is_free_text(self, allowed: NDArray[np.bool_]) -> bool:
        """Anything may follow, the end too."""
        return bool(allowed[self._plain]) and any(allowed[token] for token in self.ends)

    def token_bytes(self, token: int) -> bytes:
        return cast(bytes, self._tokenizer.decode_bytes([token]))

    def closing(self, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of the allowed tokens the one that comes nearest to the end of the JSON which is open, if there is one.

        Where plain characters are allowed we are in a string, which its quote ends, or in free text, which needs no
        end. Elsewhere brackets go before whatever would open or lengthen something.
        """
        ends = [token for token in self.ends if allowed[token]]
        if self.is_free_text(allowed):
            return allowed
        wanted = [self._quote] if allowed[self._plain] else [*ends, *self._closing]
        for token in wanted:
            if allowed[token]:
                only = np.zeros_like(allowed)
                only[token] = True
                return only
        return allowed

    def _first_id(self, text: str) -> int:
        return int(self._tokenizer.tokenize_str(text)[0])


class Matcher:
    """One answer's way through a grammar."""

    def __init__(self, vocabulary: Vocabulary, grammar: Grammar, matcher: Any) -> None:
        self.vocabulary = vocabulary
        self.grammar = grammar
        self._matcher = matcher
        self._bits = np.zeros((vocabulary.size + 31) // 32, dtype=np.int32)
        self._open = _OpenJson()
        # What a value needs is known in characters; keys and choices are in the grammar, so its text gives the rate.
        self._value = grammar.largest * vocabulary.tokens_per_character(grammar.text) if grammar.largest else 0.0
        self._check()

    @property
    def needed(self) -> int:
        """Tokens, about, that closing what is open takes; 0: nothing needs closing."""
        return int(RESERVE + self._value * (self._open.depth + 1)) if self.grammar.largest else 0

    @property
    def nested(self) -> int:
        """How many of those are for what is open within the outermost object or array."""
        return int(self._value * max(self._open.depth - 1, 0))

    def allowed(self) -> NDArray[np.bool_]:
        """Mask of shape (vocabulary size,): the tokens that may come next, ends of the answer among them.

        Raises:
            CallerError: the grammar grew beyond its limits at this place.
        """
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        mask = cast(NDArray[np.bool_], bits[: self.vocabulary.size].view(np.bool_))
        if self.vocabulary.is_free_text(mask):
            self._open = _OpenJson()  # brackets and quotes of prose open nothing
        return mask

    def consume(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._open.read(self.vocabulary.token_bytes(token))
        self._check()

    def forced(self) -> list[int]:
        """Tokens that must come next, as the tokenizer would write them; they need no model."""
        return list(self._matcher.compute_ff_tokens())

    @property
    def finished(self) -> bool:
        """Nothing can follow."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            problem = str(self._matcher.get_error()).partition("\n")[0][:300]
            raise CallerError(f"The constraint is too complex to be enforced: {problem}.", field="response_format")


class _OpenJson:
    """Counts the brackets that are open in JSON text."""

    def __init__(self) -> None:
        self.depth = 0
        self._in_string = False
        self._escaped = False

    def read(self, text: bytes) -> None:
        for byte in text:
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = byte == ord("\\")
                self._in_string = byte != ord('"')
            elif byte == ord('"'):
                self._in_string = True
            else:
                self.depth += (byte in b"[{") - (byte in b"]}")
