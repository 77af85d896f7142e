"""Text to measure with: the documentation tree of the evaluation data where it is there, generated pages otherwise."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path

WORDS = 4000


def pages(count: int) -> list[tuple[str, str]]:
    """Relative path and Markdown text of `count` pages."""
    folder = os.environ.get("LECTERN_DATA")
    source = Path(folder) / "otel_docs" / "en.v1.jsonl.gz" if folder else None
    if source and source.is_file():
        with gzip.open(source, "rt", encoding="utf-8") as lines:
            real = [(row["path"], row["text"]) for row in map(json.loads, lines)]
        if len(real) >= count:
            step = len(real) / count
            return [real[int(i * step)] for i in range(count)]
    return generated(count)


def generated(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Pages of made-up words whose frequencies fall as Zipf's law says, with headings, 150 to 900 words each."""
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices("aeioulnrstdm", k=rng.randint(2, 9))) for _ in range(WORDS)]
    weights = [1 / (rank + 1) for rank in range(WORDS)]
    made = []
    for number in range(count):
        parts = [f"# {' '.join(rng.choices(vocabulary, k=4))} {number}"]
        for _ in range(rng.randint(2, 9)):
            parts.append(f"## {' '.join(rng.choices(vocabulary, k=3))}")
            words = rng.choices(vocabulary, weights, k=rng.randint(50, 120))
            sentences = [" ".join(words[i : i + 12]).capitalize() + "." for i in range(0, len(words), 12)]
            parts.append(" ".join(sentences))
        made.append((f"page{number:05d}.md", "\n\n".join(parts) + "\n"))
    return made


def write_pages(folder: Path, count: int) -> list[Path]:
    """The pages as files below `folder`."""
    written = []
    for name, text in pages(count):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written
