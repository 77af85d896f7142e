"""A function's signature as a JSON schema, and a model's arguments checked and typed for it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic.json_schema import PydanticJsonSchemaWarning

from framework.errors import CallerError, ModelFault
from tools.base import ToolContext

_REFUSED = {
    inspect.Parameter.VAR_POSITIONAL: "takes any number of values; name each parameter, or take a list",
    inspect.Parameter.VAR_KEYWORD: "takes any keyword; name each parameter, or take a dict",
    inspect.Parameter.POSITIONAL_ONLY: "is positional-only; the model passes arguments by name",
}


@dataclass(frozen=True, slots=True)
class Signature:
    """What a tool function takes.

    Attributes:
        schema: JSON schema of the arguments, of type object, closed to other keys.
        context: parameters that get the `ToolContext`; the model never sees them.
    """

    schema: Mapping[str, Any]
    arguments: type[BaseModel]
    names: Mapping[str, str]
    context: tuple[str, ...]

    def bind(self, values: Mapping[str, Any], context: ToolContext) -> dict[str, Any]:
        """Keyword arguments of the annotated types; what the model left out stays out, so the function's default holds.

        Raises:
            ModelFault: a value does not fit, with the argument's name in `field`.
        """
        try:
            typed = self.arguments.model_validate(dict(values))
        except ValidationError as error:
            problems = [(".".join(map(str, e["loc"])), e["msg"]) for e in error.errors(include_url=False)[:5]]
            text = "; ".join(f"{place}: {message}" for place, message in problems)
            raise ModelFault(f"The arguments do not fit: {text}.", field=problems[0][0]) from error
        bound = {self.names[key]: getattr(typed, key) for key in typed.model_fields_set}
        return bound | dict.fromkeys(self.context, context)


def read_signature(function: Callable[..., Any], descriptions: Mapping[str, str]) -> Signature:
    """Derive schema and checks from annotations and defaults; `descriptions` are those of the docstring.

    Raises:
        CallerError: a parameter can't be offered to a model; the message names function and parameter.
    """
    fields: dict[str, tuple[Any, FieldInfo]] = {}
    names: dict[str, str] = {}
    context: list[str] = []
    for name, parameter in inspect.signature(function).parameters.items():
        hint = _hint(function, parameter)
        if hint is ToolContext:
            context.append(name)
            continue
        _require_schema(function, name, hint)
        # A name of our own with the parameter's as alias: pydantic refuses or shadows some ("copy", "_x", "schema").
        key = f"argument_{len(fields)}"
        fields[key] = (hint, _field(parameter, hint, descriptions.get(name)))
        names[key] = name
    config = ConfigDict(extra="forbid", protected_namespaces=())
    arguments = create_model(f"{function.__name__}_arguments", __config__=config, **fields)  # type: ignore[call-overload]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PydanticJsonSchemaWarning)  # a default that JSON can't show is left out
        schema = clean(arguments.model_json_schema(by_alias=True))
    schema.pop("description", None)
    return Signature(schema | {"properties": schema.get("properties", {})}, arguments, names, tuple(context))


def clean(schema: Any) -> Any:
    """Without pydantic's titles, and every object with named properties closed to others. `schema` is not changed."""
    if isinstance(schema, list):
        return [clean(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "patternProperties"):
            kept[key] = {name: clean(part) for name, part in value.items()}
        elif key in ("default", "const", "enum", "examples"):
            kept[key] = value
        elif key != "title":
            kept[key] = clean(value)
    if "properties" in kept:
        kept.setdefault("additionalProperties", False)
    return kept


def _hint(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """The parameter's type, with text annotations resolved in the module that defines the function."""
    if parameter.kind in _REFUSED:
        raise _refusal(function, parameter.name, _REFUSED[parameter.kind] + ".")
    if parameter.annotation is inspect.Parameter.empty:
        method = parameter.name in ("self", "cls")
        hint = "Pass the bound method: tool(thing.method)." if method else f"Write {parameter.name}: str, for example."
        raise _refusal(function, parameter.name, "has no annotation.", hint)
    holder = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        return get_type_hints(holder, globalns=scope, include_extras=True)[parameter.name]
    except (NameError, SyntaxError, TypeError, AttributeError) as error:
        problem = f"has the annotation {parameter.annotation!r}, which can't be resolved: {error}."
        raise _refusal(function, parameter.name, problem, "Define or import the type at module level.") from error


def _require_schema(function: Callable[..., Any], name: str, hint: Any) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PydanticJsonSchemaWarning)
            TypeAdapter(hint).json_schema()
    except (PydanticUserError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        advice = "Use JSON-like types, dataclasses, TypedDicts or pydantic models."
        problem = f"has the type {hint!r}, which a model can't fill in: {reason}."
        raise _refusal(function, name, problem, advice) from error


def _field(parameter: inspect.Parameter, hint: Any, described: str | None) -> FieldInfo:
    """Alias, default and description; a description in Annotated goes before the docstring's."""
    notes = [note for note in get_args(hint)[1:] if isinstance(note, str)] if get_origin(hint) is Annotated else []
    own = [n for n in get_args(hint)[1:] if isinstance(n, FieldInfo)] if get_origin(hint) is Annotated else []
    description = notes[0] if notes else described
    if any(info.description for info in own):
        description = None
    extra: dict[str, Any] = {"description": description} if description else {}
    if parameter.default is not inspect.Parameter.empty:
        extra["default"] = parameter.default
    return Field(alias=parameter.name, **extra)  # type: ignore[no-any-return]


def _refusal(function: Callable[..., Any], parameter: str, problem: str, hint: str = "") -> CallerError:
    name = getattr(function, "__qualname__", repr(function))
    return CallerError(f"The tool function {name}: parameter {parameter!r} {problem}", hint=hint, field=parameter)
