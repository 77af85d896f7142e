"""Pairs to train the reranker that ships on, with hard negatives from the hybrid search.

    LECTERN_DATA=../shared/data python -m bench.reranker_data runs/reranker/pairs.jsonl \
        --documents recipes/reranker.documents.txt

Our own documents (recipes/data), SciFact's training claims, HotpotQA's 100 questions, and the last turns of MTRAG-UN
without its ClapNQ part. One own document in eight, and one training claim in six, are held out: by them the adapter and
the blending were chosen (`python -m bench.reranker_tune`). `--documents` names those of our own documents that there
were when the adapter that ships was made; without it all are taken. `--home` keeps the index for the next run.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.bridge import run_sync
from framework.config import Settings
from framework.documents import Document, Hit
from framework.retrieval.config import SearchConfig
from framework.training.rows import PairRow, Provenance
from indexers.library import Library

OWN = Path(__file__).parent.parent / "recipes" / "data" / "documents"
NEGATIVES = 6  # of which the recipe takes the first two
OWN_ROWS = 1700  # so that our own questions don't outweigh the others


@dataclass(frozen=True, slots=True)
class Question:
    """A question, the documents that answer it, and the words of the answer where they are known."""

    id: str
    text: str
    gold: frozenset[str]
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Collection:
    """Documents and the questions about them."""

    name: str
    licence: str
    documents: tuple[Document, ...]
    questions: tuple[Question, ...]
    synthetic: bool = False

    @property
    def training(self) -> list[Question]:
        return [question for question in self.questions if not held_out(self.name, question.id)]

    @property
    def choosing(self) -> list[Question]:
        return [question for question in self.questions if held_out(self.name, question.id)]


def held_out(collection: str, question: str) -> bool:
    """Whether a question is kept from training; all of an own document's are, or none."""
    every = {"own": 8, "scifact": 6}.get(collection)
    name = question.partition("#")[0]
    return every is not None and int(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(), 16) % every == 0


def collections(data: Path, only: frozenset[str] | None = None) -> list[Collection]:
    """All that is trained on."""
    return [own(only), scifact(data), hotpot(data), mtrag(data)]


def own(only: frozenset[str] | None = None) -> Collection:
    """Our own documents, or those of them that are named."""
    documents, questions = [], []
    for file in sorted(OWN.glob("*.jsonl")):
        for line in _lines(file):
            if only is not None and line["id"] not in only:
                continue
            documents.append(Document(line["id"], line["text"], line.get("title", "")))
            for i, asked in enumerate(line["questions"]):
                gold = frozenset({line["id"]})
                questions.append(Question(f"{line['id']}#{i}", asked["q"], gold, asked.get("short", "")))
    return Collection("own", "CC-BY-4.0", tuple(documents), tuple(questions), synthetic=True)


def scifact(data: Path) -> Collection:
    return Collection("scifact", "CC-BY-4.0", *_beir(data / "scifact", "qrels.train.tsv"))


def hotpot(data: Path) -> Collection:
    return Collection("hotpotqa100", "CC-BY-SA-4.0", *_beir(data / "hotpotqa100", "qrels.tsv"))


def mtrag(data: Path) -> Collection:
    lines = [line for line in _lines(data / "mtrag_un/passages.jsonl.gz") if line["collection"] != "clapnq"]
    documents = [Document(line["_id"], line["text"], line["title"] or "") for line in lines if line["text"].strip()]
    known = {document.id for document in documents}
    questions = []
    for line in _lines(data / "mtrag_un/tasks.jsonl.gz"):
        gold = frozenset(line["context_ids"]) & known
        if gold and line["collection"] != "clapnq" and line["answerability"] in ("ANSWERABLE", "PARTIAL"):
            questions.append(Question(line["_id"], line["turns"][-1]["text"], gold))
    return Collection("mtrag_un", "Apache-2.0", tuple(documents), tuple(questions))


def pairs(collection: Collection, library: Library) -> Iterator[PairRow]:
    """A row for each document that answers, where the search finds it: its best chunk, and what ranks beside it."""
    retriever = library.retriever(collection.name, SearchConfig(k=100, pool=200))
    for question in collection.training:
        hits = run_sync(retriever.search(question.text)).hits
        foreign = [hit.chunk.embedded_text for hit in hits if hit.chunk.document_id not in question.gold]
        for document, hit in _best(question, hits).items():
            yield PairRow(
                question.text,
                hit.chunk.embedded_text,
                f"{collection.name}:{document}",
                Provenance(collection.name, collection.licence, collection.synthetic),
                tuple(dict.fromkeys(foreign))[:NEGATIVES],
            )


def _best(question: Question, hits: Sequence[Hit]) -> Mapping[str, Hit]:
    """The chunk of each gold document that holds the answer, else the one that ranks best."""
    best: dict[str, Hit] = {}
    for hit in hits:
        known = best.get(hit.chunk.document_id)
        if hit.chunk.document_id in question.gold and (known is None or not _holds(known, question.answer)):
            best[hit.chunk.document_id] = hit if known is None or _holds(hit, question.answer) else known
    return best


def _holds(hit: Hit, answer: str) -> bool:
    return bool(answer) and answer.lower() in hit.chunk.text.lower()


def named(file: Path) -> frozenset[str]:
    """The ids in a file, one a line."""
    return frozenset(file.read_text(encoding="utf-8").split())


def open_home(home: Path) -> Library:
    return Library.open(Settings({"lectern": {"home": str(home)}}, Path.cwd(), None))


def _beir(folder: Path, judgements: str) -> tuple[tuple[Document, ...], tuple[Question, ...]]:
    gold: dict[str, set[str]] = {}
    for line in (folder / judgements).read_text(encoding="utf-8").splitlines()[1:]:
        question, document, _ = line.split("\t")
        gold.setdefault(question, set()).add(document)
    documents = [Document(line["_id"], line["text"], line["title"]) for line in _lines(folder / "corpus.jsonl.gz")]
    questions = [
        Question(line["_id"], line["text"], frozenset(gold[line["_id"]]))
        for line in _lines(folder / "queries.jsonl.gz")
        if line["_id"] in gold
    ]
    return tuple(documents), tuple(questions)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.reranker_data", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--home", type=Path, default=Path("runs/reranker/home"), help="where the index is kept")
    parser.add_argument("--documents", type=Path, help="a file of ids: only these of our own documents")
    arguments = parser.parse_args()
    only = named(arguments.documents) if arguments.documents else None
    rows: list[PairRow] = []
    with open_home(arguments.home) as library:
        for collection in collections(Path(os.environ["LECTERN_DATA"]), only):
            library.index_documents(collection.documents, collection.name)
            found = list(pairs(collection, library))
            if collection.name == "own":
                random.Random(1).shuffle(found)
                found = found[:OWN_ROWS]
            rows += found
            print(f"{collection.name}: {len(collection.questions)} questions, {len(found)} rows", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows]
    arguments.out.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
