from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.events import Answer, RunFinished, RunStarted, ToolReturned
from evals.dataset import load_dataset
from evals.run_log import read_run
from evals.runner import Run, run_task
from evals.sample import Sample
from evals.targets import AgentTarget, RetrieverTarget, open_target, without_markers
from evals.task import load_tasks
from framework.config import Settings
from framework.documents import Chunk, Citation, Hit
from framework.errors import ConfigError, NotFound, OperatorError
from framework.messages import ToolCall, Usage
from framework.models.base import Embedder
from framework.models.catalog import Catalog
from framework.retrieval.config import MAX_K, SearchConfig
from framework.retrieval.retriever import SearchResult
from framework.testing.fakes import HashEmbedder
from framework.testing.tiny_chat import write_tiny_chat
from indexers.library import Library
from tools.base import ToolResult


def hit(document: str, number: int = 0) -> Hit:
    return Hit(f"{document}-{number}", Chunk(document, "text", 0, 4, number), "v", 1.0)


class FoundChunks:
    """A retriever over a fixed ranking of chunks."""

    config = SearchConfig()

    def __init__(self, chunks: Sequence[Hit], notices: tuple[str, ...] = ()) -> None:
        self.chunks, self.notices = chunks, notices
        self.asked: list[int] = []

    async def search(self, query: str, *, k: int) -> SearchResult:
        self.asked.append(k)
        hits = tuple(self.chunks[:k])
        short = k - len(hits)
        notices = (*self.notices, "short") if short else self.notices
        return SearchResult(hits, "hybrid", k, short, notices, 0.0)


def ranking(retriever: FoundChunks, depth: int, sample: Sample | None = None) -> tuple[str, ...]:
    target = RetrieverTarget(retriever, {}, depth)  # type: ignore[arg-type]
    return asyncio.run(target.answer(sample or Sample("1", "q"))).ranking


def test_a_document_ranks_where_its_best_chunk_does() -> None:
    chunks = [hit("a"), hit("b"), hit("a", 1), hit("c"), hit("b", 1)]
    assert ranking(FoundChunks(chunks), 3) == ("a", "b", "c")


def test_long_documents_do_not_shorten_the_ranking() -> None:
    chunks = [hit("long", i) for i in range(50)] + [hit(f"d{i}") for i in range(9)]
    retriever = FoundChunks(chunks)
    assert ranking(retriever, 10) == ("long", *(f"d{i}" for i in range(9)))
    assert len(retriever.asked) > 1


def test_asking_for_more_chunks_ends() -> None:
    retriever = FoundChunks([hit("long", i) for i in range(5000)])
    assert ranking(retriever, 10) == ("long",)
    assert retriever.asked[-1] == MAX_K
    retriever = FoundChunks([hit("only")])
    assert ranking(retriever, 10) == ("only",)
    assert len(retriever.asked) == 1


def test_excluded_documents_do_not_shorten_the_ranking() -> None:
    chunks = [hit(f"d{i}") for i in range(20)]
    assert len(ranking(FoundChunks(chunks), 5, Sample("1", "q", excluded=frozenset({"d0", "d1"})))) == 7


def test_what_the_search_noticed_is_kept_but_not_that_there_was_no_more() -> None:
    target = RetrieverTarget(FoundChunks([hit("a")], ("too long",)), {}, 3)  # type: ignore[arg-type]
    assert asyncio.run(target.answer(Sample("1", "q"))).notices == ("too long",)


