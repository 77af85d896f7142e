"""Training a reranker: an adapter with a head that compares token by token, or a cross-encoder.

`pairs.kind = "late-interaction"` tunes an embedding model whose tokens' vectors are compared (ColBERT): it starts from
what the model already knows, so little data is enough, and the result is a LoRA adapter and a head of a few numbers.
`"cross-encoder"` reads query and passage together; its head starts from nothing, and the result is a whole model.
Both learn to prefer the positive to hard negatives; late interaction to every other passage in its batch too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.config import cache_dir
from framework.models.digests import file_digest
from framework.models.folder import ModelFolder
from framework.models.recipe import read_recipe
from framework.training.job import Job
from framework.training.recipes.pairs import Parts, add_lora, check_kind, fit, merge_lora, pair_rows
from framework.training.rows import PairRow

if TYPE_CHECKING:
    from torch import nn

HEAD, DESCRIPTION = "head.safetensors", "reranker.json"


def train(job: Job) -> None:
    """Tune the job's base on its pairs; the result lies in the run folder: `adapter/`, or `model/` of a cross-encoder.

    Raises:
        CallerError: the rows are no pairs, or too few for the negatives; `adapter.kind` is (IA)³, or "full" for late
            interaction.
    """
    whole = job.config.pairs.kind == "cross-encoder"
    check_kind(job, "lora", *(["full"] if whole else []))
    rows, validation = pair_rows(job)
    if whole:
        _train_cross_encoder(job, rows, validation)
    else:
        _train_late_interaction(job, rows, validation)


# Late interaction


def _train_late_interaction(job: Job, rows: Sequence[PairRow], validation: Sequence[PairRow]) -> None:
    from sentence_transformers.multi_vector_encoder import (
        MultiVectorEncoder,
        MultiVectorEncoderTrainer,
        MultiVectorEncoderTrainingArguments,
    )
    from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss

    transformer = _transformer(job)
    model = MultiVectorEncoder(modules=[transformer, token_head(transformer.get_embedding_dimension())])
    model.to(job.device)
    add_lora(job, transformer)
    parts = Parts(
        MultiVectorEncoderTrainer,
        MultiVectorEncoderTrainingArguments,
        model,
        MultiVectorMultipleNegativesRankingLoss(model, scale=job.config.pairs.scale),
        head="token_weight",
    )
    fit(job, parts, rows, validation)
    export(job, transformer, model[1])


def _transformer(job: Job) -> Any:
    """The base without its pooler, reading as much as it does when it serves."""
    from sentence_transformers.base.modules import Transformer

    recipe = read_recipe(ModelFolder(job.base.path), job.base.card)
    return Transformer(
        str(recipe.transformer.path),
        # On a CPU torch's fused attention is slower than the plain one.
        model_kwargs={"attn_implementation": "eager" if job.device == "cpu" else "sdpa", "add_pooling_layer": False},
        document_length=min(job.config.data.max_length, recipe.max_tokens),
        query_length=min(job.config.data.max_length, recipe.max_tokens),
    )


def token_head(width: int) -> nn.Module:
    """Unit vectors of tokens; those of a query times their weight, and without the marks at its ends."""
    import torch
    from torch.nn import functional

    class TokenHead(torch.nn.Module):
        forward_kwargs = frozenset({"task"})

        def __init__(self) -> None:
            super().__init__()
            self.token_weight = torch.nn.Linear(width, 1)
            torch.nn.init.zeros_(self.token_weight.weight)
            torch.nn.init.constant_(self.token_weight.bias, 0.5413)  # softplus of it is 1

        def forward(self, features: dict[str, Any], task: str | None = None) -> dict[str, Any]:
            hidden, mask = features["token_embeddings"].float(), features["attention_mask"].bool()
            unit = functional.normalize(hidden, dim=-1)
            if task == "query":
                last = torch.arange(mask.shape[1], device=mask.device) == mask.sum(1, keepdim=True) - 1
                mask = mask & ~last
                mask[:, 0] = False
                weight = functional.softplus(self.token_weight(hidden)) * mask[:, :, None]
                unit = unit * (weight / weight.sum(1, keepdim=True).clamp_min(1e-6))
            return {**features, "token_embeddings": unit, "attention_mask": mask}

    return TokenHead()


def export(job: Job, transformer: nn.Module, head: nn.Module) -> None:
    """Adapter, head and description, as `framework.models.rerankers` reads them."""
    import torch
    from safetensors.torch import save_file

    folder, kind = job.run.adapter, getattr(torch, job.config.adapter.weights)
    folder.mkdir(parents=True, exist_ok=True)
    config: Any = job.adapter("FEATURE_EXTRACTION")
    config.base_model_name_or_path = job.base.card.name
    config.inference_mode = True
    config.save_pretrained(folder)
    tensors = {
        "base_model.model." + name.partition("model.")[2].replace(".default.", "."): p.detach().to("cpu", kind)
        for name, p in transformer.named_parameters()
        if "lora_" in name
    }
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, folder / "adapter_model.safetensors", {"format": "pt"}
    )
    save_file({name: t.detach().float().cpu() for name, t in head.state_dict().items()}, folder / HEAD)
    description = describe(job.base.path, job.base.card.name, job.base.card.languages, cache_dir())
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def describe(base: Path, name: str, languages: Sequence[str], cache: Path) -> dict[str, Any]:
    """What serving has to know: the base, which weights of it, and how they are used."""
    from framework.models.base import ModelCard

    recipe = read_recipe(ModelFolder(base), ModelCard(name, "embedding", "folder", str(base)))
    files = recipe.transformer.weights()
    return {
        "kind": "late-interaction",
        "base": name,
        "base_sha256": [file_digest(file, cache) for file in files],
        "max_tokens": recipe.max_tokens,
        "languages": list(languages),
        "licence": "",
    }


# Cross-encoder


def _train_cross_encoder(job: Job, rows: Sequence[PairRow], validation: Sequence[PairRow]) -> None:
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
    )
    from sentence_transformers.cross_encoder.losses import ListNetLoss
    from transformers import set_seed

    recipe = read_recipe(ModelFolder(job.base.path), job.base.card)
    set_seed(job.config.optimizer.seed)  # of the head
    model = CrossEncoder(
        str(recipe.transformer.path),
        num_labels=1,
        max_length=min(job.config.data.max_length, recipe.max_tokens),
        model_kwargs={"attn_implementation": "eager" if job.device == "cpu" else "sdpa"},
        device=job.device,
        local_files_only=True,
    )
    add_lora(job, model)
    for name, parameter in model.named_parameters():
        if "pooler" in name or "classifier" in name:
            parameter.requires_grad_(True)
    parts = Parts(
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        model,
        ListNetLoss(model, mini_batch_size=-1),
        table=_lists,
        head="classifier",
    )
    fit(job, parts, rows, validation)
    merge_lora(model)
    # As transformers does it: without the modules of sentence-transformers any server can load it.
    model.transformers_model.save_pretrained(job.run.model)
    model.tokenizer.save_pretrained(job.run.model)


def _lists(rows: Sequence[PairRow], negatives: int) -> Any:
    """A query, its passages, and what their scores should be: softmaxed by the loss, nearly all on the positive."""
    from datasets import Dataset

    table = {
        "query": [row.query for row in rows],
        "documents": [[row.positive, *row.negatives[:negatives]] for row in rows],
        "labels": [[10.0] + [0.0] * negatives for _ in rows],
    }
    return Dataset.from_dict(table)
