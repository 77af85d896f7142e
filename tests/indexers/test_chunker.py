from __future__ import annotations

import itertools
import re
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.documents import Chunk, Document
from framework.models.base import Embedder
from framework.testing.fakes import HashEmbedder
from indexers.chunkers.chunker import Chunker, packed
from indexers.chunkers.pieces import Tokens, pieces
from indexers.config import IndexConfig
from indexers.loaders.extracted import Limits, TextBuilder
from indexers.loaders.markdown import load

LIMITS = Limits(1 << 20, 10, 10.0, 512)
WORDS = st.sampled_from(
    [
        "refund",
        "the",
        "Days.",
        "ten?",
        "x" * 70,
        "naïve",
        "漢字の文。",
        "🙂",
        "can't",
        "--flag",
        "a_b",
        "12.5",
        "|",
        "-",
    ]
)
LINES = st.lists(WORDS, max_size=30).map(" ".join)
BLOCKS = st.one_of(
    LINES,
    st.lists(LINES, max_size=6).map("\n".join),
    st.lists(LINES, max_size=6).map(lambda lines: "```sh\n" + "\n\n".join(lines) + "\n```"),
    st.lists(LINES, max_size=6).map(lambda lines: "\n".join(f"- {line}" for line in lines)),
    st.text(max_size=200),
)


class Splitting(HashEmbedder):
    """Counts letters in threes, and a word's first letters apart: what a cut-off rest counts differs from before."""

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        spans = []
        for word in re.finditer(r"\w+|[^\w\s]", text):
            start, end = word.span()
            spans += [(start, min(start + 1, end))] if end - start > 4 else []
            begin = start + 1 if end - start > 4 else start
            spans += [(place, min(place + 3, end)) for place in range(begin, end, 3)]
        return spans


@st.composite
def documents(draw: st.DrawFn) -> Document:
    builder = TextBuilder()
    for _ in range(draw(st.integers(0, 8))):
        if draw(st.booleans()):
            builder.heading(draw(st.integers(1, 4)), draw(LINES))
        builder.block(draw(BLOCKS))
    return Document("d", builder.text, draw(LINES), sections=builder.sections())


CONFIGS = st.builds(
    IndexConfig,
    chunker=st.sampled_from(["headings", "recursive"]),
    chunk_tokens=st.integers(16, 80),
    overlap_tokens=st.integers(0, 12),
    context=st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(documents(), CONFIGS, st.sampled_from([HashEmbedder(max_tokens=64), Splitting(max_tokens=64)]))
def test_no_chunk_exceeds_the_limit_and_together_they_cover_the_text(
    document: Document, config: IndexConfig, embedder: Embedder
) -> None:
    chunker = Chunker(embedder, config)
    chunks = chunker.chunk(document)
    covered = bytearray(len(document.text))
    for chunk in chunks:
        assert chunk.text == document.text[chunk.start : chunk.end]
        assert chunk.text.strip() == chunk.text != ""
        covered[chunk.start : chunk.end] = b"\1" * (chunk.end - chunk.start)
    counts = embedder.count_tokens([chunk.embedded_text for chunk in chunks])
    assert all(count <= min(config.chunk_tokens, embedder.info.max_tokens) for count in counts)
    assert all(covered[i] for i, letter in enumerate(document.text) if not letter.isspace())
    assert [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))
    assert len({(chunk.hash, chunk.occurrence) for chunk in chunks}) == len(chunks)
    assert chunks == chunker.chunk(document)


@settings(max_examples=200, deadline=None)
@given(BLOCKS, st.integers(4, 30), st.integers(0, 20))
def test_neighbours_overlap_by_whole_pieces_and_no_more_than_allowed(text: str, budget: int, overlap: int) -> None:
    tokens = Tokens(HashEmbedder().token_spans(text))
    atoms = list(pieces(text, (0, len(text)), tokens, budget))
    spans = list(packed(iter(atoms), tokens, budget, overlap))
    begins, ends = {start for start, _ in atoms}, {end for _, end in atoms}
    for (first, end), (start, last) in itertools.pairwise(spans):
        assert first < start
        assert end < last
        assert start in begins
        assert end in ends
        assert tokens.count((start, max(start, end))) <= overlap


@pytest.mark.parametrize("name", ["headings", "recursive"])
def test_the_real_tokenizer_agrees(embedder: Embedder, name: str) -> None:
    text = "\n\n".join(f"Überzeugung {i} antidisestablishmentarianism {'pneumono' * i} 漢字🙂." for i in range(40))
    config = IndexConfig(chunker=name, chunk_tokens=64)  # type: ignore[arg-type]  # from the parameter list above
    chunks = Chunker(embedder, config).chunk(Document("d", text, "A title"))
    assert max(embedder.count_tokens([chunk.embedded_text for chunk in chunks])) <= 64
    assert "".join("".join(chunk.text.split()) for chunk in chunks) == "".join(text.split())


