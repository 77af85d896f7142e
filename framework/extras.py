"""Optional dependencies: what is missing becomes an instruction, not a traceback."""

from __future__ import annotations

from importlib.util import find_spec

from framework.errors import OperatorError


def require(extra: str, *modules: str) -> None:
    """Raises: OperatorError: one of the modules that `extra` brings is not installed."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise OperatorError(
            f"This needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed.",
            hint=f"Run: pip install 'lectern[{extra}]'",
        )
