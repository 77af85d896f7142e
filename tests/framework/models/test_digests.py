"""Digests of model files."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from framework.models import digests
from framework.models.digests import file_digest


def test_it_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").write_bytes(b"one")
    assert file_digest(tmp_path / "weights", tmp_path / "cache") == sha256(b"one").hexdigest()
    monkeypatch.delattr(digests, "hash_file")
    assert file_digest(tmp_path / "weights", tmp_path / "cache") == sha256(b"one").hexdigest()


def test_another_content_under_the_same_name_is_seen(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    for content in (b"one", b"other", b"two!!"):
        (tmp_path / "new").write_bytes(content)
        (tmp_path / "new").replace(weights)
        assert file_digest(weights, tmp_path / "cache") == sha256(content).hexdigest()


@pytest.mark.parametrize("record", ["", "{}", "[]", '{"stamp": 1, "sha256": "x"}'])
def test_a_damaged_record_is_made_anew(tmp_path: Path, record: str) -> None:
    (tmp_path / "weights").write_bytes(b"one")
    file_digest(tmp_path / "weights", tmp_path / "cache")
    (kept,) = (tmp_path / "cache" / "digests").iterdir()
    kept.write_text(record)
    assert file_digest(tmp_path / "weights", tmp_path / "cache") == sha256(b"one").hexdigest()


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"one")
    (tmp_path / "cache").write_text("a file")
    assert file_digest(tmp_path / "weights", tmp_path / "cache") == sha256(b"one").hexdigest()
