"""What training on pairs has in common: negatives, batches of similar length, the trainer, plugging in LoRA."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.errors import CallerError
from framework.training.job import Job, quiet
from framework.training.negatives import embedder_search, mine, positives
from framework.training.rows import PairRow, Row, kind_of

if TYPE_CHECKING:
    import torch
    from torch import nn

TRAINED = "trained.safetensors"
# Batches that are put together from rows of the same stretch of lengths.
STRETCH = 16


def check_kind(job: Job, *kinds: str) -> None:
    """Refuse, before anything is done, an adapter that could not be saved.

    Raises:
        CallerError: `adapter.kind` is none of `kinds`.
    """
    if job.config.adapter.kind not in kinds:
        raise CallerError(
            f"adapter.kind is {job.config.adapter.kind!r}, and this recipe makes none of that kind.",
            hint=f"Set it to {' or '.join(kinds)}.",
            field="adapter.kind",
        )


def pair_rows(job: Job) -> tuple[list[PairRow], list[PairRow]]:
    """The pairs to train and to validate on, each with as many negatives as the configuration wants.

    Rows that have fewer get them by the embedder that ships: training rows from each other's passages, validation rows
    from all, since a passage that does not answer gives nothing away. A validation row that finds too few is left out.

    Raises:
        CallerError: a row is no pair, or there are not enough other documents to take negatives from.
    """
    wanted = job.config.pairs.negatives
    train, validation = _pairs(job.data.train), _pairs(job.data.validation)
    rows = _with_negatives(job, train, train)
    for row in rows:
        if len(row.negatives) < wanted:
            raise CallerError(
                f"There are only {len(row.negatives)} negatives for {row.query[:60]!r}.",
                hint=f"Add pairs of other documents, or set pairs.negatives below {wanted}.",
                field="pairs.negatives",
            )
    found = _with_negatives(job, validation, [*train, *validation])
    measured = [row for row in found if len(row.negatives) >= wanted]
    if len(measured) < len(found):
        job.say(
            f"The loss is measured on {len(measured)} of {len(found)} validation rows; "
            f"the others have fewer than {wanted} negatives."
        )
    return rows, measured


def _pairs(rows: Sequence[Row]) -> list[PairRow]:
    pairs = []
    for row in rows:
        if not isinstance(row, PairRow):
            raise CallerError(f"This recipe learns from pairs, and {row.document!r} is a {kind_of(row)} row.")
        pairs.append(row)
    return pairs


def _with_negatives(job: Job, rows: list[PairRow], known: Sequence[PairRow]) -> list[PairRow]:
    """The rows with negatives from the known rows' passages, where they lack any."""
    wanted = job.config.pairs.negatives
    if all(len(row.negatives) >= wanted for row in rows):
        return rows
    from framework.models.embedders import load_embedder

    job.say(f"Looking for hard negatives of {len(rows)} pairs.")
    embedder = load_embedder()
    job.run.note(negatives_by=embedder.info.id)
    return mine(rows, embedder_search(embedder, positives(known)), wanted)


def passage_columns(negatives: int) -> list[str]:
    """Names of the columns that hold passages."""
    return ["positive", *(f"negative_{i + 1}" for i in range(negatives))]


def columns(rows: Sequence[PairRow], negatives: int) -> Any:
    """As sentence-transformers reads them: query, positive, negative_1 and so on."""
    from datasets import Dataset

    table = {"query": [row.query for row in rows]}
    table |= {
        name: [(row.positive, *row.negatives)[i] for row in rows] for i, name in enumerate(passage_columns(negatives))
    }
    return Dataset.from_dict(table)


