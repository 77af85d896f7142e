"""PEFT's adapter_config.json: which linear layers an adapter changes and how strongly, or why it can't be served.

Fields and their meaning are those of PEFT 0.21. A field that would change the answer and is not applied here refuses
the adapter, one that is unknown too; what only steers training is passed over.
"""

from __future__ import annotations

import math
import time
from typing import Annotated, Any, Final, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from framework.errors import CallerError

Names: TypeAlias = str | list[str]
CONFIG_LIMIT: Final = 2**20  # bytes; one that names each of 2,000 layers has a tenth
PATTERN_SECONDS: Final = 2.0  # for all patterns of one adapter: they come from strangers and may be catastrophic
MERGE = "Merge it into the base (merge_and_unload, save_pretrained) and serve that."
RETRAIN = "Train without it, or merge it into the base (merge_and_unload, save_pretrained)."
# Set to anything but null, false or empty, these would have to be applied.
REFUSED: Final = {
    "use_dora": f"DoRA rescales whole weights, which no base shared by many adapters can. {RETRAIN}",
    "lora_bias": f"Its updates have biases, and only the pairs A and B are applied. {RETRAIN}",
    "modules_to_save": f"It replaces whole modules of the base. {RETRAIN}",
    "trainable_token_indices": f"It changes embeddings, and only linear layers are adapted. {RETRAIN}",
    "fan_in_fan_out": "It is for layers with transposed weights (Conv1D), which are not adapted here.",
    "layer_replication": f"It repeats layers of the base. {MERGE}",
    "target_parameters": f"It changes parameters that are no linear layers. {RETRAIN}",
    "alora_invocation_tokens": "It would be active for a part of the prompt only; adapters here are so for all of it.",
    "use_qalora": RETRAIN,
    "use_bdlora": RETRAIN,
    "arrow_config": "It routes between adapters; name one of them.",
    "kasa_config": RETRAIN,
    "monteclora_config": RETRAIN,
    "velora_config": RETRAIN,
    "megatron_config": RETRAIN,
}
TRAINING_ONLY: Final = frozenset(
    (
        *("lora_dropout", "inference_mode", "init_ia3_weights", "megatron_core", "qalora_group_size", "runtime_config"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "ensure_weight_tying"),
        *("auto_mapping", "revision", "task_type", "peft_version"),
    )
)
# Other initializations (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base's weights when training begins.
INITIALIZATIONS: Final = (True, False, None, "gaussian", "eva", "orthogonal")


def refused(problem: str, hint: str = "") -> CallerError:
    """The error for an adapter that can't be served."""
    return CallerError(problem, hint=hint, field="adapter")


