"""Questions whose supporting sentences are known: four sets to fit quoting on, two others to report on."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.sentences import split_sentences
from framework.documents import Document

CLAIMS = 200
UNPROVED = 80
PADDING = 60
LEAST_F1 = 0.25
Spans = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Question:
    """A question and where its answer stands.

    Attributes:
        group: the set that it is from.
        gold: spans of supporting sentences by document id; empty: no document answers it.
    """

    group: str
    text: str
    gold: Mapping[str, Spans] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """Documents for one index, and the questions asked of it."""

    name: str
    documents: list[Document]
    questions: list[Question]


def tuning(data: Path) -> Task:
    """HotpotQA, SciFact's training claims and MTRAG-UN over one pool, padded with other documents."""
    rng = random.Random(0)
    parts = [_hotpot(data), _scifact(data, rng), _mtrag(data)]
    bank = rng.sample(rows(data / "tau_banking/documents.jsonl.gz"), PADDING)
    documents = [d for part in parts for d in part.documents] + [titled("bank", row) for row in bank]
    return Task("tuning", documents, [q for part in parts for q in part.questions])


def reporting(data: Path) -> Task:
    """XQuAD English and ClapNQ over one pool."""
    squad = [titled("xquad", row) for row in rows(data / "xquad/passages.en.jsonl.gz")]
    clap = rows(data / "clapnq/passages.jsonl.gz")
    questions: list[Question] = []
    for row in rows(data / "xquad/questions.en.jsonl.gz"):
        spans = [(a["start"], a["start"] + len(a["text"])) for a in row["answers"]]
        questions.append(Question("xquad", row["question"], {f"xquad:{row['passage_id']}": spans}))
    texts = {row["_id"]: row["text"] for row in clap}
    for row in rows(data / "clapnq/questions.jsonl.gz"):
        chosen = [s for answer in row["answers"] for s in answer["selected_sentences"]]
        gold = {f"clapnq:{row['passage_id']}": _found(texts[row["passage_id"]], chosen)} if row["answerable"] else {}
        questions.append(Question("clapnq" if gold else "clapnq unanswerable", row["question"], gold))
    return Task("report", squad + [titled("clapnq", row) for row in clap], questions)


def _hotpot(data: Path) -> Task:
    by_id = {row["_id"]: row for row in rows(data / "hotpotqa100/corpus.jsonl.gz")}
    questions = []
    for query in rows(data / "hotpotqa100/queries.jsonl.gz"):
        gold = {}
        for id, numbers in query["supporting"].items():
            sentences = by_id[id]["sentences"]
            gold[f"hotpot:{id}"] = _found(by_id[id]["text"], [sentences[i] for i in numbers if i < len(sentences)])
        questions.append(Question("hotpot", query["text"], gold))
    return Task("hotpot", [titled("hotpot", row) for row in by_id.values()], questions)


def _scifact(data: Path, rng: random.Random) -> Task:
    by_id = {row["_id"]: row for row in rows(data / "scifact/corpus.jsonl.gz")}
    claims = {row["_id"]: row["text"] for row in rows(data / "scifact/queries.jsonl.gz") if row["split"] == "train"}
    gold: dict[str, dict[str, Spans]] = {}
    for row in rows(data / "scifact/evidence.jsonl.gz"):
        if row["query_id"] not in claims or (len(gold) == CLAIMS and row["query_id"] not in gold):
            continue
        abstract = by_id[row["doc_id"]]
        starts = [*abstract["sent_starts"], len(abstract["text"])]
        spans = [(starts[i], starts[i + 1]) for chosen in row["sentence_sets"] for i in chosen]
        gold.setdefault(row["query_id"], {})[f"scifact:{row['doc_id']}"] = spans
    questions = [Question("scifact", claims[id], spans) for id, spans in gold.items()]
    proved = {row["query_id"] for row in rows(data / "scifact/evidence.jsonl.gz")}
    unproved = rng.sample([text for id, text in claims.items() if id not in proved], UNPROVED)
    questions += [Question("scifact unproved", text) for text in unproved]
    kept = {id.partition(":")[2] for spans in gold.values() for id in spans}
    kept |= set(rng.sample(sorted(by_id), PADDING))
    return Task("scifact", [titled("scifact", by_id[id]) for id in sorted(kept)], questions)


def _mtrag(data: Path) -> Task:
    """Last turns only. Which sentences support the reference answer is judged by their common words."""
    by_id = {row["_id"]: row for row in rows(data / "mtrag_un/passages.jsonl.gz")}
    questions = []
    for task in rows(data / "mtrag_un/tasks.jsonl.gz"):
        asked = task["turns"][-1]["text"]
        if task["answerability"] == "UNANSWERABLE":
            questions.append(Question("mtrag unanswerable", asked))
        elif task["answerability"] == "ANSWERABLE":
            gold = {f"mtrag:{id}": _alike(by_id[id]["text"], task["targets"][0]) for id in task["context_ids"]}
            questions.append(Question("mtrag", asked, {id: spans for id, spans in gold.items() if spans}))
    return Task("mtrag", [titled("mtrag", row) for row in by_id.values()], questions)


def _alike(text: str, answer: str) -> Spans:
    wanted = set(re.findall(r"\w{4,}", answer.lower()))
    spans = []
    for sentence in split_sentences(text):
        words = set(re.findall(r"\w{4,}", text[sentence.start : sentence.end].lower()))
        common = len(words & wanted)
        if 2 * common / max(len(words) + len(wanted), 1) >= LEAST_F1:
            spans.append((sentence.start, sentence.end))
    return spans


def _found(text: str, sentences: list[str]) -> Spans:
    """Where the sentences stand in the text; one that is not there word for word is left out."""
    starts = [(text.find(sentence.strip()), len(sentence.strip())) for sentence in sentences]
    return [(start, start + length) for start, length in starts if start >= 0 and length]


def titled(prefix: str, row: Mapping[str, Any]) -> Document:
    """A row of a corpus as a document, whose id begins with the set's name."""
    return Document(f"{prefix}:{row['_id']}", row["text"], title=row.get("title") or "")


def rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a packed JSONL file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
