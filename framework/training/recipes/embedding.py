"""Training an embedding model on pairs: a query's vector near its passage's and far from all others in the batch.

LoRA is multiplied into the weights at the end: a tuned embedder is another space, with an identity of its own, and a
collection has to be embedded anew by it. So the result is a whole model, which `[models] embedder` names by its folder.
"""

from __future__ import annotations

from framework.models.folder import ModelFolder
from framework.models.recipe import read_recipe
from framework.training.job import Job
from framework.training.recipes.pairs import Parts, add_lora, check_kind, fit, merge_lora, pair_rows, passage_columns


def train(job: Job) -> None:
    """Tune the job's base on its pairs; `model/` of the run folder is the result, as sentence-transformers saves it.

    Raises:
        CallerError: the rows are no pairs, or too few for the negatives; `adapter.kind` is (IA)³.
    """
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Pooling

    check_kind(job, "lora", "full")
    rows, validation = pair_rows(job)
    recipe = read_recipe(ModelFolder(job.base.path), job.base.card)
    transformer = Transformer(
        str(recipe.transformer.path),
        model_kwargs={"attn_implementation": "eager" if job.device == "cpu" else "sdpa"},
        max_seq_length=min(job.config.data.max_length, recipe.max_tokens),
        do_lower_case=recipe.lowercase,
    )
    pooling = Pooling(
        transformer.get_embedding_dimension(), "lasttoken" if recipe.pooling == "last" else recipe.pooling
    )
    prompts = {"query": recipe.query_prefix, "document": recipe.document_prefix}
    model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device=job.device, prompts=prompts)
    add_lora(job, transformer)
    passages = dict.fromkeys(passage_columns(job.config.pairs.negatives), recipe.document_prefix)
    parts = Parts(
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        model,
        MultipleNegativesRankingLoss(model, scale=job.config.pairs.scale),
        prompts={"query": recipe.query_prefix, **passages},
    )
    fit(job, parts, rows, validation)
    merge_lora(model)
    transformer.max_seq_length = recipe.max_tokens
    model.save_pretrained(str(job.run.model), create_model_card=False)
