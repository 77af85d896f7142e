"""Which parameters are trained: all, LoRA's or (IA)³'s, how many that are, and what adapter they may start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from framework.errors import CallerError, ConfigError, Conflict
from framework.models.adapter_files import FILES
from framework.models.catalog import Resolved
from framework.training.config import AdapterConfig

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig

# Names of the layers that (IA)³ scales: keys, values, and what the feed-forward's last layer takes in. By family, as
# PEFT lists them for few; these are the names that nearly all decoders use.
IA3_TARGETS: Final = ("k_proj", "v_proj", "down_proj")
IA3_INPUTS: Final = ("down_proj",)


@dataclass(frozen=True, slots=True)
class Parameters:
    """How many numbers a model has, and how many of them are trained."""

    trained: int
    all: int

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.trained / self.all

    def __str__(self) -> str:
        return f"{self.trained:,} of {self.all:,} parameters are trained ({self.share:.2%})"


def adapter_of(config: AdapterConfig, task: str = "CAUSAL_LM", **options: Any) -> PeftConfig | None:
    """PEFT's configuration; None for full tuning.

    Args:
        task: PEFT's name of the task.
        options: further arguments of PEFT's class, such as `modules_to_save`.
    """
    import peft

    if config.kind == "full":
        return None
    if config.kind == "ia3":
        targets = list(config.targets or IA3_TARGETS)
        inputs = [name for name in IA3_INPUTS if name in targets]
        return peft.IA3Config(task_type=task, target_modules=targets, feedforward_modules=inputs, **options)
    return peft.LoraConfig(
        task_type=task,
        r=config.rank,
        lora_alpha=config.alpha or 2 * config.rank,  # type: ignore[arg-type]  # PEFT takes a float too
        lora_dropout=config.dropout,
        target_modules=list(config.targets) or "all-linear",
        **options,
    )


def count(model: torch.nn.Module) -> Parameters:
    """What the optimizer will train; shared tensors count once."""
    unique = {id(parameter): parameter for parameter in model.parameters()}.values()
    return Parameters(sum(p.numel() for p in unique if p.requires_grad), sum(p.numel() for p in unique))


def check_start(config: AdapterConfig, start: Path, base: Resolved, files: Mapping[str, str]) -> None:
    """Refuse to go on from an adapter of another base or another form.

    Args:
        start: the adapter's folder.
        files: SHA-256 of the base's files, by name.

    Raises:
        CallerError: there is no adapter.
        Conflict: it was trained on another base.
        ConfigError: its form is not the configured one.
    """
    import peft

    from framework.training.publish import Trained

    if not all((start / name).is_file() for name in FILES):
        raise CallerError(f"There is no adapter in {start}.", field="adapter.start")
    trained = Trained.read(start)
    other = [name for name, digest in (trained.base_files or {}).items() if files.get(name) != digest]
    if other:
        raise Conflict(
            f"The adapter in {start} was trained on another base, {trained.base}: {other[0]} of {base.card.name} is not"
            " what it was then.",
            field="adapter.start",
        )
    found, wished = _form(peft.PeftConfig.from_pretrained(str(start)), base), _form(adapter_of(config), base)
    for key, value in wished.items():
        if found.get(key) != value:
            raise ConfigError(
                f"adapter.{key} is {value!r}, and the adapter in {start} has {found.get(key)!r}.",
                hint="What goes on from an adapter keeps its form.",
                field=f"adapter.{key}",
            )


def _form(adapter: Any, base: Resolved) -> dict[str, Any]:
    """What the configuration says of an adapter, from what PEFT says; names of layers without what leads to them."""
    kind = adapter.peft_type.value.lower()
    targets = adapter.target_modules
    if targets == "all-linear":
        targets = _linears(base)
    names = targets if isinstance(targets, str) else sorted({name.rpartition(".")[2] for name in targets})
    if kind != "lora":
        return {"kind": kind, "targets": names}
    return {
        "kind": kind,
        "rank": adapter.r,
        "alpha": adapter.lora_alpha,
        "dropout": adapter.lora_dropout,
        "targets": names,
    }


def _linears(base: Resolved) -> list[str]:
    """Every linear layer but the output's, by name: what PEFT takes "all-linear" for."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(base.path, local_files_only=True, trust_remote_code=False)
    auto: Any = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config, trust_remote_code=False)
    output = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module != output]