def chunked(markdown: str, **changes: object) -> list[Chunk]:
    found = load(markdown.encode(), LIMITS)
    document = Document("d", found.text, found.title, sections=found.sections)
    return Chunker(HashEmbedder(), replace(IndexConfig(), **changes)).chunk(document)  # type: ignore[arg-type]  # by name


def test_a_chunk_carries_the_headings_above_it() -> None:
    chunks = chunked("# Shop\n\n## Refunds\n\n### Deadlines\n\nTen days.\n\n## Prices\n\nNone.\n")
    assert [(chunk.context, chunk.text) for chunk in chunks] == [
        ("Shop > Refunds", "Shop\n\nRefunds\n\nDeadlines\n\nTen days."),
        ("Shop", "Prices\n\nNone."),
    ]
    assert chunks[0].heading_path == ("Shop", "Refunds", "Deadlines")


def test_a_later_chunk_of_a_section_carries_the_sections_own_heading_too() -> None:
    chunks = chunked("# Shop\n\n" + "\n\n".join(f"word{i} " * 10 for i in range(6)), chunk_tokens=32)
    assert chunks[0].context == ""
    assert {chunk.context for chunk in chunks[1:]} == {"Shop"}


def test_an_overlong_context_is_shortened_where_one_can_see_it() -> None:
    chunks = chunked(f"# {'one ' * 20}\n\n## Two\n\n### Three\n\n" + "text " * 90, chunk_tokens=40)
    assert chunks[-1].context == "… > Two > Three"
    chunks = chunked(f"# {'one ' * 90}\n\n" + "text " * 90, chunk_tokens=40)
    assert chunks[-1].context == "one one one one one one one one one one…"


def test_tables_and_code_stay_whole_where_they_fit() -> None:
    table = "a | b\n" + "\n".join(f"{i} | {i}" for i in range(9))
    code = "```sh\nfirst\n\nsecond\n```"
    markdown = f"# T\n\n{'word ' * 24}\n\n| a | b |\n|---|---|\n" + "\n".join(f"| {i} | {i} |" for i in range(9))
    texts = [chunk.text for chunk in chunked(f"{markdown}\n\n{'word ' * 24}\n\n{code}\n", chunk_tokens=32)]
    assert any(table in text for text in texts)
    assert any(code in text for text in texts)


def test_a_table_that_is_too_long_is_cut_between_rows() -> None:
    rows = "\n".join(f"| row {i} | value {i} |" for i in range(30))
    for chunk in chunked(f"| a | b |\n|---|---|\n{rows}\n", chunk_tokens=32):
        assert all(line.count("|") == 1 for line in chunk.text.split("\n"))


def test_a_giant_word_is_cut() -> None:
    class ByLetter(HashEmbedder):
        def token_spans(self, text: str) -> list[tuple[int, int]]:
            return [(i, i + 1) for i, letter in enumerate(text) if not letter.isspace()]

    text = "a" * 500
    chunks = Chunker(ByLetter(), IndexConfig(chunk_tokens=52)).chunk(Document("d", text))
    assert [len(chunk.text) for chunk in chunks] == [50] * 10


def test_a_word_that_counts_as_one_token_however_long_is_cut_by_characters() -> None:
    chunks = Chunker(HashEmbedder(), IndexConfig()).chunk(Document("d", "a" * 100_000))
    assert max(len(chunk.text) for chunk in chunks) <= 20 * 200
    assert "".join(chunk.text for chunk in chunks) == "a" * 100_000


def test_equal_paragraphs_of_one_document_stay_apart() -> None:
    chunks = chunked("# A\n\nSame.\n\n# A\n\nSame.\n")
    assert [chunk.occurrence for chunk in chunks] == [0, 1]
    assert chunks[0].hash == chunks[1].hash


def test_a_text_of_blanks_has_no_chunks() -> None:
    assert Chunker(HashEmbedder(), IndexConfig()).chunk(Document("d", " \n\n\t ", "Title")) == []


@pytest.mark.parametrize(
    "text",
    [
        "word " * 200_000,
        "x" * 1_000_000,
        "\n" * 1_000_000 + "x",
        " " * 1_000_000 + "x",
        "a.b" * 300_000,
        ".\n" * 400_000,
    ],
    ids=["one line", "one word", "newlines", "spaces", "dots", "short lines"],
)
def test_a_megabyte_takes_time_in_proportion(text: str) -> None:
    """Compared with a tenth of it, so that a slow machine changes nothing: a quadratic step would take 100 times."""
    chunker = Chunker(HashEmbedder(), IndexConfig())

    def seconds(part: str) -> float:
        start = time.process_time()
        chunker.chunk(Document("d", part))
        return time.process_time() - start

    assert seconds(text) < 30 * max(seconds(text[-len(text) // 10 :]), 0.02)
