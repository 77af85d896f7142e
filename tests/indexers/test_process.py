"""The reading process: what a hostile file can do to it ends there."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from framework.retrieval.memory import MemoryStore
from framework.testing.fakes import HashEmbedder
from indexers.config import IndexConfig
from indexers.library import Library
from indexers.loaders.extracted import Limits, Unreadable
from indexers.loaders.process import LoaderProcess

LIMITS = Limits(bytes=8 << 20, pages=2000, seconds=20.0, memory_mb=1024)


@pytest.fixture
def loader() -> Iterator[LoaderProcess]:
    with LoaderProcess(LIMITS) as process:
        yield process


def pdf_bomb(megabytes: int, rounds: int = 2) -> bytes:
    """A page whose content is zeros, compressed `rounds` times: a kilobyte that unpacks to `megabytes`."""
    import zlib

    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()
    for _ in range(rounds - 1):
        data = zlib.compress(data, 9)
    filters = b"[" + b"/FlateDecode " * rounds + b"]"
    body = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R >>",
        b"<< /Filter %s /Length %d >>\nstream\n" % (filters, len(data)) + data + b"\nendstream",
    ]
    objects = b"".join(b"%d 0 obj\n%s\nendobj\n" % (number, part) for number, part in enumerate(body, 1))
    return b"%PDF-1.4\n" + objects + b"trailer << /Root 1 0 R /Size 5 >>\n%%EOF"


def test_it_reads_many_files_with_one_child(loader: LoaderProcess, docs: Path) -> None:
    first, hash = loader.load(docs / "intro.md")
    child = loader._child
    second, _ = loader.load(docs / "notes.txt")
    assert (first.title, second.media_type, len(hash)) == ("Welcome", "text/plain", 64)
    assert first.sections[1].path == ("Welcome", "Next")
    assert loader._child is child


def test_a_file_that_takes_too_long_is_given_up_and_the_next_one_read(tmp_path: Path, docs: Path) -> None:
    pipe = tmp_path / "endless.txt"
    os.mkfifo(pipe)  # opening it for reading waits for a writer that never comes
    with LoaderProcess(replace(LIMITS, seconds=0.5)) as loader:
        started = time.monotonic()
        with pytest.raises(Unreadable, match=r"took longer than 0\.5 s"):
            loader.load(pipe)
        assert time.monotonic() - started < 5
        loader.limits = LIMITS
        assert loader.load(docs / "intro.md")[0].title == "Welcome"


def test_a_child_that_dies_is_replaced(loader: LoaderProcess, docs: Path) -> None:
    loader.load(docs / "intro.md")
    assert loader._child is not None
    loader._child.kill()
    loader._child.wait()
    with pytest.raises(Unreadable, match=r"died \(SIGKILL\)"):
        loader.load(docs / "intro.md")
    assert loader.load(docs / "intro.md")[0].title == "Welcome"


@pytest.mark.parametrize("megabytes", [100, 700])
def test_a_nested_bomb_ends_within_its_memory(tmp_path: Path, docs: Path, megabytes: int) -> None:
    path = tmp_path / "bomb.pdf"
    path.write_bytes(pdf_bomb(megabytes))
    assert path.stat().st_size < 10_000
    with LoaderProcess(replace(LIMITS, memory_mb=512)) as loader:
        with pytest.raises(Unreadable):
            loader.load(path)
        assert loader.load(docs / "intro.md")[0].title == "Welcome"


def test_a_bomb_of_elements_ends(loader: LoaderProcess, tmp_path: Path) -> None:
    path = tmp_path / "deep.html"
    path.write_text("<div>" * 30_000 + "deep")
    with pytest.raises(Unreadable, match="nest deeper than"):
        loader.load(path)


def test_a_file_that_grew_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    path.write_bytes(b"x" * 3_000_000)
    with LoaderProcess(replace(LIMITS, bytes=1 << 20)) as loader, pytest.raises(Unreadable, match="larger than 1 MB"):
        loader.load(path)


def test_a_file_that_is_gone_or_closed_to_us_says_so(loader: LoaderProcess, tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="No such file"):
        loader.load(tmp_path / "gone.txt")
    with pytest.raises(Unreadable, match="Is a directory"):
        loader.load(tmp_path)


def test_what_a_library_prints_does_not_reach_the_answers(loader: LoaderProcess, tmp_path: Path) -> None:
    """BeautifulSoup warns, PDFium complains: neither may be taken for an answer."""
    (tmp_path / "a.html").write_text("http://example.com/looks-like-an-address")
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.4\nbroken")
    assert loader.load(tmp_path / "a.html")[0].text
    with pytest.raises(Unreadable):
        loader.load(tmp_path / "b.pdf")


def test_a_batch_of_bad_files_is_quarantined_with_reasons_and_the_rest_goes_on(tmp_path: Path, docs: Path) -> None:
    (docs / "truncated.pdf").write_bytes(b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog /Pa")
    (docs / "bomb.pdf").write_bytes(pdf_bomb(600))
    (docs / "named.pdf").write_text("This is no PDF.")
    (docs / "binary.md").write_bytes(os.urandom(4096))
    (docs / "mixed.txt").write_bytes("漢字".encode() * 20 + b"\x81\x8d\xff\xfe" * 20)
    with (docs / "line.txt").open("wb") as file:
        file.truncate(1 << 30)
    config = IndexConfig(load_memory_mb=512, load_seconds=30)
    with Library(tmp_path / "home", MemoryStore(), HashEmbedder(), config=config) as library:
        report = library.index([docs], "docs")
        reasons = {item.document_id.removeprefix("docs/"): item.reason for item in report.quarantined}
        assert reasons.keys() == {"truncated.pdf", "bomb.pdf", "named.pdf", "binary.md", "mixed.txt", "line.txt"}
        assert all(reason.endswith(".") for reason in reasons.values()), reasons
        assert len(report.added) == 3
        assert library.verify("docs").ok


@pytest.mark.data
def test_real_files_are_read_or_refused_for_a_reason(loader: LoaderProcess, data: Path) -> None:
    folder = data / "ingest_docs" / "files"
    loader.limits = replace(LIMITS, bytes=64 << 20)
    refused: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".pdf", ".html", ".md", ".txt"):
            try:
                found, _ = loader.load(path)
            except Unreadable as error:
                refused[path.name] = str(error)
            else:
                assert "\ufffe" not in found.text
                assert all(0 <= s.start <= s.end <= len(found.text) for s in found.sections)
    assert refused.keys() == {
        "docling__ocr_test.pdf",
        "markitdown__MEDRPT-2024-PAT-3847_medical_report_scan.pdf",
        "tika__testPDF_malformedXFA.pdf",
        "unstructured__password.pdf",
    }
    assert refused["unstructured__password.pdf"] == "It is encrypted with a password."