class _Fields(BaseModel):
    """The fields that are read, of both kinds; `model_extra` has the rest."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    peft_type: str
    target_modules: Names
    base_model_name_or_path: str | None = None
    exclude_modules: Names | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: Names | None = None
    bias: str = "none"
    init_lora_weights: bool | str | None = True
    r: Annotated[int, Field(ge=1, le=65536)] = 8
    lora_alpha: float = 8.0
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=65536)]] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    feedforward_modules: Names | None = None


class PeftConfig:
    """A configuration that can be served. Paths are those of the base's modules: "model.layers.0.mlp.up_proj".

    Raises:
        CallerError: it can't be; the message names the field.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) > CONFIG_LIMIT:
            raise refused(f"adapter_config.json has {len(data):,} bytes, more than {CONFIG_LIMIT:,}.")
        try:
            self._fields = _Fields.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(step) for step in first["loc"]) or "the file"
            raise refused(f"adapter_config.json: {place}: {first['msg']}, got {str(first['input'])[:80]!r}.") from None
        self._check()
        self._deadline = time.monotonic() + PATTERN_SECONDS

    @property
    def is_lora(self) -> bool:
        """LoRA; otherwise (IA)³."""
        return self._fields.peft_type == "LORA"

    @property
    def base(self) -> str:
        """What the adapter was trained on, as its maker named it; may be empty."""
        return self._fields.base_model_name_or_path or ""

    def targets(self, path: str) -> bool:
        """Whether the adapter changes the linear layer at that path."""
        fields = self._fields
        if fields.exclude_modules and self._named(fields.exclude_modules, path):
            return False
        if fields.target_modules == "all-linear":
            return "." in path  # all but the head
        return self._named(fields.target_modules, path) and (
            isinstance(fields.target_modules, str) or self._in_layers(path)
        )

    def is_feedforward(self, path: str) -> bool:
        """Whether (IA)³ scales this layer's input rather than its output."""
        names = self._fields.feedforward_modules or []
        if isinstance(names, str):
            return self._fits(names, path)
        return any(path.endswith(name) for name in names)

    def rank(self, path: str) -> int:
        return int(self._of_pattern(self._fields.rank_pattern, path, self._fields.r))

    def scale(self, path: str) -> float:
        """What the update is multiplied with: alpha / r (Hu et al., 2021) or alpha / sqrt(r) (rsLoRA, 2023)."""
        alpha = self._of_pattern(self._fields.alpha_pattern, path, self._fields.lora_alpha)
        rank = self.rank(path)
        return alpha / (math.sqrt(rank) if self._fields.use_rslora else rank)

    def _check(self) -> None:
        fields, extra = self._fields, self._fields.model_extra or {}
        if fields.peft_type not in ("LORA", "IA3"):
            raise refused(f"The adapter's peft_type is {fields.peft_type[:80]!r}.", "Served are: LORA and IA3.")
        for name, hint in REFUSED.items():
            if extra.get(name):
                raise refused(f"adapter_config.json sets {name}, which is not served.", hint)
        if fields.bias != "none":
            raise refused(f"The adapter was trained with bias = {fields.bias[:80]!r}.", RETRAIN)
        if fields.init_lora_weights not in INITIALIZATIONS:
            raise refused(
                f"init_lora_weights is {fields.init_lora_weights!r}: it belongs to a base whose weights were changed.",
                "Save it again with path_initial_model_for_weight_conversion, which makes it a plain LoRA.",
            )
        unknown = sorted(name for name, value in extra.items() if value and name not in TRAINING_ONLY)
        if unknown:
            raise refused(f"adapter_config.json sets {unknown[0][:80]!r}, which is not known here.", RETRAIN)

    def _named(self, names: Names, path: str) -> bool:
        if isinstance(names, str):
            return self._fits(names, path)
        return any(path == name or path.endswith(f".{name}") for name in names)

    def _in_layers(self, path: str) -> bool:
        wanted = self._fields.layers_to_transform
        if wanted is None or wanted == []:
            return True
        named = self._fields.layers_pattern or r"[^.]*"
        for pattern in [named] if isinstance(named, str) else named:
            found = self._match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", path)
            if found:
                return int(found["idx"]) in ([wanted] if isinstance(wanted, int) else wanted)
        return False

    def _of_pattern(self, patterns: dict[str, Any] | None, path: str, otherwise: float) -> float:
        """The value of the first pattern that matches the end of the path, from one of its steps on."""
        found = (value for pattern, value in (patterns or {}).items() if self._match(rf"(.*\.)?({pattern})$", path))
        return next(found, otherwise)

    def _fits(self, pattern: str, path: str) -> bool:
        return bool(self._match(rf"(?:{pattern})\Z", path))

    def _match(self, pattern: str, path: str) -> Any:
        """Match at the start, within what is left of the time for all patterns."""
        import regex  # type: ignore[import-untyped]  # re has no time limit

        try:
            return regex.match(pattern, path, timeout=max(self._deadline - time.monotonic(), 0.001))
        except TimeoutError:
            raise refused(
                f"A pattern of adapter_config.json takes too long: {pattern[:80]!r}.", "Simplify it."
            ) from None
        except (regex.error, RecursionError, OverflowError) as error:
            raise refused(f"adapter_config.json has an invalid pattern {pattern[:80]!r}: {error}.") from None
