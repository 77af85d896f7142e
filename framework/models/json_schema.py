"""JSON schemas made fit for decoding: checked, closed and bounded, so that a model under their grammar comes to an end.

`bound` keeps what a schema demands and drops what only describes. Where the schema leaves a size open, it sets one: the
result accepts less than the schema, never more. What a grammar can't enforce is refused by name, with one exception:
`uniqueItems` is left to whoever validates the answer, since pydantic writes it for every set.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from framework.errors import CallerError

STRING_LIMIT = 2_000  # characters of a string that the schema leaves open
ARRAY_LIMIT = 64  # items of an array that the schema leaves open
KEY_LIMIT = 32  # keys of an object without declared properties
NUMBER_LIMIT = 1e15
NUMBER_STEP = 1e-9  # the finest step of a number, so that its decimals end
MAX_DEPTH = 64
MAX_OBJECTS = 2_000  # objects in a schema; looking one over takes up to half a millisecond
MAX_NODES = 100_000  # JSON values in a schema; 50,000 enum values compile in 0.1 s, a million would not be a tool's
MAX_REFERENCES = 128  # targets of references; a chain of 1,000 overflows the stack of the grammar's compiler
MAX_SMALLEST = 20_000  # characters of the smallest answer that the schema allows

KEPT = {"type", "enum", "const", "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "multipleOf"}
KEPT |= {"exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems", "minProperties", "maxProperties", "required"}
REFUSED = {"not", "if", "then", "else", "contains", "minContains", "maxContains", "dependentRequired", "dependencies"}
REFUSED |= {"dependentSchemas", "unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef"}
FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
CONTROLS = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")  # all but those with a short escape in JSON
COMBINED = ("anyOf", "oneOf", "allOf")
ROUNDS = 20  # of the search for the smallest answer; real schemas need two or three


@dataclass(frozen=True, slots=True)
class Bounded:
    """A schema fit for decoding, and about how many characters the largest of its values needs at the least."""

    schema: dict[str, Any]
    largest: int


def bound(schema: Mapping[str, Any] | bool, field: str = "schema") -> Bounded:
    """The schema without annotations, with every reference under `$defs`, and with a limit wherever it had none.

    Raises:
        CallerError: the schema is too large or too deep, refers to another document, to nothing, or to itself without
            end, its smallest answer is enormous, or it uses a keyword that decoding can't enforce.
    """
    if not isinstance(schema, Mapping | bool):
        raise CallerError(f"A JSON schema is an object, got {type(schema).__name__}.", field=field)
    measure(schema, field)
    _refuse_invalid(schema, field)
    writer = _Bounder(schema, field)
    root = writer.node(schema, "#", closed=True)
    result = root if isinstance(root, dict) else ({} if root else {"enum": []})
    definitions = writer.definitions()
    largest = _largest_value(result, definitions, field)
    return Bounded({**result, "$defs": definitions} if definitions else result, largest)


def measure(schema: Any, field: str) -> None:
    """Refuse by size and depth, without recursion, so that everything after it may recurse.

    Raises:
        CallerError: a limit is exceeded.
    """
    nodes, objects, left = 0, 0, [(schema, 0)]
    targets: set[str] = set()
    while left:
        value, depth = left.pop()
        nodes += 1
        children: Iterable[Any] = ()
        if isinstance(value, Mapping):
            objects += 1
            children = value.values()
            if isinstance(value.get("$ref"), str):
                targets.add(value["$ref"])
        elif isinstance(value, list | tuple):
            children = value
        for count, limit, what in (
            (depth, MAX_DEPTH, "levels"),
            (nodes, MAX_NODES, "values"),
            (objects, MAX_OBJECTS, "objects"),
            (len(targets), MAX_REFERENCES, "definitions that it refers to"),
        ):
            if count > limit:
                raise CallerError(f"The schema has more than {limit} {what}.", hint="Make it smaller.", field=field)
        left.extend((child, depth + 1) for child in children)


def misfit(value: Any, schema: Mapping[str, Any]) -> str:
    """What is wrong with a value under a schema; empty where it fits. References to other documents are not fetched."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    dialect = validator_for(schema, default=Draft202012Validator)
    try:
        return next((fault.message for fault in dialect(schema, registry=Registry()).iter_errors(value)), "")
    except (Unresolvable, re.error) as error:
        return f"the schema can't be applied: {error}"
    except RecursionError:
        return "the schema can't be applied: it refers to itself without end"


