"""A whole encoder of a few hundred kilobytes with random weights, as transformers saves it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any] | list[Any]
WORDS = ("the", "a", "cat", "dog", "sat", "on", "mat", "runs", "fast", "slow", "red", "blue", "green", "house", "tree")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def write_bert(
    folder: Path, kind: str = "bert", files: Mapping[str, Json] | None = None, task: str = "", **config: Any
) -> Path:
    """Write a random model of 32 dimensions that knows `WORDS`, and return its folder.

    Args:
        kind: bert, roberta or modernbert, as transformers names families.
        files: further JSON files by path, such as `sentence_bert_config.json`.
        task: the end of transformers' class, such as "ForSequenceClassification"; empty: the bare encoder.
        config: fields of config.json.
    """
    import torch
    import transformers

    folder.mkdir(parents=True)
    _write_tokenizer(folder)
    options = SIZES | {"vocab_size": 64, "max_position_embeddings": 40, "pad_token_id": 0} | config
    torch.manual_seed(0)
    auto: Any = getattr(transformers, f"AutoModel{task}")
    model = auto.from_config(transformers.AutoConfig.for_model(kind, **options))
    with torch.no_grad():  # the initial values are so small that every text would be much the same
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    for path, value in (files or {}).items():
        write_json(folder / path, value)
    return folder


def write_json(path: Path, value: Json) -> None:
    """Write a JSON file and the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "##s", "cats", "##at"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(6)  # as published files do; it must not cut anything here
    tokenizer.enable_padding(length=6)
    tokenizer.save(str(folder / "tokenizer.json"))
    marks = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    own = {"model_max_length": 40, "tokenizer_class": "PreTrainedTokenizerFast", **marks}
    write_json(folder / "tokenizer_config.json", own)
