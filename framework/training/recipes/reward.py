"""A reward model (Bradley and Terry 1952; Stiennon et al. 2020): one number for an answer, higher for the better one.

Runs on TRL's RewardTrainer. The result is an adapter with a head, which `framework.training.reward_model` loads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from framework.errors import CallerError
from framework.training.job import Job
from framework.training.recipes.preferences import dataset, fit, measuring, pairs
from framework.training.reward_model import HEAD, describe, padding

if TYPE_CHECKING:
    import torch


def train(job: Job) -> None:
    """Tune the job's base on its preferences; the result lies in the run folder.

    Raises:
        CallerError: the rows are no preferences, or longer than `data.max_length`; `adapter.start` is set.
    """
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    if job.config.adapter.start is not None:
        raise CallerError("A reward model starts from its base.", hint="Leave it out.", field="adapter.start")
    train_pairs, validation = pairs(job)
    tokenizer = job.tokenizer()
    tokenizer.pad_token = padding(job.base, tokenizer)
    trainer = measuring(RewardTrainer, "margin")(
        model=_model(job),
        args=RewardConfig(**job.arguments(), max_length=None, disable_dropout=False),
        train_dataset=dataset(train_pairs, with_prompt=True),
        eval_dataset=dataset(validation, with_prompt=True),
        processing_class=tokenizer,
        peft_config=job.adapter("SEQ_CLS", modules_to_save=[HEAD]),
        callbacks=[job.progress()],
    )
    # The head is new: in bfloat16 its updates would be rounded away.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    fit(job, trainer, validation)
    describe(job)


def _model(job: Job) -> torch.nn.Module:
    """The base with a head that knows nothing yet: every answer gets 0."""
    import torch

    model: Any = job.model("AutoModelForSequenceClassification", num_labels=1)
    torch.nn.init.zeros_(getattr(model, HEAD).weight)
    whole: torch.nn.Module = model
    return whole
