"""The file that `lectern train` reads: what is trained, on which data, how, and what happens afterwards."""

from __future__ import annotations

from dataclasses import asdict, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from framework.config import read_toml
from framework.errors import ConfigError
from framework.models.adapters import check_name

Recipe: TypeAlias = Literal["sft", "dpo", "reward", "grpo", "embedding", "reranker"]
STRICT = ConfigDict(extra="forbid")
Count: TypeAlias = Annotated[int, Field(ge=1)]
CountOr0: TypeAlias = Annotated[int, Field(ge=0)]
Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveOr0: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
CHAT: Final = ("sft", "dpo", "grpo")  # recipes whose adapters answer as chat models
BOUNDS: Final = {  # pydantic's names of what is wrong with a number
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "finite_number": "must be a finite number",
}
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
    validation_share: Share = 0.05
    exclude: tuple[Path, ...] = ()
    max_length: Count = 1024
    unrelated: CountOr0 = 3


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
    rank: Count = 16
    alpha: PositiveOr0 = 0
    dropout: Share = 0.0
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

    learning_rate: Positive = 5e-4
    epochs: Positive = 2.0
    steps: CountOr0 = 0
    sequences: Count = 8
    warmup: Share = 0.05
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    weight_decay: PositiveOr0 = 0.0
    max_norm: PositiveOr0 = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: CountOr0 = 0


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
    negatives: CountOr0 = 3
    scale: Positive = 20.0
    head_learning_rate: PositiveOr0 = 5e-3


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

    beta: Positive = 0.1
    kl_bound: Positive = 0.2
    generations: Annotated[int, Field(ge=2)] = 4
    max_new_tokens: Count = 64
    temperature: Positive = 1.0
    rewards: tuple[str, ...] = ("f1", "verbatim", "declines", "call")
    weights: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = ()


@dataclass(frozen=True, slots=True, config=STRICT)
class CheckpointConfig:
    """Section `[checkpoints]`: `every` so many updates a state to resume from is written; `keep` of them stay."""

    every: Count = 50
    keep: Count = 2


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
    limit: CountOr0 = 0


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
        config = TypeAdapter(TrainConfig).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "unexpected_keyword_argument":
            raise ConfigError(
                f"{path}: unknown key {place}.", hint=_near(str(first["loc"][-1])), field=place
            ) from error
        if first["type"] == "missing":
            raise ConfigError(f"{path}: {place} is missing.", field=place) from error
        said = BOUNDS[first["type"]].format(**first.get("ctx", {})) if first["type"] in BOUNDS else first["msg"]
        raise ConfigError(f"{path}: {place}: {said}, got {first['input']!r}.", field=place) from error
    check(config)
    return config


def check(config: TrainConfig) -> None:
    """Refuse what does not go together, before anything is trained.

    Raises:
        CallerError: the name can't name an adapter.
        ConfigError: this recipe does not make or start from such an adapter, or can't make it live.
    """
    check_name(config.name)
    recipe, kind, pairs = config.recipe, config.adapter.kind, config.pairs
    late = recipe == "reranker" and pairs.kind == "late-interaction"
    if recipe in READ_BY["pairs"] and (kind == "ia3" or (late and kind == "full")):
        raise ConfigError(
            f"The recipe {recipe!r}{' of late interaction' if late else ''} has no adapter of the kind {kind!r}.",
            hint='Set adapter.kind = "lora".',
            field="adapter.kind",
        )
    if recipe == "reranker" and not late and not pairs.negatives:
        raise ConfigError("A cross-encoder learns from negatives: pairs.negatives is 0.", field="pairs.negatives")
    if recipe == "grpo":
        _check_generations(config)
    answers, what = recipe in CHAT and kind != "full", "full tuning" if recipe in CHAT else f"the recipe {recipe!r}"
    if config.adapter.start is not None and not answers:
        raise ConfigError(f"adapter.start is set, and {what} starts from the base.", field="adapter.start")
    if config.publish.live and not answers:
        raise ConfigError(
            f"publish.live is set, and {what} makes no adapter that answers.",
            hint="Leave it out, and name the run's folder where the result is used.",
            field="publish.live",
        )


def _check_generations(config: TrainConfig) -> None:
    options, sequences = config.preference, config.optimizer.sequences
    if sequences % options.generations:
        raise ConfigError(
            f"optimizer.sequences is {sequences}, which is no multiple of preference.generations,"
            f" {options.generations}.",
            hint="An update is computed from so many answers, `generations` to each prompt.",
            field="optimizer.sequences",
        )
    if options.weights and len(options.weights) != len(options.rewards):
        raise ConfigError("preference.weights needs one for each of preference.rewards.", field="preference.weights")


def _near(key: str) -> str:
    sections: tuple[type[Any], ...] = (TrainConfig, *_SECTIONS)
    known = [name for section in sections for name in section.__dataclass_fields__]
    close = get_close_matches(key, known, n=1)
    return f"Do you mean {close[0]}?" if close else ""
