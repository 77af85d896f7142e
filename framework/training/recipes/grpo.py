"""Group relative policy optimization (Shao et al. 2024): answers to one prompt are compared by their rewards.

Runs on TRL's GRPOTrainer, without another engine for the answers. How far the model may go from its base is bounded:
the coefficient of the KL divergence doubles with each update while the divergence that is measured is above
`preference.kl_bound`, and falls back afterwards; and the result is pulled back towards the start until the divergence
that is measured on held-out prompts is within the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from framework.errors import CallerError
from framework.messages import Message
from framework.models.chat_text import ChatText, shared_text
from framework.training.job import Job, quiet
from framework.training.kl_bound import KLBound
from framework.training.rendering import check_length
from framework.training.rewards import Reward, find, read_answer
from framework.training.rows import ChatRow, Row, kind_of
from framework.training.run import RunFolder

if TYPE_CHECKING:
    import torch

HELD_OUT: Final = 32  # prompts that reward and divergence are measured on before and after


def train(job: Job) -> None:
    """Tune the job's base by the rewards of its own answers; the result lies in the run folder.

    Raises:
        CallerError: the rows are no chat rows, or too long, or no reward applies to any of them.
        ConfigError: there is no such reward.
    """
    options, text = job.config.preference, shared_text(job.base.path, job.base.card.name)
    rewards = {name: find(name, job.folder) for name in options.rewards}
    train_rows = cases(job.data.train, list(rewards.values()))
    if not train_rows:
        raise CallerError("None of the rewards applies to any training row.", field="preference.rewards")
    held_out = cases(job.data.validation, list(rewards.values()))[:HELD_OUT] or train_rows[:HELD_OUT]
    rows = [*train_rows, *held_out]
    trainer = _trainer(job, rows, len(train_rows), rewards, text)
    quiet(trainer)
    if job.run.last_checkpoint() is None:
        job.run.note(reward={"before": trainer.evaluate()["eval_reward"]})
    job.fit(trainer)


def cases(rows: Sequence[Row], rewards: Sequence[Reward]) -> list[ChatRow]:
    """Conversations up to each assistant's turn that a reward can judge: one applies to the right answer."""
    found = []
    for row in rows:
        if not isinstance(row, ChatRow):
            raise CallerError(f"This recipe learns from chat rows, and {row.document!r} is a {kind_of(row)} row.")
        for place, message in enumerate(row.messages):
            turn = replace(row, messages=row.messages[: place + 1])
            if message.role == "assistant" and any(_number(r, turn, message) is not None for r in rewards):
                found.append(turn)
    return found


def _number(reward: Reward, row: ChatRow, answer: Message) -> float | None:
    value = reward(row, answer)
    if value is not None and (not isinstance(value, int | float) or not math.isfinite(value)):
        raise CallerError(f"A reward must be a finite number or None, got {value!r:.80}.", field="preference.rewards")
    return None if value is None else float(value)


def _trainer(job: Job, rows: Sequence[ChatRow], trained: int, rewards: dict[str, Reward], text: ChatText) -> Any:
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig

    options = job.config.preference
    prompts = [text.prompt(row.messages[:-1], row.tools) for row in rows]
    for row, prompt in zip(rows, prompts, strict=True):
        check_length(len(prompt) + options.max_new_tokens, job.config.data.max_length, row.document)
    arguments = job.arguments() | {
        "per_device_train_batch_size": options.generations,
        "per_device_eval_batch_size": options.generations,
        "gradient_accumulation_steps": job.config.optimizer.sequences // options.generations,
        "eval_strategy": "steps",
    }
    model, peft_config = job.tuned()
    generation: Any = model.generation_config
    generation.eos_token_id = sorted(text.ends)
    places = [str(place) for place in range(len(rows))]
    return _bounded()(
        prompts=prompts,
        bound=KLBound(options.kl_bound, options.beta),
        run=job.run,
        model=model,
        reward_funcs=[_judge(name, reward, rows, text) for name, reward in rewards.items()],
        args=GRPOConfig(
            **arguments,
            beta=options.beta,
            num_generations=options.generations,
            max_completion_length=options.max_new_tokens,
            temperature=options.temperature,
            reward_weights=list(options.weights) or None,
            disable_dropout=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": places[:trained]}),
        eval_dataset=Dataset.from_dict({"prompt": places[trained:]}),
        processing_class=job.tokenizer(),
        peft_config=peft_config,
        callbacks=[job.progress()],
    )


def _judge(name: str, reward: Reward, rows: Sequence[ChatRow], text: ChatText) -> Callable[..., list[float | None]]:
    """A reward as TRL calls it; prompts go by their place among the rows."""

    def judge(prompts: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float | None]:
        asked = [rows[int(place)] for place in prompts]
        pairs = zip(asked, completion_ids, strict=True)
        return [_number(reward, row, read_answer(ids, text, row.tools)) for row, ids in pairs]

    judge.__name__ = name.rpartition("/")[2]
    return judge


def _last_evaluation(state: Any) -> dict[str, float] | None:
    """What was measured after the last update, if anything was."""
    found = [report for report in state.log_history if "eval_kl" in report and report["step"] == state.global_step]
    return found[-1] if found else None


def _pulled_back(trainer: Any, trained: torch.nn.Module, bound: KLBound) -> tuple[dict[str, float], int]:
    """What is measured at the end, and by how many tenths the weights had to go back to be within the bound."""
    last = _last_evaluation(trainer.state) or trainer.evaluate()
    pulled = 0
    while last["eval_kl"] > bound.most and pulled < 10:
        pulled += 1
        bound.pull_back(trained, pulled)
        last = trainer.evaluate()
    return last, pulled


@cache
def _bounded() -> Any:
    """TRL's trainer with prompts as token ids, and within a bound of the divergence."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    class Bounded(GRPOTrainer):
        def __init__(self, *, prompts: Sequence[list[int]], bound: KLBound, run: RunFolder, **given: Any) -> None:
            super().__init__(**given)
            self._prompts, self._bound, self._run = prompts, bound, run
            bound.begin(self._trained)

        def _tokenize_prompts(self, prompts: list[str]) -> Any:
            return [list(self._prompts[int(place)]) for place in prompts], None, {}

        @property
        def _trained(self) -> torch.nn.Module:
            model: Any = self.model
            trained: torch.nn.Module = model
            return trained

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            loss = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[no-untyped-call]
            if self.accelerator.sync_gradients:
                found = self._metrics["train"]["kl"][-self.current_gradient_accumulation_steps :]
                # Measured on the answers of the weights as they are before this update.
                self.beta = self._bound.seen(sum(found) / len(found))
                self._metrics["train"]["kl_coefficient"].append(self.beta)
            return loss

        def train(self, *args: Any, **given: Any) -> Any:
            done = super().train(*args, **given)
            last, pulled = _pulled_back(self, self._trained, self._bound)
            before = self._run.read().get("reward", {})
            self._run.note(
                reward={**before, "after": last["eval_reward"]},
                kl={"bound": self._bound.most, "measured": last["eval_kl"], "pulled_back": pulled / 10},
            )
            return done

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            # First: a checkpoint counts once the trainer's own state is there.
            self._bound.save(Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}")
            super()._save_checkpoint(model, trial)  # type: ignore[no-untyped-call]

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            self._bound.load(Path(resume_from_checkpoint))
            self.beta = self._bound.coefficient

    return Bounded
