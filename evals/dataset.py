"""Datasets: a BEIR-style folder, questions with answers and the passages they are about, or requests to call for."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from evals.calls import conversation, expected_calls, tool_specs
from evals.sample import Sample
from framework.documents import Document
from framework.errors import ConfigError
from framework.subjects import subjects

VERBS = {"calc", "calculate", "compute", "find", "get", "info", "search"}


@dataclass(frozen=True, slots=True)
class BeirConfig:
    """Section `[dataset]` with `kind = "beir"`: corpus.jsonl, queries.jsonl (also .gz) and judgements.

    Attributes:
        path: the folder.
        split: takes `qrels.SPLIT.tsv` or `qrels/SPLIT.tsv`; without one, `qrels.tsv`.
        exclude: a file beside them with `query-id corpus-id` lines: documents dropped before scoring.
        language: ISO 639-1.
    """

    kind: Literal["beir"]
    path: Path
    split: str = ""
    exclude: str = ""
    language: str = "en"


@dataclass(frozen=True, slots=True)
class QuestionsConfig:
    """Section `[dataset]` with `kind = "questions"`: a JSONL file (also .gz) with one question a line.

    Attributes:
        path: the file, or a list of files whose questions have different ids.
        passages: JSONL files of `{_id, title, text}`, or folders of documents (ids are paths below the folder).
        language: ISO 639-1.
        where: only lines whose field has this value, as in `{split = "dev"}`.
        id, question, answers, gold, answerable: names of the fields. A line without `id` goes by its number. `answers`
            is a text, a list of texts, or a list of objects with `text`; `gold` is a document id, a list of ids, or an
            object whose keys are ids.
    """

    kind: Literal["questions"]
    path: Path | tuple[Path, ...]
    passages: tuple[Path, ...] = ()
    language: str = "en"
    where: Mapping[str, str] | None = None
    id: str = "_id"
    question: str = "question"
    answers: str = "answers"
    gold: str = "passage_id"
    answerable: str = "answerable"


@dataclass(frozen=True, slots=True)
class CallsConfig:
    """Section `[dataset]` with `kind = "calls"`: requests, tools and the calls that are right, as in `evals.calls`.

    Attributes:
        path: a JSONL file (also .gz).
        language: ISO 639-1.
        others: tools of so many other requests are shown beside a request's own.

    Raises:
        ConfigError: others is below 0.
    """

    kind: Literal["calls"]
    path: Path
    language: str = "en"
    others: int = 0

    def __post_init__(self) -> None:
        if self.others < 0:
            raise ConfigError(f"dataset.others must be 0 or more, got {self.others}.", field="dataset.others")


DatasetConfig: TypeAlias = BeirConfig | QuestionsConfig | CallsConfig


@dataclass(frozen=True, slots=True)
class Passages:
    """The documents that questions are asked about, read when they are indexed. `hash` covers every byte of them."""

    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    hash: str

    def documents(self) -> Iterator[Document]:
        """The documents of the JSONL files; folders are left to the indexer's own loaders."""
        for path in self.files:
            for where, row in read_jsonl(path):
                identity = _text(row, "_id", where)
                title = str(row.get("title") or "")
                yield Document(identity, _text(row, "text", where), title, source=f"{path.name}#{identity}")


@dataclass(frozen=True, slots=True)
class Dataset:
    """Questions, and what to index for them. `hash` covers the questions, the judgements and the passages."""

    samples: tuple[Sample, ...]
    passages: Passages | None
    hash: str

    def first(self, n: int | None) -> Dataset:
        return Dataset(self.samples[:n], self.passages, self.hash)


def load_dataset(config: DatasetConfig) -> Dataset:
    """Read the questions and fingerprint the passages.

    Raises:
        ConfigError: a file is missing, a line is wrong (named as file:line), an id stands twice, nothing is left.
    """
    match config:
        case BeirConfig():
            dataset = _load_beir(config)
        case QuestionsConfig():
            dataset = _load_questions(config)
        case CallsConfig():
            dataset = _load_calls(config)
    if not dataset.samples:
        raise ConfigError(f"{config.path} has no question to run.", hint="Check dataset.split and dataset.where.")
    return dataset


def _load_beir(config: BeirConfig) -> Dataset:
    queries, corpus = _file(config.path, "queries.jsonl"), _file(config.path, "corpus.jsonl")
    judgement_file = _qrels(config)
    judgements = _read_judgements(judgement_file)
    used = [queries, judgement_file]
    excluded: dict[str, dict[str, int]] = {}
    if config.exclude:
        used.append(_existing(config.path / config.exclude, "dataset.exclude"))
        excluded = _read_judgements(used[-1])

    def sample(row: Mapping[str, Any], where: str) -> Sample | None:
        identity = _text(row, "_id", where)
        if identity not in judgements:
            return None
        dropped = frozenset(excluded.get(identity, ()))
        answers = _answers(row.get("answers"), where)
        text = _text(row, "text", where)
        return Sample(identity, text, judgements[identity], answers, excluded=dropped, language=config.language)

    samples = _samples([queries], sample)
    missing = judgements.keys() - {s.id for s in samples}
    if missing:
        raise ConfigError(f"{judgement_file} judges the query {min(missing)!r}, which {queries} does not have.")
    passages = Passages((corpus,), (), _hash_files([corpus]))
    return Dataset(samples, passages, _hash_files(used, passages.hash))


