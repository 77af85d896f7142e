from __future__ import annotations

import json
import time
import uuid
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from framework.errors import CallerError
from framework.messages import ToolSpec
from framework.models.base import AUTO, NONE, REQUIRED, Choice, JsonSchema, Regex, ToolChoice
from framework.models.constraints import Grammar, Vocabulary, check_schema, constraint_grammar, tool_grammar
from framework.models.grammar_mask import GrammarMask
from framework.models.json_schema import ARRAY_LIMIT, STRING_LIMIT, bound
from framework.prompts.tool_formats import CallReader


class Leaf(BaseModel):
    kind: Literal["leaf"]
    value: int = Field(ge=0)


class Branch(BaseModel):
    kind: Literal["branch"]
    children: list[Annotated[Leaf | Branch, Field(discriminator="kind")]] = []


class Order(BaseModel):
    """What pydantic makes of everyday annotations."""

    customer: str
    note: str | None = None
    tags: set[str]
    prices: dict[str, float]
    weekday: dict[Literal["mon", "tue"], int]
    state: Literal["open", "shipped"]
    position: tuple[int, str]
    made: datetime
    id: uuid.UUID
    tree: Branch
    anything: Any = None
    share: float = Field(gt=0, lt=1)


def endless(count: int) -> dict[str, Any]:
    chain = {f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}, "minItems": 1} for i in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**chain, f"d{count}": {"type": "string"}}}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def of_string(**keys: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": {"type": "string", **keys}}, "required": ["a"]}


BAD = {
    "not an object": (5, "is an object"),
    "an unknown type": ({"type": "text"}, "#/type"),
    "malformed properties": ({"properties": 5}, "#/properties"),
    "a reference to itself": ({"$ref": "#"}, "without end"),
    "two references in a circle": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        "without end",
    ),
    "a required property of its own kind": (
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        "without end",
    ),
    "another document": ({"$ref": "https://example.org/schema.json"}, "example.org"),
    "a dangling reference": ({"$ref": "#/$defs/none"}, "not in the schema"),
    "a keyword that no grammar has": ({"type": "object", "properties": {"a": {"not": {}}}}, "#/properties/a/not"),
    "a value that can't be written": ({"enum": ["a", "b\x17"]}, "'b\\x17'"),
    "a delete character": ({"const": {"a": ["\x7f"]}}, "can't write exactly"),
    "a name that can't be written": ({"properties": {"b\x00": {}}}, "'b\\x00'"),
    "a number that floats can't hold": ({"properties": {"a": {"const": 2**53 + 1}}}, "9007199254740993"),
    "no solution": ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
    "an unclosed pattern": (of_string(pattern="("), "regex"),
    "a look-ahead": (of_string(pattern="(?=a)b"), "look-around"),
    "an enormous string": (of_string(minLength=10**6), "1000011 characters"),
    "an enormous array": (
        {"type": "array", "minItems": 900, "items": {"type": "array", "minItems": 900, "items": {"type": "null"}}},
        "characters",
    ),
    "an enormous enum": ({"enum": [str(i) for i in range(200_000)]}, "100000 values"),
    "thousands of properties": ({"properties": {f"p{i}": {} for i in range(6000)}}, "2000 objects"),
    "a chain of references": (endless(2000), "128 definitions"),
    "deep nesting": (deep(10_000), "64 levels"),
}


@pytest.mark.parametrize(("schema", "told"), BAD.values(), ids=BAD.keys())
def test_an_impossible_schema_is_refused_by_name_and_soon(schema: Any, told: str) -> None:
    start = time.monotonic()
    with pytest.raises(CallerError) as refused:
        check_schema(schema, "tools.0.function.parameters")
    assert told in str(refused.value)
    assert refused.value.field == "tools.0.function.parameters"
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("pattern", ["(a|aa)+$", "(x+x+)+y", r"(\w+\s?)*$", "((((a{1,100}){1,100}){1,100}){1,100})"])
def test_a_catastrophic_pattern_costs_no_time(pattern: str, vocabulary: Vocabulary) -> None:
    """It is either refused, or walked in linear time until it grows beyond its limits."""
    start = time.monotonic()
    try:
        check_schema(of_string(pattern=pattern))
        generate(vocabulary, constraint_grammar(JsonSchema(of_string(pattern=pattern))), seed=0, budget=200)
    except CallerError:
        pass
    assert time.monotonic() - start < 5


def test_a_tree_of_pydantic_models_is_accepted() -> None:
    check_schema(Order.model_json_schema())


def test_large_but_honest_schemas_are_accepted() -> None:
    check_schema({"enum": [str(i) for i in range(20_000)]})
    check_schema({"properties": {f"p{i}": {"type": "string"} for i in range(1000)}})
    check_schema(endless(100))
    check_schema(deep(30))


