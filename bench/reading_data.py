"""Questions with short answers: sets to fit reading on, and two others to report on."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

from agents.prompting import search_query
from bench.quoting_data import PADDING, rows, titled
from evals.metrics.answers import contains, token_f1, tokens
from framework.documents import Document
from framework.messages import Message
from framework.prompts.reading import UNANSWERABLE
from framework.training.cleaning import split_of
from framework.training.questions import read_documents

OWN = Path(__file__).parents[1] / "recipes/data/documents"
HELD_OUT = {"validation": 0.03}  # as recipes/answers.toml: no run has trained on these
ABSTRACTS = 300
LEAST_F1 = 0.5
LEAST_RECALL = 0.75


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and what is known of its answer.

    Attributes:
        group: the set that it is from.
        query: what is searched for.
        answers: accepted ones, in few words, or long where `long`; empty: there is none.
        gold: documents that have the answer.
        before: the question and answer that it follows.
    """

    group: str
    text: str
    query: str
    answers: tuple[str, ...] = ()
    gold: frozenset[str] = frozenset()
    long: bool = False
    before: tuple[str, str] | None = None

    def accepts(self, said: str, document: str) -> bool:
        """Whether a short answer, read in a document, is right."""
        words = tokens(said)
        if not words or not self.answers:
            return False
        golds = [tokens(answer) for answer in self.answers]
        if self.long:
            held = max(sum(word in gold for word in words) / len(words) for gold in golds)
            return document in self.gold and held >= LEAST_RECALL
        return any(token_f1(words, gold) >= LEAST_F1 or (gold and contains(words, gold)) for gold in golds)


@dataclass(frozen=True, slots=True)
class Task:
    """Documents for one index, and the questions asked of it."""

    name: str
    documents: list[Document]
    questions: list[Question]


def tuning(data: Path) -> Task:
    """HotpotQA, MTRAG-UN without its part from ClapNQ, and our own documents that were kept back, over one pool.

    SciFact's abstracts and some bank documents are in the pool too, to be found where they don't answer.
    """
    rng = random.Random(0)
    parts = [_own(), _hotpot(data), _mtrag(data)]
    abstracts = rng.sample(rows(data / "scifact/corpus.jsonl.gz"), ABSTRACTS)
    bank = rng.sample(rows(data / "tau_banking/documents.jsonl.gz"), PADDING)
    padding = [titled("scifact", row) for row in abstracts] + [titled("bank", row) for row in bank]
    documents = [d for part in parts for d in part.documents] + padding
    return Task("tuning", documents, [q for part in parts for q in part.questions])


def reporting(data: Path) -> Task:
    """XQuAD English and ClapNQ over one pool, HotpotQA's passages among them."""
    squad, clap = rows(data / "xquad/passages.en.jsonl.gz"), rows(data / "clapnq/passages.jsonl.gz")
    hotpot = rows(data / "hotpotqa100/corpus.jsonl.gz")
    questions = []
    for row in rows(data / "xquad/questions.en.jsonl.gz"):
        answers = tuple(answer["text"] for answer in row["answers"])
        gold = frozenset((f"xquad:{row['passage_id']}",))
        questions.append(Question("xquad", row["question"], row["question"], answers, gold))
    for row in rows(data / "clapnq/questions.jsonl.gz"):
        answers = tuple(answer["text"] for answer in row["answers"])
        gold = frozenset((f"clapnq:{row['passage_id']}",) if row["answerable"] else ())
        group = "clapnq" if gold else "clapnq unanswerable"
        questions.append(Question(group, row["question"], row["question"], answers, gold, long=True))
    parts = (("xquad", squad), ("clapnq", clap), ("hotpot", hotpot))
    documents = [titled(name, row) for name, part in parts for row in part]
    return Task("report", documents, questions)


def _own() -> Task:
    """Every document of ours is in the pool; those that were kept back from training are asked about."""
    found = [document for path in sorted(OWN.glob("*.jsonl")) for document in read_documents(path)]
    questions = []
    for document in found:
        if split_of(document.id, HELD_OUT) == "train":
            continue
        gold = frozenset((f"own:{document.id}",))
        questions += [Question("own", q.q, q.q, (q.short,), gold) for q in document.questions]
        questions += [Question("own unanswerable", text, text) for text in document.unanswerable]
        for follow in document.follow_ups:
            first = document.questions[follow.after]
            query, _ = search_query(follow.q, [Message("user", first.q)])
            before = (first.q, first.full or first.short) if query != follow.q else None
            questions.append(Question("own follow-up", follow.q, query, (follow.short,), gold, before=before))
    return Task("own", [Document(f"own:{d.id}", d.text, title=d.title) for d in found], questions)


def _hotpot(data: Path) -> Task:
    """Of its questions, those that one passage can answer: with a name, a date or the like."""
    questions = []
    for query in rows(data / "hotpotqa100/queries.jsonl.gz"):
        if not {answer.lower() for answer in query["answers"]} & {"yes", "no"}:
            gold = frozenset(f"hotpot:{id}" for id in query["supporting"])
            questions.append(Question("hotpot", query["text"], query["text"], tuple(query["answers"]), gold))
    documents = [titled("hotpot", row) for row in rows(data / "hotpotqa100/corpus.jsonl.gz")]
    return Task("hotpot", documents, questions)


def _mtrag(data: Path) -> Task:
    """Last turns, with the turn before where they continue it. A short answer is right if the reference says it."""
    tasks = [task for task in rows(data / "mtrag_un/tasks.jsonl.gz") if task["collection"] != "clapnq"]
    wanted = {id for task in tasks for id in task["context_ids"]}
    questions = []
    for task in tasks:
        if task["answerability"] not in ("ANSWERABLE", "UNANSWERABLE"):
            continue
        turns = [Message("user" if turn["role"] == "user" else "assistant", turn["text"]) for turn in task["turns"]]
        asked, query, before = _last(turns)
        if task["answerability"] == "UNANSWERABLE":
            questions.append(Question("mtrag unanswerable", asked, query, before=before))
        else:
            gold = frozenset(f"mtrag:{id}" for id in task["context_ids"])
            questions.append(Question("mtrag", asked, query, tuple(task["targets"]), gold, True, before))
    passages = [row for row in rows(data / "mtrag_un/passages.jsonl.gz") if row["_id"] in wanted]
    return Task("mtrag", [titled("mtrag", row) for row in passages], questions)


def _last(turns: list[Message]) -> tuple[str, str, tuple[str, str] | None]:
    """The last question, what is searched for, and the turn before where it continues that."""
    *earlier, last = turns
    query, _ = search_query(last.content, earlier)
    if query == last.content:
        return last.content, query, None
    said = earlier[-1].content if earlier[-1].role == "assistant" else UNANSWERABLE
    asked = next(turn.content for turn in reversed(earlier) if turn.role == "user")
    return last.content, query, (asked[:400], said[:400])


def without_gold(question: Question) -> Question:
    """The same question where its documents are out of reach: only an equal answer elsewhere is right."""
    return replace(question, group=f"{question.group} mismatched")
