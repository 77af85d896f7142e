"""Supervised tuning: the loss is on the assistant's tokens, packed sequences share what their examples have in common.

Runs on TRL's SFTTrainer, which brings the optimizer, checkpoints and resuming.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from framework.training.job import Job
from framework.training.packing import IGNORED, Packed, visible

if TYPE_CHECKING:
    import torch


def train(job: Job) -> None:
    """Tune the job's base on its rows; the result lies in the run folder.

    Raises:
        CallerError: the rows are no chat rows, or longer than `data.max_length`.
    """
    job.fit(trainer(job, *job.packed()))


def trainer(job: Job, train_data: Sequence[Packed], validation: Sequence[Packed] = ()) -> Any:
    """TRL's trainer, ready to train on packed sequences."""
    from trl.trainer.sft_config import SFTConfig

    model, peft_config = job.tuned()
    arguments = SFTConfig(
        **job.arguments(),
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        max_length=None,
        completion_only_loss=False,
    )
    return _trainer()(
        model=model,
        args=arguments,
        train_dataset=dataset(train_data),
        eval_dataset=dataset(validation) if validation else None,
        data_collator=collate,
        processing_class=job.tokenizer(),
        peft_config=peft_config,
        callbacks=[job.progress()],
    )


def _trainer() -> Any:
    """TRL's trainer with the loss computed where there are labels only.

    TRL's own loss projects every position onto the vocabulary where there is no GPU, which takes a quarter of a step.
    """
    import torch
    from trl.trainer.sft_trainer import SFTTrainer

    class PackedTrainer(SFTTrainer):
        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels = inputs.pop("labels")[:, 1:]
            places = labels != IGNORED
            whole = self.accelerator.unwrap_model(model)
            causal = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
            hidden = causal.get_decoder()(**inputs, use_cache=False).last_hidden_state[:, :-1]
            logits = causal.get_output_embeddings()(hidden[places]).float()
            count = places.sum() if num_items_in_batch is None else num_items_in_batch
            loss = torch.nn.functional.cross_entropy(logits, labels[places], reduction="sum") / count
            return (loss, {"loss": loss}) if return_outputs else loss

        def prediction_step(
            self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
        ) -> Any:
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                return self.compute_loss(model, inputs).detach(), None, None

    return PackedTrainer


def dataset(packed: Sequence[Packed]) -> Any:
    """As the trainers of Hugging Face read it."""
    from datasets import Dataset

    columns = ("ids", "labels", "positions", "branch", "trunk")
    return Dataset.from_dict({name: [getattr(item, name) for item in packed] for name in columns})


def collate(items: Sequence[Mapping[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch: ids, labels and positions of shape (sequences, longest), and the mask that is added to the scores."""
    import torch

    longest = max(len(item["ids"]) for item in items)
    shape = (len(items), longest)
    ids, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    seen = torch.eye(longest, dtype=torch.bool).repeat(len(items), 1, 1)
    for row, item in enumerate(items):
        size = len(item["ids"])
        ids[row, :size] = torch.tensor(item["ids"])
        labels[row, :size] = torch.tensor(item["labels"])
        positions[row, :size] = torch.tensor(item["positions"])
        seen[row, :size, :size] = torch.from_numpy(visible(Packed(**item)))
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
    return {"input_ids": ids, "labels": labels, "position_ids": positions, "attention_mask": mask}
