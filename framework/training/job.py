"""A training run in the making: configuration, base, rows and run folder, and what every recipe needs of them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.errors import CallerError
from framework.models.catalog import Resolved
from framework.training.attention import register
from framework.training.config import CHAT, TrainConfig
from framework.training.packing import Packed, pack
from framework.training.progress import Say, callback, diverged, on_terminal
from framework.training.run import RunFolder
from framework.training.tuning import adapter_of, count

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig

    from framework.training.data import Data


@dataclass(frozen=True)
class Job:
    """What a recipe is given.

    Attributes:
        data: the rows, checked and split.
        say: where progress is told.
        folder: what paths in the configuration are relative to.
    """

    config: TrainConfig
    base: Resolved
    data: Data
    run: RunFolder
    say: Say = on_terminal
    folder: Path = Path()

    @cached_property
    def device(self) -> str:
        """Where it is trained."""
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def bfloat16(self) -> bool:
        """Whether matrix products are in bfloat16."""
        import torch

        chosen = self.config.optimizer.precision
        if chosen != "auto":
            return chosen == "bfloat16"
        if self.device == "cuda":
            return bool(torch.cuda.is_bf16_supported())
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())

    def tokenizer(self) -> Any:
        """The base's tokenizer, as trainers want one."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.base.path, local_files_only=True)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def model(self, kind: str = "AutoModelForCausalLM", **options: Any) -> torch.nn.Module:
        """The base, in bfloat16 where that is computed with and only an adapter is trained."""
        import torch
        import transformers

        frozen = self.config.adapter.kind != "full"
        attention = register() if self.device == "cpu" else "sdpa"
        auto: Any = getattr(transformers, kind)
        model: torch.nn.Module = auto.from_pretrained(
            self.base.path,
            dtype=torch.bfloat16 if self.bfloat16 and frozen else torch.float32,
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
        return model

    def adapter(self, task: str = "CAUSAL_LM", **options: Any) -> PeftConfig | None:
        """PEFT's configuration; None for full tuning."""
        return adapter_of(self.config.adapter, task, **options)

    def tuned(self) -> tuple[torch.nn.Module, PeftConfig | None]:
        """The base and the configuration of a new adapter, or the base with the adapter that is gone on with.

        Raises:
            CallerError: `adapter.start` is no adapter.
        """
        if self.config.adapter.start is None:
            return self.model(), self.adapter()
        from peft import PeftModel

        start = self.folder / self.config.adapter.start
        if not (start / "adapter_config.json").is_file():
            raise CallerError(f"There is no adapter in {start}.", field="adapter.start")
        return PeftModel.from_pretrained(self.model(), start, is_trainable=True), None

    def packed(self) -> tuple[list[Packed], list[Packed]]:
        """The examples of training and validation, packed."""
        length = self.config.data.max_length
        return pack(self.data.examples(self.base), length), pack(self.data.validation_examples(self.base), length)

    def arguments(self) -> dict[str, Any]:
        """Arguments that all of Hugging Face's trainers share."""
        options, checkpoints = self.config.optimizer, self.config.checkpoints
        return {
            "output_dir": str(self.run.checkpoints),
            "learning_rate": options.learning_rate,
            "num_train_epochs": options.epochs,
            "max_steps": options.steps or -1,
            "per_device_train_batch_size": 1,
            "per_device_eval_batch_size": 1,
            "gradient_accumulation_steps": options.sequences,
            "warmup_steps": options.warmup,
            "lr_scheduler_type": options.schedule,
            "weight_decay": options.weight_decay,
            "max_grad_norm": options.max_norm,
            "seed": options.seed,
            "bf16": self.bfloat16,
            "use_cpu": self.device == "cpu",
            # A report never spans a checkpoint: a run that is taken up again gives the same reports.
            "logging_steps": math.gcd(5, checkpoints.every),
            "logging_first_step": True,
            "logging_nan_inf_filter": False,  # it would invent a loss where there is none
            "save_steps": checkpoints.every,
            "save_total_limit": checkpoints.keep,
            "eval_strategy": "steps" if self.data.validation else "no",
            "eval_steps": 2 * checkpoints.every,
            "report_to": "none",
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            "dataloader_pin_memory": self.device == "cuda",
            "average_tokens_across_devices": False,
        }

    def progress(self) -> Any:
        """The callback that writes the log and tells the progress."""
        return callback(self.run, self.say)

    def fit(self, trainer: Any) -> None:
        """Train, from the last checkpoint where there is one, measure the loss at the end, and save the result."""
        quiet(trainer)
        self.train(trainer)
        last = self.run.reports()[-1:]
        if self.data.validation and not any("validation_loss" in report for report in last):
            trainer.evaluate()
        self.save(trainer.model)

    def train(self, trainer: Any) -> None:
        """Train, from the last checkpoint where there is one.

        Raises:
            CallerError: it diverged.
        """
        import torch

        if self.config.optimizer.threads:
            torch.set_num_threads(self.config.optimizer.threads)
        trainable = count(trainer.model)
        self.say(f"{trainable}.")
        self.run.note(parameters={"trained": trainable.trained, "all": trainable.all})
        checkpoint = self.run.last_checkpoint()
        if checkpoint:
            self.say(f"Taking up {checkpoint.name}.")
            trainer.add_callback(_only_take_up_the_last(trainer, checkpoint))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if not all(torch.isfinite(p).all() for p in trainer.model.parameters() if p.requires_grad):
            raise diverged(trainer.state.global_step, "weights that are no numbers")

    def save(self, model: Any) -> None:
        """Write the result: the adapter, or the whole model with its tokenizer."""
        if self.config.adapter.kind == "full":
            model.save_pretrained(self.run.model)
            self.tokenizer().save_pretrained(self.run.model)
        else:
            self._record(model)
            save_adapter(model, self.run.adapter, self.config.adapter.weights, self.base.card.name)

    def _record(self, model: Any) -> None:
        """Keep what the model in training answers, so that the parity gate can tell what was lost on the way."""
        from framework.training.data import Data
        from framework.training.probes import COUNT, REFERENCE, probes_of, record

        if self.config.recipe not in CHAT:
            return
        rows = self.data.validation if self.config.recipe != "dpo" else ()
        chosen = Data((), rows[:: max(1, len(rows) // COUNT)][:COUNT])
        probes = probes_of([example.ids for example in chosen.validation_examples(self.base)], self.base.path)
        record(model, probes, "bfloat16" if self.bfloat16 else "float32").save(self.run.path / REFERENCE)


def _only_take_up_the_last(trainer: Any, checkpoint: Path) -> Any:
    """A callback for a state after the last update: from one within an epoch transformers makes another update."""
    from transformers import TrainerCallback

    class Last(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step >= state.max_steps:
                trainer._run_epoch = lambda **_: None
                trainer._load_rng_state(str(checkpoint))  # what follows may draw from it

    return Last()


def quiet(trainer: Any) -> None:
    """Print no reports of transformers' own: standard output is for results."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _sort_lists(path: Path) -> None:
    """PEFT writes sets in any order; the same run gives the same file, and so the same digest."""
    values = json.loads(path.read_text(encoding="utf-8"))
    for name in ("target_modules", "feedforward_modules"):
        if isinstance(values.get(name), list):
            values[name] = sorted(values[name])
    path.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")


def save_adapter(model: Any, folder: Path, weights: str, base: str) -> None:
    """As PEFT saves it, the tensors in the format that is wished, and no path of this machine in its configuration."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    kind = getattr(torch, weights)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: tensor.detach().to("cpu", kind).contiguous() for name, tensor in state.items()}
    model.peft_config["default"].base_model_name_or_path = base
    # Beside it DPO keeps a copy of an adapter that it went on with.
    model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
    _sort_lists(folder / "adapter_config.json")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
