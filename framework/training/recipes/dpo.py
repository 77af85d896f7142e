"""Direct preference optimization (Rafailov et al. 2023): the better answer becomes likelier against the worse one.

Runs on TRL's DPOTrainer. The reference is the base without the adapter, or the adapter that the run goes on with.
"""

from __future__ import annotations

from framework.training.job import Job
from framework.training.recipes.preferences import dataset, fit, measuring, pairs


def train(job: Job) -> None:
    """Tune the job's base on its preferences; the result lies in the run folder.

    Raises:
        CallerError: the rows are no preferences, or longer than `data.max_length`.
    """
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    train_pairs, validation = pairs(job)
    model, peft_config = job.tuned()
    arguments = DPOConfig(
        **job.arguments(),
        beta=job.config.preference.beta,
        max_length=None,
        disable_dropout=False,
        remove_unused_columns=False,
    )
    trainer = measuring(DPOTrainer, "rewards/margins")(
        model=model,
        args=arguments,
        train_dataset=dataset(train_pairs, with_prompt=False),
        eval_dataset=dataset(validation, with_prompt=False),
        processing_class=job.tokenizer(),
        peft_config=peft_config,
        callbacks=[job.progress()],
    )
    fit(job, trainer, validation)