def test_sizes_left_open_are_bounded_and_those_given_are_kept() -> None:
    schema = {
        "type": "object",
        "properties": {
            "open": {"type": "string", "title": "Open", "description": "…"},
            "own": {"type": "string", "maxLength": 5},
            "long": {"type": "string", "minLength": STRING_LIMIT + 1},
            "list": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        },
    }
    properties = bound(schema).schema["properties"]
    assert properties["open"] == {"type": "string", "maxLength": STRING_LIMIT}
    assert properties["own"]["maxLength"] == 5
    assert properties["long"]["maxLength"] == STRING_LIMIT + 1
    assert properties["list"]["maxItems"] == ARRAY_LIMIT
    assert properties["list"]["items"] == {"type": "integer", "minimum": 0, "maximum": 1e15}
    assert bound(schema).schema["additionalProperties"] is False


def test_parts_of_all_of_do_not_forbid_each_others_properties(vocabulary: Vocabulary) -> None:
    parts = [{"type": "object", "properties": {name: {"type": "null"}}, "required": [name]} for name in ("a", "b")]
    grammar = constraint_grammar(JsonSchema({"allOf": parts}))
    assert json.loads(generate(vocabulary, grammar, seed=1, budget=60)[0]).keys() >= {"a", "b"}


def generate(vocabulary: Vocabulary, grammar: Grammar, seed: int, budget: int) -> tuple[str, GrammarMask]:
    """What a model with random logits writes under a grammar."""
    random = np.random.default_rng(seed)
    mask = GrammarMask(vocabulary.matcher(grammar), budget, vocabulary.ends, forces=False)
    written = bytearray()
    while mask.left and not mask.finished:
        logits = random.normal(0, 3, vocabulary.size).astype(np.float32)
        drawn = np.argmax(np.where(mask.allowed(), logits + random.gumbel(size=vocabulary.size), -np.inf))
        token = mask.accept(int(drawn), partial(np.copy, logits))
        written += b"" if mask.ended else vocabulary.token_bytes(token)
    return written.decode("utf-8", errors="replace"), mask


