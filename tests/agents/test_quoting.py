from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.config import QuotingConfig
from agents.evidence import FEATURES, candidates, features, repeats
from agents.quoting import ANSWER, ORDER, Quotation, choice, quote
from framework.documents import Chunk, Hit
from framework.errors import CallerError
from framework.messages import Completion, TokenLogprob, assistant
from framework.models.base import Choice, Embedder
from framework.retrieval.bm25 import Analyzer
from framework.testing.fakes import HashEmbedder
from framework.testing.scripted import ScriptedChat

TEA = (
    "# Tea\n\nTea is a drink made from leaves. Green tea is brewed at 80 degrees. It steeps for two minutes. "
    "Water boils at 100 degrees.\n\n- Milk goes in last.\n- Sugar is optional.\n"
)
PORT = "The server listens on port 8000. The port is set with LECTERN_SERVER__PORT. Logs go to standard error."


def hit(text: str, id: str = "d", start: int = 0, context: str = "", headings: tuple[str, ...] = ()) -> Hit:
    chunk = Chunk(id, text, start, start + len(text), 0, context=context, heading_path=headings)
    return Hit(f"{id}-{start}", chunk, "v1", 1.0)


async def ask(question: str, *hits: Hit, embedder: Embedder | None = None, **options: float) -> Quotation:
    config = QuotingConfig(**options)  # type: ignore[arg-type]  # each test gives values of the right types
    return await quote(question, hits, embedder or HashEmbedder(), config=config)


async def test_without_passages_the_question_is_declined() -> None:
    assert await ask("When?") == Quotation((), 0.0, declined=True)
    assert (await ask("When?", hit("\n\n# Heading\n---\n"))).declined


async def test_spans_are_in_the_document_and_say_what_is_quoted() -> None:
    quotation = await ask("At how many degrees is green tea brewed?", hit(TEA, start=500), threshold=0.0)
    assert quotation.sentences
    for quoted in quotation.sentences:
        assert TEA[quoted.start - 500 : quoted.end - 500] == quoted.text


async def test_neighbours_become_one_quotation_and_others_do_not() -> None:
    text = "Green tea needs water. Green tea needs leaves. The cat sleeps all day. Green tea needs time."
    quotation = await ask("What does green tea need?", hit(text), threshold=0.0, within=100.0)
    texts = sorted(quoted.text for quoted in quotation.sentences)
    assert texts == ["Green tea needs time.", "Green tea needs water. Green tea needs leaves."]


async def test_sentences_of_two_chunks_stay_apart() -> None:
    first, second = hit("Green tea needs water.", start=0), hit("Green tea needs leaves.", start=23)
    quotation = await ask("What does green tea need?", first, second, threshold=0.0, within=100.0)
    assert len(quotation.sentences) == 2


async def test_a_sentence_in_two_overlapping_chunks_is_quoted_once() -> None:
    text = "Green tea needs water. Green tea needs leaves."
    quotation = await ask("What does green tea need?", hit(text), hit(text[23:], start=23), threshold=0.0, within=100.0)
    assert [quoted.text for quoted in quotation.sentences] == [text]


async def test_at_most_so_many_sentences_are_quoted() -> None:
    text = " ".join(f"Green tea needs {thing}." for thing in ("water", "leaves", "time", "care", "cups"))
    quotation = await ask("What does green tea need?", hit(text), threshold=0.0, within=100.0, sentences=2)
    assert sum(quoted.text.count(".") for quoted in quotation.sentences) == 2


async def test_below_the_threshold_nothing_is_answered_but_the_closest_are_kept() -> None:
    quotation = await ask("At how many degrees is green tea brewed?", hit(TEA), threshold=1.0)
    assert quotation.declined
    assert quotation.sentences == ()
    assert quotation.closest


def test_a_heading_is_no_candidate() -> None:
    found = candidates([hit("Serving tea\n\nPour slowly.", headings=("Tea", "Serving tea"))])
    assert [c.text for c in found] == ["Pour slowly."]


def test_candidates_know_their_neighbours_and_the_rank_of_their_passage() -> None:
    found = candidates([hit("One. Two. Three."), hit("Four.", id="e")])
    assert [(c.before, c.text, c.after, c.rank) for c in found] == [
        ("", "One.", "Two.", 0),
        ("One.", "Two.", "Three.", 0),
        ("Two.", "Three.", "", 0),
        ("", "Four.", "", 1),
    ]


def test_features_say_what_their_names_say() -> None:
    found = candidates([hit("Tea was first sold in 1657. Tea is hot? Boats float", context="Tea")])
    rows = features("When was tea first sold?", found, HashEmbedder(), Analyzer("en"))
    assert rows.shape == (3, len(FEATURES))
    told = {name: rows[:, i].tolist() for i, name in enumerate(FEATURES)}
    assert told["overlap"][0] > told["overlap"][1] > told["overlap"][2] == 0
    assert told["asks"] == [0, 1, 0]
    assert told["finished"] == [1, 1, 0]
    assert told["overlap_nearby"][2] > 0


def test_the_tables_name_features_only() -> None:
    assert set(ORDER) <= set(FEATURES)
    assert set(ANSWER) <= {*FEATURES, "bias", "lead"}