def _refuse_invalid(schema: Any, field: str) -> None:
    from jsonschema import FormatChecker, SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for

    dialect = validator_for(schema, default=Draft202012Validator)
    try:
        # No format is checked: a pattern of ECMA's syntax need not be one of Python's.
        dialect.check_schema(schema, format_checker=FormatChecker(formats=()))  # type: ignore[call-arg]  # stubs lack it
    except SchemaError as error:
        place = "/".join(str(part) for part in ("#", *error.absolute_path))
        raise CallerError(
            f"The schema's {place} is not valid JSON schema: {error.message[:300]}.", field=field
        ) from error


class _Bounder:
    """Rewrites one schema. Targets of references are rewritten once each and collected.

    `closed` says that an object here may be forbidden the properties which it does not declare. Under `allOf`, and
    beside other keywords, it may not: each part would then forbid what its neighbour declares.
    """

    def __init__(self, root: Mapping[str, Any] | bool, field: str) -> None:
        self.root = root
        self.field = field
        self.names: dict[tuple[str, bool], str] = {}
        self.done: dict[str, Any] = {}

    def definitions(self) -> dict[str, Any]:
        """Rewrite the targets that were named, and those that they name in turn."""
        while waiting := [(key, name) for key, name in self.names.items() if name not in self.done]:
            for (pointer, closed), name in waiting:
                self.done[name] = self.node(self._target(pointer), pointer, closed)
        return self.done

    def node(self, schema: Any, place: str, closed: bool) -> dict[str, Any] | bool:
        if isinstance(schema, bool):
            return schema
        self._refuse_unenforceable(schema, place)
        for value in (*schema.get("enum", ()), schema.get("const"), *schema.get("properties", ())):
            if _inexact(value):
                raise self._error(place, f"has a value that decoding can't write exactly: {value!r}")
        result = {key: value for key, value in schema.items() if key in KEPT}
        if result.get("format") not in FORMATS:
            result.pop("format", None)
        for key, child, closable in self._children(schema, closed):
            self._add(result, key, child, f"{place}/{key}", closable)
        if "oneOf" in result and "anyOf" not in result and self._exclusive(schema["oneOf"]):
            result["anyOf"] = result.pop("oneOf")
        if "$ref" in schema:
            result["$ref"] = self._reference(schema["$ref"], place, closed and len(result) == 0)
        self._property_names(schema, result, place)
        _limit(result, closed)
        return result

    def _children(self, schema: Mapping[str, Any], closed: bool) -> Iterator[tuple[str, Any, bool]]:
        alone = not any(key in schema for key in ("properties", "patternProperties", "additionalProperties", "$ref"))
        combined = [key for key in COMBINED if key in schema]
        for key in combined:
            parts = schema[key]
            single = key != "allOf" or (isinstance(parts, Sequence) and len(parts) == 1)
            yield key, parts, closed and alone and single and len(combined) == 1
        for key in ("properties", "patternProperties", "prefixItems", "items", "additionalProperties"):
            if key in schema:
                yield key, schema[key], True

    def _add(self, result: dict[str, Any], key: str, child: Any, place: str, closed: bool) -> None:
        if key in ("properties", "patternProperties"):
            result[key] = {name: self.node(value, f"{place}/{name}", closed) for name, value in child.items()}
        elif isinstance(child, list | tuple):
            # A list under `items` is the older spelling of `prefixItems`.
            result["prefixItems" if key == "items" else key] = [
                self.node(value, f"{place}/{index}", closed) for index, value in enumerate(child)
            ]
        else:
            result[key] = self.node(child, place, closed)

    def _exclusive(self, parts: Sequence[Any]) -> bool:
        """Whether no value can fit two of them, since a property that each requires has other values in each.

        That is a tagged union, where `oneOf` and `anyOf` mean the same.
        """
        tags = [self._tags(part) for part in parts]
        for name in tags[0]:
            if all(name in found for found in tags):
                values = [value for found in tags for value in found[name]]
                return len(values) == len(set(values))
        return False

    def _tags(self, part: Any) -> dict[str, set[str]]:
        """The constant properties that an object must have, each with its values as JSON text."""
        for _ in range(MAX_DEPTH):
            if isinstance(part, Mapping) and isinstance(part.get("$ref"), str) and part["$ref"].startswith("#"):
                part = self._target(part["$ref"])
        if not isinstance(part, Mapping) or part.get("type") != "object":
            return {}
        required = {name: part.get("properties", {}).get(name) for name in part.get("required", ())}
        found = {name: node for name, node in required.items() if isinstance(node, Mapping)}
        return {
            name: {json.dumps(value, sort_keys=True) for value in node.get("enum", [node.get("const")])}
            for name, node in found.items()
            if "enum" in node or "const" in node
        }

    def _reference(self, pointer: Any, place: str, closed: bool) -> str:
        if not isinstance(pointer, str) or (pointer != "#" and not pointer.startswith("#/")):
            raise self._error(
                f"{place}/$ref",
                f"refers to {pointer!r}",
                "Only references into the same schema work, as '#/$defs/Name'.",
            )
        self._target(pointer)
        name = self.names.setdefault((pointer, closed), f"r{len(self.names)}")
        return f"#/$defs/{name}"

    def _target(self, pointer: str) -> Any:
        target: Any = self.root
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            elif isinstance(target, Mapping) and key in target:
                target = target[key]
            else:
                raise self._error(pointer, "is referred to, but is not in the schema")
        return target

    def _property_names(self, schema: Mapping[str, Any], result: dict[str, Any], place: str) -> None:
        """`propertyNames` with a list of names, as pydantic writes it for dict[Literal[...], T], becomes properties."""
        names = schema.get("propertyNames")
        if names is None or names is True:
            return
        listed = (
            names.get("enum", [names["const"]] if "const" in names else None) if isinstance(names, Mapping) else None
        )
        if listed is None or "properties" in schema:
            raise self._error(
                f"{place}/propertyNames", "can't be enforced while decoding", "List the names, or leave it out."
            )
        value = result.get("additionalProperties", True)
        result["properties"] = {str(name): value for name in listed}
        result["additionalProperties"] = False

    def _refuse_unenforceable(self, schema: Mapping[str, Any], place: str) -> None:
        for key in schema:
            if key in REFUSED:
                raise self._error(f"{place}/{key}", "can't be enforced while decoding", "Leave that keyword out.")

    def _error(self, place: str, problem: str, hint: str = "") -> CallerError:
        return CallerError(f"The schema's {place} {problem}.", hint=hint, field=self.field)


