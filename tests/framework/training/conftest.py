"""A bench to train tiny chat models on: rows and a configuration are written, the run is made or taken up."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from framework.config import Settings
from framework.testing.tiny_chat import write_tiny_chat
from framework.training.run import RunFolder
from framework.training.start import run_file

PROVENANCE = {"source": "tests", "licence": "MIT", "synthetic": True}


@dataclass
class Bench:
    """A folder with a base, rows and a configuration. `said`: what the last run told."""

    folder: Path
    base: Path
    said: list[str] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        return Settings({"lectern": {"home": str(self.folder / "home")}}, base=self.folder)

    def rows(self, rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        """Write rows; what every row needs and no test cares for is filled in."""
        with (self.folder / name).open("w", encoding="utf-8") as file:
            for number, row in enumerate(rows):
                file.write(json.dumps({"document": f"d{number}", "provenance": PROVENANCE, **row}) + "\n")
        return self.folder / name

    def config(self, recipe: str = "sft", name: str = "run", **sections: dict[str, Any]) -> Path:
        """Write a configuration: short, exact, on the rows in rows.jsonl; sections change it."""
        whole: dict[str, dict[str, Any]] = {
            "data": {"train": ["rows.jsonl"], "validation_share": 0.3},
            "adapter": {"rank": 4},
            "optimizer": {"steps": 4, "sequences": 2, "precision": "float32", "schedule": "constant_with_warmup"},
            "checkpoints": {"every": 2},
        }
        for section, values in sections.items():
            whole[section] = {**whole.get(section, {}), **values}
        lines = [f'recipe = "{recipe}"', 'name = "tiny"', f"base = {json.dumps(str(self.base))}", f'out = "{name}"']
        for section, values in whole.items():
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        path = self.folder / f"{name}.toml"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    def train(self, config: Path, **options: Any) -> RunFolder:
        self.said.clear()
        return run_file(config, self.settings, say=self.said.append, **options)[0]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model of two layers with 32 dimensions."""
    return write_tiny_chat(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture
def bench(tmp_path: Path, tiny_base: Path) -> Bench:
    return Bench(tmp_path, tiny_base)


@pytest.fixture
def questions() -> Callable[[int], list[dict[str, Any]]]:
    """Rows for supervised tuning, as many as wished."""

    def made(count: int) -> list[dict[str, Any]]:
        return [
            {
                "messages": [
                    {"role": "user", "content": f"What is {n}?"},
                    {"role": "assistant", "content": f"It is {n}."},
                ]
            }
            for n in range(count)
        ]

    return made


@pytest.fixture
def preferences() -> Callable[[int], list[dict[str, Any]]]:
    """A preference that can be learned: yes is better than no."""

    def made(count: int) -> list[dict[str, Any]]:
        return [
            {
                "prompt": [{"role": "user", "content": f"Is it {n}?"}],
                "chosen": " ".join(["yes"] * (1 + n % 3)),
                "rejected": " ".join(["no"] * (1 + n // 3 % 3)),
            }
            for n in range(count)
        ]

    return made