async def test_a_sentence_longer_than_the_embedder_reads_is_no_failure() -> None:
    long = "tea " * 500 + "is hot."
    quotation = await ask("Is tea hot?", hit(long, context="Tea " * 60), threshold=0.0)
    assert quotation.sentences[0].text == long


@given(st.lists(st.text(max_size=80), max_size=4), st.text(max_size=40))
@settings(max_examples=60)
async def test_no_text_makes_it_fail_and_every_span_holds(texts: list[str], question: str) -> None:
    hits = [hit(text, id=str(i), start=7 * i) for i, text in enumerate(texts)]
    quotation = await ask(question, *hits, threshold=0.0)
    assert 0 <= quotation.confidence <= 1
    for quoted in quotation.closest:
        chunk = quoted.hit.chunk
        assert chunk.start <= quoted.start < quoted.end <= chunk.end
        assert chunk.text[quoted.start - chunk.start : quoted.end - chunk.start] == quoted.text


async def test_the_same_question_gets_the_same_quotation() -> None:
    hits = hit(TEA), hit(PORT, id="e")
    assert await ask("Which port?", *hits) == await ask("Which port?", *hits)


async def test_the_shipped_embedder_quotes_the_sentence_that_answers(embedder: Embedder) -> None:
    hits = hit(TEA, context="Tea"), hit(PORT, id="e", context="The server")
    quotation = await ask("Which port does the server listen on?", *hits, embedder=embedder)
    assert not quotation.declined
    assert quotation.sentences[0].text.startswith("The server listens on port 8000.")
    quotation = await ask("At what temperature is green tea brewed?", *hits, embedder=embedder)
    assert "80 degrees" in quotation.sentences[0].text


@pytest.mark.parametrize(
    "question", ["Who won the football world cup in 1998?", "What is the capital of Mongolia?", "asdf qwer zxcv"]
)
async def test_what_no_passage_speaks_of_is_declined(question: str, embedder: Embedder) -> None:
    hits = hit(TEA, context="Tea"), hit(PORT, id="e", context="The server")
    assert (await ask(question, *hits, embedder=embedder)).declined


def chosen(text: str, *top: tuple[str, float]) -> Completion:
    told = (TokenLogprob(text, top[0][1], top),) if top else ()
    return Completion(assistant(text), "stop", logprobs=told)


async def test_the_models_choice_is_a_distribution_over_texts_and_none() -> None:
    model = ScriptedChat([chosen("2", (" 2", -0.5), ("1", -1.5), ("the", -2.0), ("0", -3.0))])
    told = await choice("Which?", ["first", "second\nline"], model)
    assert told.shape == (2,)
    assert told[1] > told[0]
    assert 0.8 < np.exp(told).sum() < 1  # the rest is "none"
    request = model.requests[0]
    assert request.constraint == Choice(("0", "1", "2"))
    assert "1. first\n2. second line\n0. None of these." in request.messages[0].content


async def test_a_server_without_logprobs_gives_its_one_choice() -> None:
    told = await choice("Which?", ["first", "second"], ScriptedChat(["1"]))
    assert int(np.argmax(told)) == 0
    told = await choice("Which?", ["first", "second"], ScriptedChat(["0"]))
    assert np.exp(told).sum() < 0.01


async def test_a_model_is_asked_only_where_its_choice_has_weight() -> None:
    hits = [hit("Green tea needs water. The cat sleeps.")]
    silent = ScriptedChat([])
    assert (await quote("What does green tea need?", hits, HashEmbedder(), silent)).closest
    model = ScriptedChat([chosen("2", ("2", -0.1), ("1", -3.0), ("0", -4.0))])
    config = QuotingConfig(choice=100.0, within=0.0, threshold=0.0)
    quotation = await quote("What does green tea need?", hits, HashEmbedder(), model, config)
    assert [quoted.text for quoted in quotation.sentences] == ["The cat sleeps."]


def test_a_shortlist_beyond_one_digit_is_refused() -> None:
    with pytest.raises(CallerError, match="1 to 9"):
        QuotingConfig(shortlist=10)


@pytest.mark.parametrize(
    ("sentence", "repeated"),
    [
        ('lectern ask "Which formats are read?" -c docs', True),
        ("Which formats are read?", True),
        ("Which formats are read? | PDF and HTML", False),
        ("The formats that are read are PDF and HTML.", False),
    ],
)
def test_an_example_of_asking_the_question_is_told_from_an_answer(sentence: str, repeated: bool) -> None:
    assert repeats("Which formats are read?", sentence) is repeated


async def test_an_example_of_asking_the_question_is_never_quoted() -> None:
    hits = [hit('Run: ask "What does green tea need to grow?" now\n\nGreen tea needs warm and humid weather to grow.')]
    quotation = await quote("What does green tea need to grow?", hits, HashEmbedder())
    assert [quoted.text for quoted in quotation.closest] == ["Green tea needs warm and humid weather to grow."]


def test_the_head_of_a_table_is_no_answer() -> None:
    table = "The limits:\nlimit | default\nsteps | 8\ntool calls | 12"
    assert [c.text for c in candidates([hit(table)])] == ["The limits:", "steps | 8", "tool calls | 12"]