def _load_calls(config: CallsConfig) -> Dataset:
    path = _existing(config.path, "dataset.path")

    def sample(row: Mapping[str, Any], where: str) -> Sample:
        messages, calls = conversation(row, where), expected_calls(row, where)
        return Sample(
            _text(row, "id", where),
            messages[-1].content,
            answerable=bool(calls),
            language=config.language,
            messages=messages,
            tools=tool_specs(row, where),
            calls=calls,
        )

    samples = _among_others(_samples([path], sample), config.others)
    return Dataset(samples, None, _hash_files([path], f"{config.others} others" if config.others else ""))


def _among_others(samples: Sequence[Sample], count: int) -> tuple[Sample, ...]:
    """The samples, each with tools of `count` others besides its own, in an order that its id decides.

    Tools whose names share the beginning of a word with its own are not taken: they might serve the request as well. A
    few that are named otherwise, and might, are.
    """
    if not count:
        return tuple(samples)
    about = {sample.id: subjects([tool.name for tool in sample.tools], VERBS) for sample in samples}
    made = []
    for sample in samples:
        dice = random.Random(sample.id)
        strange = [other for other in samples if not about[sample.id] & about[other.id]]
        taken = [tool for other in dice.sample(strange, min(count, len(strange))) for tool in other.tools]
        tools = list({tool.name: tool for tool in (*taken, *sample.tools)}.values())
        made.append(replace(sample, tools=tuple(dice.sample(tools, len(tools)))))
    return tuple(made)


def _load_questions(config: QuestionsConfig) -> Dataset:
    named = config.path if isinstance(config.path, tuple) else (config.path,)
    paths = [_existing(path, "dataset.path") for path in named]
    places = [_existing(place, "dataset.passages", folder=True) for place in config.passages]
    where_equal = dict(config.where or {})

    def sample(row: Mapping[str, Any], where: str) -> Sample | None:
        if any(str(row.get(key)) != value for key, value in where_equal.items()):
            return None
        gold = row.get(config.gold)
        ids = [gold] if isinstance(gold, str | int) else list(gold or ())
        return Sample(
            _text(row, config.id, where) if config.id in row else where.rpartition(":")[2],
            _text(row, config.question, where),
            {str(identity): 1 for identity in ids},
            _answers(row.get(config.answers), where),
            answerable=row.get(config.answerable, True) is not False,
            language=config.language,
        )

    passages = None
    if places:
        files, folders = [p for p in places if p.is_file()], [p for p in places if p.is_dir()]
        digest = _hash_files([*files, *(p for folder in folders for p in sorted(folder.rglob("*")) if p.is_file())])
        passages = Passages(tuple(files), tuple(folders), digest)
    return Dataset(_samples(paths, sample), passages, _hash_files(paths, passages.hash if passages else ""))


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, plain or gzip, each with its place as "file:line".

    Raises:
        ConfigError: a line is no JSON object, or the file is damaged.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}:{number}", _object(line, f"{path}:{number}")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}.") from error


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is no JSON: {error}.") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{where} is no JSON object: {line.strip()[:80]!r}.")
    return row


def _samples(paths: Sequence[Path], convert: Callable[[Mapping[str, Any], str], Sample | None]) -> tuple[Sample, ...]:
    samples: dict[str, Sample] = {}
    for where, row in (line for path in paths for line in read_jsonl(path)):
        sample = convert(row, where)
        if sample is None:
            continue
        if sample.id in samples:
            raise ConfigError(f"{where}: the id {sample.id!r} stands there a second time.")
        samples[sample.id] = sample
    return tuple(samples.values())


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f"{where} has no text under {key!r}.", hint=f"It has: {', '.join(row)}.", field=f"dataset.{key}")


def _answers(value: Any, where: str) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [] if value is None else [value]
    texts = [item.get("text") if isinstance(item, dict) else item for item in items]
    for text in texts:
        if isinstance(text, bool) or not isinstance(text, str | int | float):
            raise ConfigError(f"{where}: an answer is a text or an object with 'text', got {text!r}.")
    return tuple(dict.fromkeys(str(text) for text in texts if str(text).strip()))


def _read_judgements(path: Path) -> dict[str, dict[str, int]]:
    """Lines of query id, document id and (where there is one) grade, separated by tabs, below a header or not."""
    judgements: dict[str, dict[str, int]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split("\t")
        if (number == 1 and fields[0] == "query-id") or not line.strip():
            continue
        try:
            query, document, grade = fields[0], fields[1], int(fields[2]) if len(fields) > 2 else 1
        except (IndexError, ValueError):
            raise ConfigError(f"{path}:{number} is no 'query-id<tab>corpus-id<tab>grade' line: {line!r}.") from None
        judgements.setdefault(query, {})[document] = grade
    return judgements


def _qrels(config: BeirConfig) -> Path:
    names = [f"qrels.{config.split}.tsv", f"qrels/{config.split}.tsv"] if config.split else ["qrels.tsv"]
    for name in names:
        if (config.path / name).is_file():
            return config.path / name
    there = sorted(str(p.relative_to(config.path)) for p in config.path.glob("qrels*/*.tsv"))
    there += sorted(p.name for p in config.path.glob("qrels*.tsv"))
    raise ConfigError(
        f"{config.path} has no {' or '.join(names)}.",
        hint=f"Set dataset.split; there is {', '.join(there) or 'no qrels file at all'}.",
        field="dataset.split",
    )


def _file(folder: Path, name: str) -> Path:
    packed = folder / f"{name}.gz"
    return packed if packed.is_file() else _existing(folder / name, "dataset.path")


def _existing(path: Path, field: str, folder: bool = False) -> Path:
    if path.is_file() or (folder and path.is_dir()):
        return path
    raise ConfigError(f"{field}: there is no {'file or folder' if folder else 'file'} {path}.", field=field)


def _hash_files(paths: Sequence[Path], start: str = "") -> str:
    digest = hashlib.sha256(start.encode())
    for path in paths:
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]
