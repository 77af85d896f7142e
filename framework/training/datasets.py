"""Files of rows to train on: JSON Lines, plain or gzip, checked when read, written whole with a card beside."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from pydantic import BaseModel, ValidationError

from framework.errors import CallerError, OperatorError
from framework.training.row_parsing import parse_row
from framework.training.rows import (
    KINDS,
    NO_LICENCE,
    ChatRow,
    Kind,
    PairRow,
    PreferenceRow,
    Provenance,
    Row,
    kind_of,
)

__all__ = [
    "KINDS",
    "NO_LICENCE",
    "ChatRow",
    "Kind",
    "PairRow",
    "PreferenceRow",
    "Provenance",
    "Row",
    "detect_kind",
    "kind_of",
    "read_models",
    "read_objects",
    "read_rows",
    "write_rows",
]
M = TypeVar("M", bound=BaseModel)
MAX_LINE = 16 * 2**20  # bytes: a packed file of zeros must not fill the memory


@overload
def read_rows(path: Path, kind: Literal["chat"]) -> list[ChatRow]: ...
@overload
def read_rows(path: Path, kind: Literal["preference"]) -> list[PreferenceRow]: ...
@overload
def read_rows(path: Path, kind: Literal["pair"]) -> list[PairRow]: ...
def read_rows(path: Path, kind: Kind) -> list[Any]:
    """All rows of a file, plain or gzip (`.gz`).

    A chat row may be written short, as a question and its answer: `{"question": ..., "answer": ..., "system"?,
    "document"?, "provenance"?}`. Without `document` it counts as a document of its own.

    Raises:
        CallerError: the file can't be read, or a line is no such row; the message names file, line and what is wrong.
    """
    rows = [parse_row(value, kind, where) for where, value in read_objects(path)]
    if not rows:
        raise CallerError(f"{path} has no rows.", hint=f"Write one {kind} row a line, as JSON.")
    return rows


def detect_kind(path: Path) -> Kind:
    """What kind of rows a file holds, by the keys of the first.

    Raises:
        CallerError: it has no rows, or the first is of no kind.
    """
    for where, value in read_objects(path):
        marks: dict[str, Kind] = {"messages": "chat", "question": "chat", "prompt": "preference", "query": "pair"}
        found = [kind for key, kind in marks.items() if key in value]
        if found:
            return found[0]
        raise CallerError(
            f"{where} is no row: it has {', '.join(map(repr, value)) or 'no keys'}.",
            hint="A row has 'messages' (chat), 'prompt' (preference) or 'query' (pair).",
        )
    raise CallerError(f"{path} has no rows.")


def write_rows(path: Path | str, rows: Iterable[Row]) -> int:
    """Write rows, packed where the name ends in .gz, and their card beside them; the number of rows.

    Either both are written to the last byte and take the old ones' places, or nothing changes. Equal rows give equal
    bytes.

    Raises:
        CallerError: there are no rows, or rows of two kinds.
        OperatorError: the file can't be written.
    """
    from framework.training.cards import card_path, make_card, render

    path, kept = Path(path), list(rows)
    if not kept:
        raise CallerError(f"There are no rows to write to {path}.")
    if len({kind_of(row) for row in kept}) > 1:
        raise CallerError(f"{path} would hold rows of several kinds.", hint="Write a file for each kind.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _draft(path) as rows_draft, _draft(card_path(path)) as card_draft:
            lines = (json.dumps(row.to_json(), ensure_ascii=False).encode("utf-8") + b"\n" for row in kept)
            _write(rows_draft, lines, packed=path.suffix == ".gz")
            card = replace(make_card(rows_draft, kept), file=path.name)
            _write(card_draft, [render(card).encode("utf-8")])
            rows_draft.replace(path)
            card_draft.replace(card_path(path))
    except OSError as error:
        raise OperatorError(f"{path} can't be written: {error.strerror or error}.") from error
    return len(kept)


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file, plain or gzip, each with its place as "file:line".

    Raises:
        CallerError: the file is missing or damaged, or a line is no JSON object.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            number = 0
            while line := stream.readline(MAX_LINE + 1):
                number += 1
                where = f"{path}:{number}"
                if len(line) > MAX_LINE:
                    raise CallerError(f"{where} is longer than {MAX_LINE} bytes.", hint="Write one row a line.")
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield where, _object(text, where)
    except FileNotFoundError:
        raise CallerError(f"There is no file {path}.") from None
    except UnicodeDecodeError as error:
        raise CallerError(f"{path}: a line is not UTF-8: {error}.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise CallerError(f"{path} can't be read: {error}.") from error


def read_models(path: Path, kind: type[M]) -> list[M]:
    """The objects of a file, each as a pydantic model.

    Raises:
        CallerError: the file can't be read, or an object does not fit; the message names file, line and place.
    """
    found = []
    for where, value in read_objects(path):
        try:
            found.append(kind.model_validate(value))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            said = first["msg"].removeprefix("Value error, ")
            raise CallerError(f"{where}: {place + ': ' if place else ''}{said}") from error
    return found


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CallerError(f"{where} is no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CallerError(f"{where} is no JSON object: {text[:80]!r}.")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """An empty file beside another one, gone afterwards unless it took that one's place."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    draft = Path(name)
    try:
        draft.chmod(0o644)
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _write(path: Path, lines: Iterable[bytes], packed: bool = False) -> None:
    with path.open("wb") as file:
        if packed:
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as stream:
                stream.writelines(lines)
        else:
            file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