def _inexact(value: Any) -> bool:
    """Control characters need escapes that are not allowed, and the compiler reads numbers as floats."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, str) and CONTROLS.search(part):
            return True
        if isinstance(part, int) and abs(part) > 2**53:
            return True
        if isinstance(part, list | tuple):
            left.extend(part)
        elif isinstance(part, Mapping):
            left.extend((*part.keys(), *part.values()))
    return False


def _limit(node: dict[str, Any], closed: bool) -> None:
    """Set sizes that were left open, in place, on a node that is not a combination of others."""
    if any(key in node for key in (*COMBINED, "$ref", "enum", "const")):
        return
    kinds = set(_kinds(node))
    if "string" in kinds and "pattern" not in node and "maxLength" not in node:
        # Only where there is no pattern: the meeting of an involved pattern and a length can't always be decided.
        node["maxLength"] = max(STRING_LIMIT, _number(node.get("minLength")))
    if "array" in kinds:
        node.setdefault("maxItems", max(ARRAY_LIMIT, _number(node.get("minItems"))))
    if kinds & {"number", "integer"}:
        _limit_number(node, "number" in kinds)
    if "object" in kinds and closed:
        if node.get("properties") and "patternProperties" not in node:
            node.setdefault("additionalProperties", False)
        elif not node.get("properties") and node.get("additionalProperties") is not False:
            node.setdefault("maxProperties", max(KEY_LIMIT, _number(node.get("minProperties"))))


def _limit_number(node: dict[str, Any], decimals: bool) -> None:
    low = max(_number(node.get(key), -NUMBER_LIMIT) for key in ("minimum", "exclusiveMinimum"))
    high = min(_number(node.get(key), NUMBER_LIMIT) for key in ("maximum", "exclusiveMaximum"))
    if not ("minimum" in node or "exclusiveMinimum" in node):
        node["minimum"] = min(-NUMBER_LIMIT, high)
    if not ("maximum" in node or "exclusiveMaximum" in node):
        node["maximum"] = max(NUMBER_LIMIT, low)
    if decimals and "multipleOf" not in node and high - low > 1e6 * NUMBER_STEP:
        node["multipleOf"] = NUMBER_STEP


def _number(value: Any, otherwise: float = 0) -> Any:
    return value if isinstance(value, int | float) and math.isfinite(value) else otherwise


def _kinds(node: Mapping[str, Any]) -> list[str]:
    kinds = node.get("type", [])
    return [kinds] if isinstance(kinds, str) else list(kinds)


def _largest_value(root: dict[str, Any], definitions: dict[str, Any], field: str) -> int:
    """Compute the smallest answer's length, until it no longer changes; refuse the infinite and the huge.

    Returns:
        The largest among the smallest lengths of all values within.
    """
    known: dict[str, float] = dict.fromkeys(definitions, math.inf)
    for _ in range(ROUNDS):
        before = dict(known)
        for name in reversed(definitions):  # what a definition refers to was found after it
            known[name] = _smallest(definitions[name], known)
        if known == before:
            break
    size = _smallest(root, known)
    if math.isinf(size):
        raise CallerError(
            "The schema refers to itself without end: no finite answer fits it.",
            hint="Make the reference optional, or allow null beside it.",
            field=field,
        )
    if size > MAX_SMALLEST:
        raise CallerError(
            f"The smallest answer that fits the schema has {size:.0f} characters, the limit is {MAX_SMALLEST}.",
            field=field,
        )
    return int(max(_sizes([root, *definitions.values()], known)))


def _sizes(nodes: list[Any], known: Mapping[str, float]) -> Iterator[float]:
    """The smallest size of each node that has one, at any depth."""
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            size = _smallest(node, known)
            yield size if size < MAX_SMALLEST else 0.0
            nodes += [value for key in ("properties", "patternProperties") for value in node.get(key, {}).values()]
            nodes += [part for key in (*COMBINED, "prefixItems") for part in node.get(key, ())]
            nodes += [node[key] for key in ("items", "additionalProperties") if key in node]


def _smallest(node: Any, known: Mapping[str, float]) -> float:
    """Characters in the smallest JSON text that fits, about; infinite where there is none.

    Args:
        known: the same for each definition, by its name under `$defs`.
    """
    if isinstance(node, bool):
        return 1 if node else math.inf
    parts = [sum(_smallest(part, known) for part in node.get("allOf", ()))]
    parts += [
        min((_smallest(p, known) for p in node[key]), default=math.inf) for key in ("anyOf", "oneOf") if key in node
    ]
    if "$ref" in node:
        parts.append(known[node["$ref"].rpartition("/")[2]])
    values = node.get("enum", [node["const"]] if "const" in node else None)
    if values is not None:
        parts.append(min((len(str(value)) + 2 for value in values), default=math.inf))
    else:
        parts.append(min((_smallest_of(kind, node, known) for kind in _kinds(node)), default=1))
    return max(parts)


def _smallest_of(kind: str, node: Mapping[str, Any], known: Mapping[str, float]) -> float:
    if kind == "string":
        return float(2 + _number(node.get("minLength")))
    if kind == "array":
        needed = int(_number(node.get("minItems")))
        first = [_smallest(item, known) + 2 for item in node.get("prefixItems", ())[:needed]]
        rest = needed - len(first)
        return 2 + sum(first) + (rest * (_smallest(node.get("items", True), known) + 2) if rest > 0 else 0)
    if kind == "object":
        properties, other = node.get("properties", {}), node.get("additionalProperties", True)
        keys = node.get("required", ())
        return 2 + sum(len(str(key)) + 6 + _smallest(properties.get(key, other), known) for key in keys)
    return 1
