"""Supervised tuning on our own documents: examples a second, packed by what they share, beside TRL as it is.

Both train the same LoRA on the same examples for one pass, in the precision that suits the machine; TRL pads batches of
eight, with its own loss. Data loading and the base's loading are left out.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.harness import Figure, Spread, alternate
from framework.models.catalog import Catalog
from framework.training.config import AdapterConfig, CheckpointConfig, DataConfig, OptimizerConfig, TrainConfig
from framework.training.data import Data, Material
from framework.training.job import Job
from framework.training.packing import pack
from framework.training.recipes import sft
from framework.training.rendering import Example
from framework.training.run import RunFolder

DOCUMENTS = Path(__file__).parents[1] / "recipes" / "data" / "documents"
BATCH = 8


def run(quick: bool) -> list[Figure]:
    material = Material.read([DOCUMENTS / "work-01.jsonl"], "chat")
    material = replace(material, documents=material.documents[: 3 if quick else 12])
    data = Data(tuple(material.rows(DataConfig(), 0)), ())
    with tempfile.TemporaryDirectory() as folder:
        job = _job(data, Path(folder))
        examples = data.examples(job.base)
        alone = sum(len(example.ids) for example in examples)
        packed = sum(map(len, pack(examples, job.config.data.max_length)))
        print(f"{len(examples)} examples: {alone} tokens one by one, {packed} packed")
        ours, peer = alternate(
            lambda: len(examples) / _seconds(lambda: _ours(job)),
            lambda: len(examples) / _seconds(lambda: _trl(job, examples)),
            1 if quick else 3,
        )
    tokens = Figure("tokens computed, share of one by one", Spread((packed,)), "tokens", Spread((alone,)), "one by one")
    return [Figure("supervised tuning", ours, "examples/s", peer, f"TRL, batches of {BATCH}", goal=3.0), tokens]


def _job(data: Data, folder: Path) -> Job:
    config = TrainConfig(
        recipe="sft",
        name="bench",
        adapter=AdapterConfig(rank=16),
        optimizer=OptimizerConfig(epochs=1, sequences=1, threads=2),
        checkpoints=CheckpointConfig(every=10_000),
    )
    return Job(config, Catalog().resolve(config.base), data, RunFolder(folder), lambda _: None)


def _seconds(make: Callable[[], Any]) -> float:
    """Of the training alone; making the trainer is not counted."""
    trainer = make()
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started


def _ours(job: Job) -> Any:
    return sft.trainer(job, *job.packed())


def _trl(job: Job, examples: list[Example]) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows = {
        "input_ids": [list(example.ids) for example in examples],
        "labels": [[-100] * example.prompt + list(example.ids[example.prompt :]) for example in examples],
    }
    arguments = {**job.arguments(), "per_device_train_batch_size": BATCH, "gradient_accumulation_steps": 1}
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            job.base.path, dtype=torch.bfloat16 if job.bfloat16 else torch.float32
        ),
        args=SFTConfig(**arguments, max_length=None),
        train_dataset=Dataset.from_dict(rows),
        processing_class=job.tokenizer(),
        peft_config=job.adapter(),
    )
