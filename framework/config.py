"""One TOML file and the environment, read into the frozen class that each package owns.

A section of `lectern.toml` belongs to one dataclass, found by the entry-point group `lectern.config`. The environment
overrides the file: `LECTERN_SEARCH__MODE=lexical` sets `mode` in `[search]`. An unknown section or key is an error.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from framework.errors import ConfigError, OperatorError

C = TypeVar("C")
FILE_NAME = "lectern.toml"
PREFIX = "LECTERN_"
# Read directly by the code that needs them before any file is looked for.
PLAIN_VARIABLES = frozenset({"LECTERN_CONFIG", "LECTERN_CACHE", "LECTERN_DATA", "LECTERN_KERNELS", "LECTERN_LOG"})


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """Section `[lectern]`: where the state lives.

    Attributes:
        home: directory of collections, manifest and threads; relative to the configuration file, or to the working
            directory where there is none.
        tenant: the tenant that commands and Python calls act for unless they name one.
    """

    home: Path = Path(".lectern")
    tenant: str = "default"


class Settings:
    """What the file and the environment say, by section; `section` checks and types it."""

    def __init__(self, values: Mapping[str, Mapping[str, Any]], base: Path, path: Path | None = None) -> None:
        self.values = values
        self.base = base
        self.path = path

    @classmethod
    def load(cls, path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read `path`, or the file that LECTERN_CONFIG names, or the nearest lectern.toml upwards from here.

        Raises:
            ConfigError: the file is missing, is not TOML, or has a section that nothing reads.
        """
        found = path or (Path(environ["LECTERN_CONFIG"]) if environ.get("LECTERN_CONFIG") else _nearest(Path.cwd()))
        values = {name: dict(section) for name, section in _read(found).items()} if found else {}
        for variable, text in environ.items():
            if not variable.startswith(PREFIX) or variable in PLAIN_VARIABLES:
                continue
            *sections, key = variable.removeprefix(PREFIX).lower().split("__")
            if not sections:
                raise ConfigError(f"Unknown variable {variable}.", hint=f"Write {PREFIX}SECTION__KEY.", field=variable)
            _inside(values, sections, variable)[key] = _literal(text)
        known = [point.name for point in entry_points(group="lectern.config")]
        for name in values:
            if name not in known:
                raise ConfigError(f"Unknown section [{name}] in {found or 'the environment'}.", hint=_near(name, known))
        return cls(values, found.resolve().parent if found else Path.cwd(), found)

    def section(self, name: str, kind: type[C]) -> C:
        """The section as an instance of the dataclass `kind`.

        Raises:
            ConfigError: an unknown key, or a value of the wrong type, named as `section.key`.
        """
        values = self.values.get(name, {})
        adapter = TypeAdapter(kind)
        try:
            section = adapter.validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in (name, *first["loc"]))
            raise ConfigError(f"{place}: {first['msg']}, got {first['input']!r}.", field=place) from error
        self._refuse_unknown(name, values, adapter.dump_python(section))
        return section

    def _refuse_unknown(self, place: str, given: Any, read: Any) -> None:
        """Every key that was given must be among those that were read, at every depth."""
        if not isinstance(given, Mapping) or not isinstance(read, Mapping):
            return
        for key, value in given.items():
            name = f"{place}.{key}"
            if key not in read:
                where = self.path or "the environment"
                raise ConfigError(f"Unknown key {name} in {where}.", hint=_near(key, list(read)), field=name)
            self._refuse_unknown(name, value, read[key])

    @property
    def core(self) -> CoreConfig:
        return self.section("lectern", CoreConfig)

    @property
    def home(self) -> Path:
        """The state directory as an absolute path; it may not exist yet."""
        return (self.base / self.core.home.expanduser()).resolve()


def cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """The user's cache directory for converted models: LECTERN_CACHE, or the platform's own place."""
    if environ.get("LECTERN_CACHE"):
        return Path(environ["LECTERN_CACHE"]).expanduser().resolve()
    from platformdirs import user_cache_path

    return user_cache_path("lectern")


def make_home(home: Path) -> None:
    """Make the state directory where it is missing.

    Raises:
        OperatorError: it can't be made.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(
            f"The state directory {home} can't be made: {error.strerror}.",
            hint="Set lectern.home to a folder that can be written, or LECTERN_LECTERN__HOME.",
            field="lectern.home",
        ) from error


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds.

    Raises:
        ConfigError: there is no such file, or it is not valid TOML, or can't be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no file {path}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error
    except OSError as error:
        raise ConfigError(f"The configuration file {path} can't be read: {error.strerror}.") from error


def _read(path: Path) -> dict[str, dict[str, Any]]:
    values = read_toml(path)
    for name, section in values.items():
        if not isinstance(section, dict):
            raise ConfigError(f"{path}: the key {name!r} stands outside a section.", hint="Put it under a [section].")
    return values


def _nearest(start: Path) -> Path | None:
    return next((folder / FILE_NAME for folder in (start, *start.parents) if (folder / FILE_NAME).is_file()), None)


def _inside(values: dict[str, Any], sections: list[str], variable: str) -> dict[str, Any]:
    """The table of a section, or of one within it."""
    for name in sections:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{variable}: {name} is a value, not a section.", field=variable)
    return values


def _literal(text: str) -> Any:
    """A variable's value as TOML would read it; plain words stay text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _near(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(known))}."