class TalkingAgent:
    """An agent that searched twice and then said `answer`."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    async def astream(self, question: str) -> AsyncIterator[Any]:
        yield RunStarted("r", "", "agent")
        for documents in (("a", "b"), ("b", "c")):
            result = ToolResult("", tuple(hit(document) for document in documents))
            yield ToolReturned(ToolCall("1", "search_docs", "{}"), result, 0.1)
        yield RunFinished(self.answer)


CITED = (Citation(1, "a", "v", 0, 5, "Paris"), Citation(2, "b", "v", 0, 4, "Lima"))
ANSWER = Answer("It is Paris [1] and Lima[2]. See [3].", CITED, True, "answered", Usage(10, 5), steps=2)


def test_an_agents_answer_becomes_an_output() -> None:
    output = asyncio.run(AgentTarget(TalkingAgent(ANSWER), {}).answer(Sample("1", "q")))  # type: ignore[arg-type]
    assert output.text == "It is Paris and Lima. See [3]."
    assert output.ranking == ("a", "b", "c")
    assert [(cited.document_id, cited.quote) for cited in output.citations] == [("a", "Paris"), ("b", "Lima")]
    assert (output.steps, output.tokens, output.declined) == (2, 15, False)


def test_a_declined_answer_is_one() -> None:
    agent = TalkingAgent(replace(ANSWER, stop="declined", citations=()))
    output = asyncio.run(AgentTarget(agent, {}).answer(Sample("1", "q")))  # type: ignore[arg-type]
    assert output.declined
    assert without_markers(agent.answer) == agent.answer.text


CORPUS = [
    {"_id": "p1", "title": "France", "text": "Paris is the capital of France."},
    {"_id": "p2", "title": "Peru", "text": "Lima is the capital of Peru, on the Pacific coast."},
    {"_id": "p3", "title": "Tea", "text": "Green tea is brewed below the boiling point of water."},
]
RETRIEVER = """
[task]
name = "places"
metrics = ["mrr@10", "recall@2"]
[dataset]
kind = "questions"
path = "questions.jsonl"
passages = "passages.jsonl"
[target]
kind = "retriever"
"""
QUESTIONS = [
    {"_id": "1", "question": "Which city is the capital of France?", "passage_id": "p1"},
    {"_id": "2", "question": "How hot should water for green tea be?", "passage_id": "p3"},
]


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedder: Embedder) -> Path:
    """A retriever task over three passages, with a cache of its own."""
    for name, rows in (("passages.jsonl", CORPUS), ("questions.jsonl", QUESTIONS)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "task.toml").write_text(RETRIEVER)
    monkeypatch.setenv("LECTERN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("framework.models.embedders.load_embedder", lambda name=None, config=None: embedder)
    return tmp_path / "task.toml"


async def run(path: Path, settings: Settings, *overrides: str, **options: Any) -> Run:
    (task,) = load_tasks(str(path), overrides)
    return await run_task(task, settings, **options)


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
async def test_passages_are_indexed_and_found_in_every_mode(places: Path, settings: Settings, mode: str) -> None:
    done = await run(places, settings, f"target.mode={mode}")
    assert (done.errors, done.estimates["mrr@10"].mean) == (0, 1.0)


async def test_passages_are_embedded_once_for_all_runs(
    places: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, embedder: Embedder
) -> None:
    await run(places, settings)

    def never(texts: Sequence[str]) -> None:
        raise AssertionError(f"embedded again: {texts}")

    monkeypatch.setattr(embedder, "embed_documents", never)
    other = await run(places, settings, "target.mode=dense", fresh=True)
    assert other.errors == 0
    with pytest.raises(AssertionError, match="embedded again"):
        await run(places, settings, "index.chunk_tokens=64", "index.cached_vectors=0", "index.context=false")


async def test_the_search_section_of_the_task_is_used(places: Path, settings: Settings) -> None:
    done = await run(places, settings, "target.rrf_k=10", "search.pool=50")

    about = read_run(done.folder)["target"]
    assert (about["search"]["rrf_k"], about["search"]["pool"]) == (10, 50)
    assert about["passages"]


async def test_a_folder_of_documents_can_be_the_passages(places: Path, settings: Settings) -> None:
    folder = places.parent / "pages"
    folder.mkdir()
    (folder / "france.md").write_text("# France\n\nParis is the capital of France.\n")
    (folder / "peru.md").write_text("# Peru\n\nLima is the capital of Peru.\n")
    questions = places.parent / "questions.jsonl"
    questions.write_text('{"_id": "1", "question": "capital of Peru", "passage_id": "pages/peru.md"}\n')
    done = await run(places, settings, "dataset.passages=pages", "target.mode=lexical")
    assert done.estimates["mrr@10"].mean == 1.0


async def test_the_same_documents_in_two_places_are_two_collections(places: Path, settings: Settings) -> None:
    for place in ("first", "second"):
        pages = places.parent / place / "pages"
        pages.mkdir(parents=True)
        (pages / "peru.md").write_text("# Peru\n\nLima is the capital of Peru.\n")
        done = await run(places, settings, f"dataset.passages={place}/pages", "target.mode=lexical", fresh=True)
        assert done.errors == 0


async def test_a_file_that_cannot_be_indexed_stops_the_run(places: Path, settings: Settings) -> None:
    folder = places.parent / "pages"
    folder.mkdir()
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    with pytest.raises(OperatorError, match=r"broken\.pdf"):
        await run(places, settings, "dataset.passages=pages")


async def test_a_collection_of_the_users_can_be_measured(places: Path, settings: Settings, embedder: Embedder) -> None:
    from framework.documents import Document

    with Library.open(settings) as library:
        library.index_documents(
            [Document("p1", "Paris is the capital of France."), Document("p3", "Green tea")], "mine"
        )
    done = await run(places, settings, "target.collection=mine", "target.mode=lexical")
    assert done.estimates["mrr@10"].mean == 1.0
    with pytest.raises(NotFound, match="none"):
        await run(places, settings, "target.collection=none")


async def test_a_retriever_without_anything_to_search_is_refused(places: Path, settings: Settings) -> None:
    path = places.with_name("bare.toml")
    path.write_text(RETRIEVER.replace('passages = "passages.jsonl"\n', ""))
    with pytest.raises(ConfigError, match="nothing to search"):
        await run(path, settings)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("target.mod=dense", "target.mod"),
        ("target.mode=desne", "target.mode"),
        ("index.chunk_token=10", "index.chunk_token"),
        ("target.collection=3", "target.collection"),
    ],
)
async def test_an_unknown_key_of_a_target_is_named(places: Path, settings: Settings, change: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await run(places, settings, change)
    assert named in str(caught.value)


async def test_an_agent_is_asked_over_the_passages(places: Path, settings: Settings) -> None:
    metrics = 'task.metrics=["citation_found", "answered", "recall@2", "steps"]'
    done = await run(places, settings, "target.kind=agent", "target.budget.steps=5", metrics)
    assert (done.errors, done.samples) == (0, 2)
    assert done.estimates["recall@2"].mean == 1.0
    assert done.estimates["steps"].mean <= 5
    about = read_run(done.folder)["target"]
    assert about["agent"]["mode"] == "auto"
    assert about["agent"]["budget"]["steps"] == 5
    assert about["chat"]


async def test_an_unknown_key_of_an_agent_is_named(places: Path, settings: Settings) -> None:
    with pytest.raises(ConfigError, match=r"target\.budget\.step\b"):
        await run(places, settings, "target.kind=agent", "target.budget.step=5")


async def about(path: Path, settings: Settings, *overrides: str) -> Mapping[str, Any]:
    (task,) = load_tasks(str(path), overrides)
    async with open_target(task, load_dataset(task.dataset), task.settings(settings), lambda *_: None) as target:
        return dict(target.about)


REMOTE = (
    "models.chat=remote",
    "models.endpoints.remote.base_url=http://127.0.0.1:1/v1",
    "models.endpoints.remote.model=small",
)


@pytest.mark.parametrize("kind", ["agent", "reader"])
@pytest.mark.parametrize(
    ("before", "change"),
    [
        ((), "models.engine.dtype=float32"),
        ((), "models.engine.prefix_cache=false"),
        (REMOTE, "models.endpoints.remote.model=large"),
        (REMOTE, "models.endpoints.remote.base_url=http://127.0.0.1:2/v1"),
    ],
)
async def test_another_engine_or_server_is_another_run(
    places: Path, settings: Settings, kind: str, before: tuple[str, ...], change: str
) -> None:
    first = await about(places, settings, f"target.kind={kind}", *before)
    assert first == await about(places, settings, f"target.kind={kind}", *before)
    assert first != await about(places, settings, f"target.kind={kind}", *before, change)


async def test_changed_files_of_a_local_model_are_another_run(places: Path, settings: Settings, tmp_path: Path) -> None:
    model = write_tiny_chat(tmp_path / "model")
    local = ("target.kind=agent", f"models.chat={model}")
    first = await about(places, settings, *local)
    write_tiny_chat(model, seed=1)
    assert await about(places, settings, *local) != first


@pytest.mark.parametrize("on", [("target.rerank=true",), ("target.kind=agent", "search.rerank=true")])
async def test_another_reranker_or_other_files_of_it_are_another_run(
    places: Path, settings: Settings, tmp_path: Path, on: tuple[str, ...]
) -> None:
    copy = tmp_path / "reranker"
    shutil.copytree(Path(Catalog().card("minilm-reranker").source), copy)
    first = await about(places, settings, *on)
    other = await about(places, settings, *on, f"models.reranker={copy}")
    assert other["reranker"] != first["reranker"]
    assert other["reranker_files"] == first["reranker_files"]
    with (copy / "reranker.json").open("a") as file:
        file.write("\n")
    changed = await about(places, settings, *on, f"models.reranker={copy}")
    assert changed["reranker_files"] != other["reranker_files"]
    off = [change.replace("true", "false") for change in on]
    assert "reranker" not in await about(places, settings, *off)


async def test_another_embedder_of_a_reader_is_another_run(
    places: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await about(places, settings, "target.kind=reader")
    monkeypatch.setattr("framework.models.embedders.load_embedder", lambda name=None, config=None: HashEmbedder())
    assert await about(places, settings, "target.kind=reader") != first