class Batches:
    """Batches of similar length, in which no document has two rows: the other rows' passages are negatives there.

    The order is drawn anew for each epoch, by the seed and the epoch alone, so that a run that is taken up again goes
    on as it would have.

    Args:
        rows: as in the dataset.
        size: rows in a batch; fewer where the documents don't suffice.
        seed: of the order.
    """

    drop_last = False

    def __init__(self, rows: Sequence[PairRow], size: int, seed: int) -> None:
        self.batch_size = size
        self._rows = rows
        self._lengths = [max(len(row.positive), *map(len, row.negatives or ("",))) for row in rows]
        self._seed = seed
        self._epoch = 0
        self._count = sum(1 for _ in self)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is iterated."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        # Shuffled within each stretch, and the batches among each other; which rows share a batch depends on the seed
        # alone, so that each epoch has equally many.
        dice = random.Random(self._seed)
        order = list(range(len(self._rows)))
        dice.shuffle(order)
        batches: list[list[int]] = []
        for start in range(0, len(order), self.batch_size * STRETCH):
            stretch = sorted(order[start : start + self.batch_size * STRETCH], key=lambda i: self._lengths[i])
            batches += self._apart(stretch)
        random.Random(f"{self._seed} {self._epoch}").shuffle(batches)
        return iter(batches)

    def _apart(self, stretch: Sequence[int]) -> list[list[int]]:
        """Each row in the first batch that has room for it and nothing of its document."""
        batches: list[tuple[list[int], set[str]]] = []
        for i in stretch:
            document = self._rows[i].document
            open_ = next((b for b in batches if len(b[0]) < self.batch_size and document not in b[1]), None)
            if open_ is None:
                open_ = ([], set())
                batches.append(open_)
            open_[0].append(i)
            open_[1].add(document)
        return [batch for batch, _ in batches]


@dataclass(frozen=True)
class Parts:
    """What differs between the models that are trained on pairs.

    Attributes:
        trainer: sentence-transformers' class.
        arguments: of its arguments.
        model: what is trained.
        loss: of a batch.
        table: the rows as the loss wants them, with so many negatives each.
        head: the name of the module that has a learning rate of its own.
        prompts: what stands before the texts of a column.
    """

    trainer: Any
    arguments: Any
    model: Any
    loss: Any
    table: Callable[[Sequence[PairRow], int], Any] = columns
    head: str = ""
    prompts: Mapping[str, str] | None = None


def fit(job: Job, parts: Parts, rows: Sequence[PairRow], validation: Sequence[PairRow]) -> None:
    """Train on rows, from the last checkpoint where there is one, and measure the loss on validation rows.

    An update is computed from one batch, so that its rows are each other's negatives.
    """
    size, seed, negatives = job.config.optimizer.sequences, job.config.optimizer.seed, job.config.pairs.negatives
    measured = parts.table(validation, negatives) if validation else None
    rate = job.config.pairs.head_learning_rate
    arguments = {
        **job.arguments(),
        "per_device_train_batch_size": size,
        "per_device_eval_batch_size": size,
        "gradient_accumulation_steps": 1,
        "eval_strategy": "steps" if validation else "no",
        "batch_sampler": lambda table, **_: Batches(validation if table is measured else rows, size, seed),
        "learning_rate_mapping": {rf"(^|\.){parts.head}\.": rate} if parts.head and rate else {},
        "prompts": parts.prompts,
    }
    trainer = resumable(parts.trainer)(
        model=parts.model,
        args=parts.arguments(**arguments),
        train_dataset=parts.table(rows, negatives),
        eval_dataset=measured,
        loss=parts.loss,
        callbacks=[job.progress()],
    )
    quiet(trainer)
    job.train(trainer)
    if validation and not any("validation_loss" in report for report in job.run.reports()[-1:]):
        trainer.evaluate()


def add_lora(job: Job, model: nn.Module) -> None:
    """Put LoRA into a model's linear layers, and train nothing else; for full tuning nothing is put in.

    Its first values are drawn by the run's seed.
    """
    from peft import inject_adapter_in_model
    from transformers import set_seed

    set_seed(job.config.optimizer.seed)
    config = job.adapter("FEATURE_EXTRACTION")
    if config is not None:
        inject_adapter_in_model(config, model)
    model.requires_grad_(config is None)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)


def merge_lora(model: nn.Module) -> None:
    """Multiply LoRA into the weights, and take it out of the model."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.get_base_layer())


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """What is trained, by name."""
    return {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}


@cache
def resumable(kind: Any) -> Any:
    """A trainer of sentence-transformers whose checkpoints hold what is trained, and no copy of the base."""

    class Resumable(kind):  # type: ignore[misc]
        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            from safetensors.torch import save_file

            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(trained(self.model), folder / TRAINED)

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            from safetensors.torch import load_file

            tensors = load_file(Path(resume_from_checkpoint) / TRAINED)
            names = trained(self.model).keys()
            if tensors.keys() != names:
                raise CallerError(
                    f"{resume_from_checkpoint} is a state of another model.", hint="Train from the start."
                )
            self.model.load_state_dict(tensors, strict=False)

        def create_model_card(self, *_: Any, **__: Any) -> None:
            """The run folder has a card of its own."""

    return Resumable