def objects(children: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.text('abcdeü"\\ {}', min_size=1, max_size=5)
    return st.dictionaries(names, children, max_size=3).flatmap(
        lambda properties: st.sets(st.sampled_from(sorted(properties)) if properties else st.nothing()).map(
            lambda required: {"type": "object", "properties": properties, "required": sorted(required)}
        )
    )


PRINTED = st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from('\n\t"\\')
LEAVES = st.one_of(
    st.just({"type": "string"}),
    st.integers(0, 4).map(lambda n: {"type": "string", "minLength": n, "maxLength": n + 3}),
    st.just({"type": "string", "pattern": "^[a-z]{2}-[0-9]+$"}),
    st.just({"type": "string", "format": "date"}),
    st.just({"type": "boolean"}),
    st.just({"type": ["integer", "null"]}),
    st.integers(-5, 5).map(lambda n: {"type": "integer", "minimum": n, "maximum": n + 10}),
    st.just({"type": "number", "exclusiveMinimum": 0}),
    st.lists(st.text(PRINTED, max_size=4) | st.integers(-(2**53), 2**53), min_size=1, max_size=3).map(
        lambda values: {"enum": values}
    ),
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda children: st.one_of(
        objects(children),
        children.map(lambda item: {"type": "array", "items": item}),
        children.map(lambda item: {"type": "array", "items": item, "minItems": 1, "maxItems": 2}),
        st.tuples(children, children).map(lambda pair: {"anyOf": list(pair)}),
        children.map(lambda item: {"type": "object", "additionalProperties": item}),
    ),
    max_leaves=5,
)


@given(schema=objects(SCHEMAS), seed=st.integers(0, 2**32 - 1), auto=st.booleans())
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_the_logits_a_call_is_whole_and_its_arguments_fit_the_schema(
    vocabulary: Vocabulary, schema: dict[str, Any], seed: int, auto: bool
) -> None:
    tools = [ToolSpec("first", "", {"type": "object"}), ToolSpec('se"cond', "", schema)]
    grammar = tool_grammar(tools, AUTO if auto else ToolChoice.named('se"cond'))
    assert grammar is not None
    text, _ = generate(vocabulary, grammar, seed, budget=700)
    reader = CallReader([tool.name for tool in tools], str)
    _, calls = reader.read(text)
    assert not reader.unfinished
    assert auto or len(calls) == 1
    for call in calls:
        wanted = {"first": {"type": "object", "maxProperties": 0}, 'se"cond': schema}[call.name]
        Draft202012Validator(wanted).validate(json.loads(call.arguments))


def test_a_recursive_schema_ends_within_the_budget(vocabulary: Vocabulary) -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#"}, "text": {"type": "string"}}, "required": ["text"]}
    grammar = constraint_grammar(JsonSchema(node))
    for seed in range(20):
        text, _ = generate(vocabulary, grammar, seed, budget=120)
        Draft202012Validator(node).validate(json.loads(text))


def test_it_is_told_when_the_budget_and_not_the_model_closed_a_string(vocabulary: Vocabulary) -> None:
    grammar = constraint_grammar(JsonSchema(of_string(minLength=60)))
    text, mask = generate(vocabulary, grammar, seed=3, budget=150)
    assert json.loads(text).keys() == {"a"}
    assert mask.cut
    short = constraint_grammar(JsonSchema({"type": "boolean"}))
    assert not generate(vocabulary, short, seed=3, budget=150)[1].cut


def test_no_escape_can_write_half_a_surrogate_pair(vocabulary: Vocabulary) -> None:
    matcher = vocabulary.matcher(constraint_grammar(JsonSchema({"type": "string"})))
    for char in b'"\\':
        matcher.consume(next(t for t in range(vocabulary.size) if vocabulary.token_bytes(t) == bytes([char])))
    after = {vocabulary.token_bytes(token) for token in map(int, np.flatnonzero(matcher.allowed()))}
    assert not any(text.startswith(b"u") for text in after)
    assert b"n" in after


@pytest.mark.parametrize("options", [("yes", "no"), ("a/b", 'say "x"', "\n"), ("über",)])
def test_a_choice_is_one_of_its_options(vocabulary: Vocabulary, options: tuple[str, ...]) -> None:
    grammar = constraint_grammar(Choice(options))
    assert {generate(vocabulary, grammar, seed, 30)[0] for seed in range(12)} <= set(options)


def test_a_choice_s_options_are_not_the_characters_of_one_string() -> None:
    with pytest.raises(CallerError, match="tuple of strings, got 'yes'"):
        constraint_grammar(Choice("yes"))  # type: ignore[arg-type]  # a user's slip


def test_a_regular_expression_is_matched_whole_and_its_classes_are_ascii(vocabulary: Vocabulary) -> None:
    grammar = constraint_grammar(Regex(r"^\d{2}/\w{3}\$$"))
    for seed in range(10):
        text = generate(vocabulary, grammar, seed, 30)[0]
        assert len(text) == 7
        assert text.isascii()
        assert text[2] == "/"
        assert text[-1] == "$"


@pytest.mark.parametrize("constraint", [Choice(()), Choice(("a", "")), Regex("("), JsonSchema({"type": "x"})])
def test_an_impossible_constraint_names_the_response_format(constraint: Any) -> None:
    with pytest.raises(CallerError) as refused:
        constraint_grammar(constraint)
    assert refused.value.field == "response_format"


def test_the_faulty_tool_is_named_by_its_place() -> None:
    good, bad = ToolSpec("good", "", {"type": "object"}), ToolSpec("bad", "", {"type": "array"})
    with pytest.raises(CallerError) as refused:
        tool_grammar([good, bad], REQUIRED)
    assert refused.value.field == "tools.1.function.parameters"
    assert tool_grammar([good, bad], NONE) is None
    assert tool_grammar([good, bad], ToolChoice.named("good")) is not None


def test_free_text_is_any_text_but_what_opens_a_call_must_become_one(vocabulary: Vocabulary) -> None:
    grammar = tool_grammar([ToolSpec("go", "", {"type": "object"})], AUTO)
    assert grammar is not None
    matcher = vocabulary.matcher(grammar)
    for token in tokens_of(vocabulary, b"Well <tool_cal then <tool_call>"):
        assert matcher.allowed()[token]
        matcher.consume(token)
    assert not matcher.allowed()[1], "the answer can't end in a call that has only begun"
    forced = matcher.forced()
    assert b"".join(map(vocabulary.token_bytes, forced)) == b'\n{"name": "go", "arguments": {}}\n</tool_call>'
    for token in forced:
        matcher.consume(token)
    assert matcher.finished


def tokens_of(vocabulary: Vocabulary, text: bytes) -> list[int]:
    single = {vocabulary.token_bytes(token): token for token in range(2, vocabulary.size)}
    return [single[bytes([byte])] for byte in text]


def test_the_length_of_a_grammar_in_tokens_is_told_from_its_beginning(vocabulary: Vocabulary) -> None:
    """The tokenizer lets no other thread work, and half a second of it is felt by everyone who is being served."""
    beginning = "~" * 8_000
    assert vocabulary.tokens_per_character(beginning + '{"name": true}' * 100_000) == 1.0
    assert vocabulary.tokens_per_character("") == 0.0


def test_a_refusal_does_not_quote_our_own_grammar() -> None:
    with pytest.raises(CallerError) as refused:
        constraint_grammar(Regex("("))
    assert "unclosed group" in str(refused.value)
    assert "llguidance" not in str(refused.value)
