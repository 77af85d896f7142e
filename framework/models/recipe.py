"""How a folder says that its embeddings are made: sentence-transformers' modules, and what stands in for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from framework.errors import ModelUnavailable
from framework.models.base import ModelCard
from framework.models.folder import ModelFolder

if TYPE_CHECKING:
    from framework.encoders.pooling import Pooling

MODULES = ("Transformer", "Pooling", "Normalize")
POOLINGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
MODES: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
# A tokenizer without a limit says so with a number of this size.
NO_LIMIT = 10**6
# Families whose first position follows that of the padding.
PADDED_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything beside the weights that decides what a text's vector is.

    Attributes:
        transformer: the folder with config.json, weights and tokenizer.
        lowercase: whether texts are lower-cased before they are tokenized.
        max_tokens: longest input, special tokens included.
    """

    transformer: ModelFolder
    pooling: Pooling
    lowercase: bool
    max_tokens: int
    query_prefix: str
    document_prefix: str


def read_recipe(folder: ModelFolder, card: ModelCard) -> Recipe:
    """The recipe in a folder; prefixes that it does not name are the card's.

    Raises:
        ModelUnavailable: it asks for something that is not built here; a nearly right vector is a wrong one.
    """
    modules = _modules(folder)
    transformer = ModelFolder(folder.path / modules.get("Transformer", ""))
    pooling = _pooling(folder, modules.get("Pooling", "1_Pooling"))
    sentence = transformer.json("sentence_bert_config.json") or {}
    query, document = _prefixes(folder)
    return Recipe(
        transformer=transformer,
        pooling=pooling,
        lowercase=bool(sentence.get("do_lower_case")),
        max_tokens=longest_input(transformer, sentence),
        query_prefix=card.query_prefix if query is None else query,
        document_prefix=card.document_prefix if document is None else document,
    )


def _modules(folder: ModelFolder) -> dict[str, str]:
    """Module kinds and their folders, from modules.json; empty for a plain transformer."""
    path = folder.file("modules.json")
    if path is None:
        return {}
    listed = folder.json_value("modules.json")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise ModelUnavailable(f"{path} is not a list of modules.")
    modules = {str(entry.get("type")).rpartition(".")[2]: str(entry.get("path", "")) for entry in listed}
    unknown = [kind for kind in modules if kind not in MODULES]
    if unknown:
        raise ModelUnavailable(
            f"{folder.path} ends with the module {unknown[0]}, which is not supported.",
            hint=f"Use a model that is made of {', '.join(MODULES)}.",
        )
    for inner in modules.values():
        folder.file(str(PurePosixPath(inner, "config.json")))  # refuses a path that leads out
    return modules


def _pooling(folder: ModelFolder, inner: str) -> Pooling:
    config = folder.json(f"{inner}/config.json")
    if config is None:
        return "mean"
    if config.get("include_prompt") is False:
        raise ModelUnavailable(f"{folder.path} leaves its prompt out of the pooling, which is not supported.")
    mode = config.get("pooling_mode")
    chosen = [str(mode)] if isinstance(mode, str) else [key for key, value in config.items() if value is True]
    chosen = [key for key in chosen if key != "include_prompt"]
    pooling = MODES.get(chosen[0]) or POOLINGS.get(chosen[0]) if len(chosen) == 1 else None
    if pooling is None:
        raise ModelUnavailable(
            f"{folder.path} pools by {' and '.join(chosen) or 'nothing'}, which is not supported.",
            hint=f"Supported: {', '.join(MODES)}.",
        )
    return pooling


def _prefixes(folder: ModelFolder) -> tuple[str | None, str | None]:
    """Query and document prefix, None where the folder says nothing."""
    config = folder.json("config_sentence_transformers.json") or {}
    prompts: Any = config.get("prompts")
    if not isinstance(prompts, dict):
        return None, None
    default = prompts.get(str(config.get("default_prompt_name")))
    query = prompts.get("query", default)
    document = next((prompts[key] for key in ("document", "passage", "corpus") if key in prompts), default)
    # sentence-transformers writes empty prompts where nobody set any.
    return str(query) if query else None, str(document) if document else None


def longest_input(transformer: ModelFolder, sentence: Mapping[str, Any] | None = None) -> int:
    """The smallest of the limits that the folder names, in tokens, special ones included.

    Args:
        sentence: sentence_bert_config.json, where there is one.

    Raises:
        ModelUnavailable: it names none.
    """
    config = transformer.config
    tokenizer = transformer.json("tokenizer_config.json") or {}
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and config.get("model_type") in PADDED_POSITIONS:
        positions -= int(config.get("pad_token_id", 1)) + 1
    named = [(sentence or {}).get("max_seq_length"), tokenizer.get("model_max_length"), positions]
    limits = [int(limit) for limit in named if isinstance(limit, int | float) and 0 < limit < NO_LIMIT]
    if not limits:
        raise ModelUnavailable(f"{transformer.path} names no longest input.", hint="Add max_position_embeddings.")
    return min(limits)
