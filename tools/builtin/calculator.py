"""Exact arithmetic for models that can't do it: an expression is parsed, never evaluated as code."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping

from framework.errors import ModelFault
from tools.decorator import tool

Number = int | float
MAX_LENGTH = 500
MAX_BITS = 10_000
MAX_FACTORIAL = 1_000
MAX_DIGITS = 300

_BINARY: Mapping[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Number], Number]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}
_FUNCTIONS: Mapping[str, Callable[..., Number]] = {
    **{name: getattr(math, name) for name in ("sqrt", "exp", "log", "log2", "log10", "floor", "ceil", "gcd", "hypot")},
    **{name: getattr(math, name) for name in ("sin", "cos", "tan", "asin", "acos", "atan", "degrees", "radians")},
    **{"abs": abs, "min": min, "max": max},
    "round": lambda value, digits=0: round(value, _whole(digits, -MAX_DIGITS, MAX_DIGITS, "digits")),
    "factorial": lambda n: math.factorial(_whole(n, 0, MAX_FACTORIAL, "factorial")),
}
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "**"})
# A percent sign is the modulo operator only where another operand follows.
_PERCENT_OF = re.compile(r"%\s*of\b")
_PERCENT = re.compile(r"%(?!\s*[\w.(])")


@tool(timeout=5.0)
def calculator(expression: str) -> str:
    """Compute an arithmetic expression exactly.

    Args:
        expression: numbers with + - * / // % ^ and brackets, "15% of 80", pi, e, and functions such as sqrt(2), log(x),
            log10(x), exp(x), sin(x), round(x, digits), min(...), max(...), factorial(n). No thousands separators.
    """
    if len(expression) > MAX_LENGTH:
        raise ModelFault(f"The expression has {len(expression)} characters; {MAX_LENGTH} are allowed.")
    text = _PERCENT.sub("/100", _PERCENT_OF.sub("/100*", expression.translate(_SIGNS)))
    try:
        value = _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ModelFault(f"{expression!r} can't be computed: {_reason(error)}.") from error
    except ZeroDivisionError as error:
        raise ModelFault(f"{expression!r} divides by zero.") from error
    except OverflowError as error:
        raise ModelFault(f"{expression!r} is too large to compute.") from error
    return _shown(value)


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=bool()):
            raise ValueError("true and false are not numbers")
        case ast.Constant(value=int() | float() as number):
            return _bounded(number)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _bounded(_power(_value(left), _value(right)))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _bounded(_BINARY[type(op)](_value(left), _value(right)))
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _bounded(_FUNCTIONS[name](*(_value(argument) for argument in arguments)))
        case ast.Tuple():
            raise ValueError("write numbers without thousands separators")
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
            raise ValueError(f"{name!r} is unknown; there are {', '.join([*_CONSTANTS, *_FUNCTIONS])}")
    raise ValueError("only arithmetic is allowed")


def _power(base: Number, exponent: Number) -> Number:
    """`base ** exponent`, refused before it is computed where the result would be huge."""
    if isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1:
        bits = base.bit_length() * abs(exponent)
        if bits > MAX_BITS:
            raise OverflowError
    if base < 0 and not float(exponent).is_integer():
        raise ValueError("a root of a negative number is not real")
    result: Number = base**exponent
    return result


def _whole(value: Number, low: int, high: int, name: str) -> int:
    if value != int(value) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}")
    return int(value)


def _bounded(value: Number) -> Number:
    if isinstance(value, float) and not math.isfinite(value):
        raise OverflowError
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise OverflowError
    return value


def _reason(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return "it is not a complete arithmetic expression"
    return str(error) or "it is nested too deeply"


def _shown(value: Number) -> str:
    """Whole numbers in full; others to 15 digits, which hides binary rounding (0.1 + 0.2 is 0.3)."""
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return str(int(value))
    return format(value, ".15g")
