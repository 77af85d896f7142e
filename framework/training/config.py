"""The file that `lectern train` reads: what is trained, on which data, how, and what happens afterwards."""

from __future__ import annotations

from dataclasses import asdict, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from framework.config import read_toml
from framework.errors import ConfigError

Recipe: TypeAlias = Literal["sft", "dpo", "reward", "grpo", "embedding", "reranker"]
STRICT = ConfigDict(extra="forbid")
# Sections that only some recipes read; a run is the same one whatever the others say.
READ_BY: Final = {"pairs": ("embedding", "reranker"), "preference": ("dpo", "reward", "grpo")}


@dataclass(frozen=True, slots=True, config=STRICT)
class DataConfig:
    """Section `[data]`.

    Attributes:
        train: files of rows or of documents with questions, relative to the configuration file.
        validation: files to measure the loss on; where there are none, a share of the training documents is kept back.
        validation_share: that share, by document.
        exclude: held-out files; training stops before it starts if one of their texts is in the training data.
        max_length: most tokens of an example, and of a sequence that examples are packed into.
        unrelated: for documents with questions, how many questions of other documents each is asked besides.
    """

    train: tuple[Path, ...] = ()
    validation: tuple[Path, ...] = ()
    validation_share: float = 0.05
    exclude: tuple[Path, ...] = ()
    max_length: int = 1024
    unrelated: int = 3


@dataclass(frozen=True, slots=True, config=STRICT)
class AdapterConfig:
    """Section `[adapter]`.

    Attributes:
        kind: "lora" (Hu et al. 2021), "ia3" ((IA)³ of T-Few, Liu et al. 2022), or "full": every weight.
        rank: of LoRA's update of each linear layer.
        alpha: LoRA's update is scaled by alpha / rank; 0: twice the rank.
        dropout: of LoRA's input.
        targets: names of linear layers, such as "q_proj"; empty: all but the output layer (LoRA), or keys, values and
            the feed-forward's last layer ((IA)³).
        weights: number format of the saved tensors.
        start: folder of an adapter of the same form to go on from, relative to the file; else from nothing.
    """

    kind: Literal["lora", "ia3", "full"] = "lora"
    rank: int = 16
    alpha: float = 0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    weights: Literal["float32", "bfloat16"] = "bfloat16"
    start: Path | None = None


@dataclass(frozen=True, slots=True, config=STRICT)
class OptimizerConfig:
    """Section `[optimizer]`.

    Attributes:
        learning_rate: the highest.
        epochs: passes over the training data, where `steps` is 0.
        steps: updates.
        sequences: packed sequences (or pairs of answers, or texts) that one update is computed from.
        warmup: share of the steps over which the learning rate rises.
        schedule: how it falls afterwards.
        weight_decay: AdamW's.
        max_norm: gradients are scaled down to this norm.
        seed: of order, initial values and dropout.
        precision: of the matrix products; "auto" is bfloat16 where the processor has it.
        threads: of a CPU; 0: all.
    """

    learning_rate: float = 5e-4
    epochs: float = 2.0
    steps: int = 0
    sequences: int = 8
    warmup: float = 0.05
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    weight_decay: float = 0.0
    max_norm: float = 1.0
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = 0


@dataclass(frozen=True, slots=True, config=STRICT)
class PairsConfig:
    """Section `[pairs]`, for embedding and reranker.

    Attributes:
        kind: of reranker: an adapter that compares token by token, or a model that reads query and passage together.
        negatives: passages that do not answer, for each query, beside those of the other rows in its batch.
        scale: scores are multiplied by it before the softmax over passages.
        head_learning_rate: of a reranker's head, which starts from nothing; 0: the optimizer's.
    """

    kind: Literal["late-interaction", "cross-encoder"] = "late-interaction"
    negatives: int = 3
    scale: float = 20.0
    head_learning_rate: float = 5e-3


@dataclass(frozen=True, slots=True, config=STRICT)
class PreferenceConfig:
    """Section `[preference]`, for dpo, reward and grpo.

    Attributes:
        beta: how much leaving the base costs: DPO's beta, and GRPO's coefficient of the KL divergence to begin with.
        kl_bound: of grpo, nats a token; the coefficient rises while the measured divergence is above it, and the result
            is pulled back towards the start until it is within.
        generations: of grpo, answers that are compared for each prompt.
        max_new_tokens: of grpo, most tokens of an answer.
        temperature: of grpo's answers.
        rewards: of grpo, what an answer is judged by: "f1", "verbatim", "declines", "call", the name of an installed
            plugin (entry points "lectern.rewards"), or FILE.py:NAME, relative to the configuration file.
        weights: of the rewards, in their order; empty: 1 each.
    """

    beta: float = 0.1
    kl_bound: float = 0.2
    generations: int = 4
    max_new_tokens: int = 64
    temperature: float = 1.0
    rewards: tuple[str, ...] = ("f1", "verbatim", "declines", "call")
    weights: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, config=STRICT)
class CheckpointConfig:
    """Section `[checkpoints]`: `every` so many updates a state to resume from is written; `keep` of them stay."""

    every: int = 50
    keep: int = 2


@dataclass(frozen=True, slots=True, config=STRICT)
class EvaluateConfig:
    """Section `[evaluate]`: evaluation files that are run before and after, on the base and on the result.

    Attributes:
        target: what the training is for.
        general: what must not be forgotten.
        limit: most cases of each; 0: all.
    """

    target: tuple[Path, ...] = ()
    general: tuple[Path, ...] = ()
    limit: int = 0


@dataclass(frozen=True, slots=True, config=STRICT)
class PublishConfig:
    """Section `[publish]`: `live` registers the adapter under the run's name, if the parity gate lets it."""

    live: bool = False


@dataclass(frozen=True, slots=True, config=STRICT)
class TrainConfig:
    """A whole run.

    Attributes:
        recipe: what is learned from what.
        name: the adapter's.
        base: the model that is trained, as elsewhere: a short name, a folder or a Hugging Face id.
        out: the run folder, relative to the file.
    """

    recipe: Recipe
    name: str
    base: str = "smollm2-135m-instruct"
    out: Path = Path("run")
    data: DataConfig = field(default_factory=DataConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)

    def values(self) -> dict[str, Any]:
        """Every option that this recipe reads, whether the file names it or not."""
        unread = {name for name, recipes in READ_BY.items() if self.recipe not in recipes}
        return {name: value for name, value in asdict(self).items() if name not in unread}


_SECTIONS: Final = (
    DataConfig,
    AdapterConfig,
    OptimizerConfig,
    PairsConfig,
    PreferenceConfig,
    CheckpointConfig,
    EvaluateConfig,
    PublishConfig,
)


def read_config(path: Path) -> TrainConfig:
    """Read and check a file.

    Raises:
        ConfigError: it is missing, no TOML, or has an unknown key or an impossible value; the message names the place.
    """
    values = read_toml(path)
    try:
        return TypeAdapter(TrainConfig).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "unexpected_keyword_argument":
            raise ConfigError(
                f"{path}: unknown key {place}.", hint=_near(str(first["loc"][-1])), field=place
            ) from error
        raise ConfigError(f"{path}: {place}: {first['msg']}, got {first['input']!r}.", field=place) from error


def _near(key: str) -> str:
    sections: tuple[type[Any], ...] = (TrainConfig, *_SECTIONS)
    known = [name for section in sections for name in section.__dataclass_fields__]
    close = get_close_matches(key, known, n=1)
    return f"Do you mean {close[0]}?" if close else ""
