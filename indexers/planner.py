"""What a run has to do: the files that are there, compared with what the manifest knows."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from framework.documents import Document, is_text
from framework.errors import CallerError, Conflict, NotFound
from indexers.loaders.formats import is_supported
from indexers.rows import FileFacts, Known

NO_TEXT = "Its name is not valid UTF-8, so nothing could cite it. Rename it."


@dataclass(frozen=True, slots=True)
class Found:
    """A file below a root, with the document id that it gets. `problem` is set when it can't be looked at."""

    document_id: str
    file: FileFacts
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Root:
    """A folder or file that was indexed by name: its files' ids begin with `prefix`."""

    path: Path
    prefix: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The difference. `unchanged` maps the ids of files whose content is known to what they are now."""

    added: tuple[Found, ...] = ()
    changed: tuple[Found, ...] = ()
    unchanged: Mapping[str, FileFacts] = field(default_factory=dict)
    deleted: tuple[str, ...] = ()
    moved: tuple[tuple[str, str], ...] = ()
    quarantined: tuple[Known, ...] = ()
    stored: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)

    @property
    def to_read(self) -> tuple[Found, ...]:
        return (*self.added, *self.changed)


def plan(paths: Sequence[Path], known: Mapping[str, Known]) -> Plan:
    """Compare the files at `paths` with the known documents.

    Raises:
        NotFound: a path does not exist.
        CallerError: a path is not valid UTF-8.
        Conflict: two different files would be the same document.
    """
    scan = Scan()
    given = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100  a linked folder keeps its name
    roots = [_root(path, known) for path in given]
    found: dict[str, Found] = {}
    for path, root in zip(given, roots, strict=True):
        for item in scan.run(path, root):
            other = found.setdefault(item.document_id, item)
            if other.file.path != item.file.path:
                raise Conflict(
                    f"{other.file.path} and {item.file.path} would both be the document {item.document_id!r}.",
                    hint="Rename one of the folders, or use two collections.",
                )
    for item in found.values():
        _refuse_foreign(item, known.get(item.document_id))
    gone = [old for id, old in known.items() if id not in found and _is_gone(old, given, roots, scan.unread)]
    return _compare(found, known, gone, dict(scan.skipped))


def plan_documents(documents: Sequence[Document], known: Mapping[str, Known]) -> Plan:
    """Which of the given documents are live already, and what waits in the manifest.

    Raises:
        CallerError: two documents of one id, or one without, or one that is no text.
        Conflict: the id is a file's.
    """
    ids: set[str] = set()
    for document in documents:
        if not document.id or document.id in ids:
            raise CallerError(f"Two documents have the id {document.id!r}, or it is empty.", field="documents")
        if not is_text(document.id):
            raise CallerError(f"The id {document.id!r} holds a lone surrogate.", field="documents")
        ids.add(document.id)
        old = known.get(document.id)
        if old and old.file.path:
            raise Conflict(
                f"The document {document.id!r} is the file {old.file.path}.", hint="Give this one another id."
            )
    same = {
        d.id: known[d.id].file
        for d in documents
        if d.id in known and known[d.id].live and not known[d.id].reason and known[d.id].version == d.version
    }
    waiting = [id for id, old in known.items() if old.version and not old.live and id not in ids]
    return Plan(unchanged=same, stored=tuple(waiting))


class Scan:
    """Walks folders in order of name. Hidden ones are no documents; links that lead back are followed once.

    Attributes:
        skipped: how many files of which extension no loader reads.
        unread: folders that could not be listed; what was known below them stays.
    """

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self.unread: list[Path] = []

    def run(self, path: Path, root: Root) -> Iterator[Found]:
        if path.is_dir():
            yield from self._folder(path, root, frozenset())
        else:
            yield self._file(path, root)

    def _folder(self, folder: Path, root: Root, above: frozenset[tuple[int, int]]) -> Iterator[Found]:
        try:
            place = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self.unread.append(folder)
            facts = FileFacts(str(root.path), str(folder))
            yield Found(_id(folder, root), facts, f"The folder can't be read: {error.strerror}.")
            return
        here = (place.st_dev, place.st_ino)
        if here in above:
            return
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith("."):
                continue
            folder_below = _is_folder(entry)
            if not folder_below and not is_supported(entry.name):
                self.skipped[_as_text(path).suffix.lower() or "no extension"] += 1
            elif not is_text(entry.name):
                yield Found(_id(_as_text(path), root), FileFacts(str(root.path), str(_as_text(path))), NO_TEXT)
            elif folder_below:
                yield from self._folder(path, root, above | {here})
            else:
                yield self._file(path, root)

    def _file(self, path: Path, root: Root) -> Found:
        facts = FileFacts(str(root.path), str(path))
        try:
            status = path.stat()
        except OSError as error:
            return Found(_id(path, root), facts, f"It can't be opened: {error.strerror}.")
        facts = replace(facts, size=status.st_size, mtime_ns=status.st_mtime_ns)
        return Found(_id(path, root), facts, "" if stat.S_ISREG(status.st_mode) else "It is no regular file.")


def _root(path: Path, known: Mapping[str, Known]) -> Root:
    """The root that a path is scanned for: one that is indexed already and holds it, or itself."""
    if not is_text(str(path)):
        raise CallerError(f"The path {_as_text(path)} is not valid UTF-8.", hint="Rename it.", field="paths")
    if not path.exists():
        raise NotFound(
            f"There is no file or folder {path}.",
            hint="If it was removed for good: lectern collections remove-document, or remove.",
            field="paths",
        )
    for root in {old.file.root for old in known.values() if old.file.root}:
        if path == Path(root) or (Path(root) in path.parents and Path(root).is_dir()):
            return Root(Path(root), f"{Path(root).name}/" if Path(root).is_dir() else "")
    return Root(path, f"{path.name or 'root'}/" if path.is_dir() else "")


def _id(path: Path, root: Root) -> str:
    return root.prefix + path.relative_to(root.path).as_posix() if root.prefix else path.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or one that may not be followed
        return False


def _as_text(path: Path) -> Path:
    """The path with such bytes spelled out, as \\xff."""
    return Path(os.fsencode(path).decode("utf-8", "backslashreplace"))


def _refuse_foreign(item: Found, old: Known | None) -> None:
    """The same id from another root that still exists is another document; a root that is gone has moved here."""
    if old is None or old.file.root == item.file.root or (old.file.root and not Path(old.file.root).exists()):
        return
    origin = old.file.path or "a Python call"
    raise Conflict(
        f"The document {item.document_id!r} was indexed from {origin}; {item.file.path} would replace it.",
        hint="Rename the folder, use another collection, or remove the document first: "
        f"lectern collections remove-document COLLECTION {item.document_id}",
    )


def _is_gone(old: Known, given: list[Path], roots: list[Root], unread: list[Path]) -> bool:
    """Whether a document that the scan did not find was looked for: below a given path, or in a root that moved."""
    if not old.file.path:
        return False
    path = Path(old.file.path)
    if any(folder == path or folder in path.parents for folder in unread):
        return False
    if any(place == path or place in path.parents for place in given):
        return True
    moved = [root for root in roots if root.path in given and root.prefix and old.document_id.startswith(root.prefix)]
    return bool(moved) and not Path(old.file.root).exists()


def _compare(
    found: Mapping[str, Found], known: Mapping[str, Known], gone: list[Known], skipped: Mapping[str, int]
) -> Plan:
    added, changed, quarantined = [], [], []
    unchanged: dict[str, FileFacts] = {}
    for id, item in found.items():
        old = known.get(id)
        if old is None:
            added.append(item)
        elif old.reason and _looks_same(old.file, item.file):
            quarantined.append(old)
        elif not old.version:
            added.append(item)
        elif old.live and not old.reason and (same := _same(old.file, item.file)):
            unchanged[id] = same
        else:
            changed.append(item)
    deleted = tuple(old.document_id for old in gone)
    leaving = set(deleted)
    stored = [
        id
        for id, old in known.items()
        if old.version and not old.live and id not in leaving and (id not in found or old.reason)
    ]
    moved = _moves(added, gone)
    return Plan(tuple(added), tuple(changed), unchanged, deleted, moved, tuple(quarantined), tuple(stored), skipped)


def _same(old: FileFacts, new: FileFacts) -> FileFacts | None:
    """The file's facts with its hash, if its content is what it was."""
    if _looks_same(old, new):
        return replace(new, hash=old.hash)
    if old.size == new.size and old.hash and file_hash(Path(new.path)) == old.hash:
        return replace(new, hash=old.hash)
    return None


def _looks_same(old: FileFacts, new: FileFacts) -> bool:
    return (old.size, old.mtime_ns) == (new.size, new.mtime_ns)


def _moves(added: list[Found], gone: list[Known]) -> tuple[tuple[str, str], ...]:
    """Pairs of old and new id of files that are new in name only."""
    by_size = {old.file.size: old for old in gone if old.file.hash}
    pairs = []
    for item in added:
        old = by_size.get(item.file.size)
        if old and file_hash(Path(item.file.path)) == old.file.hash:
            pairs.append((old.document_id, item.document_id))
            del by_size[item.file.size]
    return tuple(pairs)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes; empty where it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
