"""Rerankers and embedders trained on a model of 32 dimensions, in seconds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework.errors import CallerError
from framework.models.catalog import Catalog
from framework.models.embedders import load_embedder
from framework.models.rerankers import load_reranker
from framework.testing.tiny_bert import WORDS, write_bert
from framework.training.config import AdapterConfig, CheckpointConfig, OptimizerConfig, PairsConfig, TrainConfig
from framework.training.data import Data
from framework.training.job import Job
from framework.training.progress import Say
from framework.training.recipes import embedding, reranker
from framework.training.recipes.pairs import Batches, pair_rows
from framework.training.rows import PairRow, Provenance
from framework.training.run import RunFolder

HALF = len(WORDS) // 2


def pairs(count: int = 48) -> list[PairRow]:
    """A query's word means the word that lies half the vocabulary further on: nothing that an untrained model knows."""
    dice = random.Random(3)
    rows = []
    for i in range(count):
        asked = i % HALF
        others = [WORDS[HALF + j] for j in range(HALF) if j != asked]
        negatives = tuple(f"the {word} on {dice.choice(WORDS)}" for word in dice.sample(others, 2))
        positive = f"the {WORDS[HALF + asked]} on {dice.choice(WORDS)}"
        rows.append(PairRow(f"a {WORDS[asked]}", positive, f"d{asked}", Provenance("test"), negatives))
    return rows


def split(count: int = 48, held: int = 1) -> tuple[list[PairRow], list[PairRow]]:
    """The pairs without their negatives: of all documents but so many, and of these."""
    rows = [replace(row, negatives=()) for row in pairs(count)]
    kept = {f"d{i}" for i in range(held)}
    return [row for row in rows if row.document not in kept], [row for row in rows if row.document in kept]


def job(
    folder: Path,
    name: str = "run",
    rows: list[PairRow] | None = None,
    validation: Sequence[PairRow] = (),
    say: Say = lambda _: None,
    **changes: Any,
) -> Job:
    """A job on a tiny model, its run begun."""
    base = folder / "base"
    if not base.exists():
        write_bert(base, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    optimizer = OptimizerConfig(
        learning_rate=5e-3, steps=40, sequences=6, precision="float32", schedule="constant_with_warmup"
    )
    config = TrainConfig(
        recipe="reranker",
        name="tiny",
        base=str(base),
        out=folder / name,
        adapter=AdapterConfig(rank=8, targets=("query", "key", "value", "dense"), weights="float32"),
        optimizer=optimizer,
        pairs=PairsConfig(negatives=2, head_learning_rate=1e-2),
        checkpoints=CheckpointConfig(every=10),
    )
    config = replace(config, **changes)
    run = RunFolder(folder / name)
    run.begin({"config": name})
    return Job(config, Catalog().resolve(str(base)), Data(tuple(rows or pairs()), tuple(validation)), run, say)


def losses(run: RunFolder) -> list[float]:
    return [report["loss"] for report in run.reports() if "loss" in report]


def validation_losses(run: RunFolder) -> list[tuple[int, float]]:
    """By step."""
    return [(report["step"], report["validation_loss"]) for report in run.reports() if "validation_loss" in report]


def preferred(folder: Path, rows: list[PairRow]) -> float:
    """The share of rows whose positive is scored best."""
    model = load_reranker(str(folder))
    return float(np.mean([model.score(row.query, [row.positive, *row.negatives]).argmax() == 0 for row in rows]))


def test_an_adapter_and_head_are_trained_and_served(tmp_path: Path) -> None:
    work = job(tmp_path)
    reranker.train(work)
    sizes = {path.name: path.stat().st_size for path in work.run.adapter.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "head.safetensors", "reranker.json"} == set(sizes)
    assert losses(work.run)[-1] < 0.7 * losses(work.run)[0]
    assert preferred(work.run.adapter, pairs()) > 0.8
    assert str(tmp_path) not in (work.run.adapter / "adapter_config.json").read_text().replace(
        str(tmp_path / "base"), ""
    )


def test_a_run_that_is_taken_up_again_has_the_losses_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    rows, kept = split(held=2)
    # Dropout, so that a draw that is made twice or not at all shows.
    adapter = AdapterConfig(rank=8, targets=("query", "value"), weights="float32", dropout=0.3)
    changes: Any = {"rows": rows, "validation": kept, "adapter": adapter, "checkpoints": CheckpointConfig(every=5)}
    whole = job(tmp_path, "whole", **changes)
    reranker.train(whole)

    def killed(text: str) -> None:
        if text.startswith("step 15 "):
            raise KeyboardInterrupt

    first = replace(job(tmp_path, "halves", **changes), say=killed)
    with pytest.raises(KeyboardInterrupt):
        reranker.train(first)
    second = replace(first, say=lambda _: None)
    reranker.train(second)
    np.testing.assert_allclose(losses(second.run), losses(whole.run), rtol=1e-5)
    assert [step for step, _ in validation_losses(whole.run)] == [10, 20, 30, 40]
    np.testing.assert_allclose(validation_losses(second.run), validation_losses(whole.run), rtol=1e-5)


def test_a_cross_encoder_is_trained_and_served_as_a_model_of_its_own(tmp_path: Path) -> None:
    config = PairsConfig(kind="cross-encoder", negatives=2, head_learning_rate=1e-2)
    work = job(tmp_path, pairs=config)
    reranker.train(work)
    assert losses(work.run)[-1] < losses(work.run)[0]
    assert preferred(work.run.model, pairs()) > 0.5


def test_an_embedder_is_trained_and_served_as_a_space_of_its_own(tmp_path: Path) -> None:
    work = job(tmp_path)
    embedding.train(work)
    before, after = load_embedder(str(tmp_path / "base")), load_embedder(str(work.run.model))
    assert before.info.id != after.info.id
    assert before.info.dimensions == after.info.dimensions
    assert losses(work.run)[-1] < 0.7 * losses(work.run)[0]

    def right(model: Any) -> float:
        found = [
            (model.embed_documents([row.positive, *row.negatives]) @ model.embed_query(row.query)).argmax() == 0
            for row in pairs()
        ]
        return float(np.mean(found))

    assert right(after) > max(0.8, right(before))


TRAINERS = {
    "embedding": (embedding.train, PairsConfig(negatives=2)),
    "late-interaction": (reranker.train, PairsConfig(negatives=2)),
    "cross-encoder": (reranker.train, PairsConfig(kind="cross-encoder", negatives=2)),
}


@pytest.mark.parametrize("kind", TRAINERS)
def test_one_document_kept_back_is_enough_for_a_validation_loss(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train, config = TRAINERS[kind]
    rows, kept = split()
    optimizer = OptimizerConfig(steps=25, sequences=6, precision="float32", learning_rate=5e-3)
    work = job(tmp_path, rows=rows, validation=kept, pairs=config, optimizer=optimizer)
    train(work)
    measured = validation_losses(work.run)
    assert [step for step, _ in measured] == [20, 25]
    assert all(np.isfinite(loss) for _, loss in measured)
    assert capsys.readouterr().out == "", "standard output is for results"


def loss_of(folder: Path, rows: list[PairRow], scale: float) -> float:
    """Of the model that is served, on one batch of rows: each query among all their passages."""
    model = load_embedder(str(folder))
    passages = [row.positive for row in rows] + [row.negatives[i] for i in range(2) for row in rows]
    queries = np.stack([model.embed_query(row.query) for row in rows])
    scores = scale * queries @ model.embed_documents(passages).T
    return float(np.mean(np.log(np.exp(scores).sum(axis=1)) - np.diagonal(scores)))


@pytest.mark.parametrize("prompts", [{}, {"query": "red ", "document": "fast blue "}])
def test_the_validation_loss_is_that_of_the_served_model_on_the_validation_rows(
    tmp_path: Path, prompts: dict[str, str]
) -> None:
    write_bert(
        tmp_path / "base",
        files={"config_sentence_transformers.json": {"prompts": prompts}},
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    kept = [replace(row, document=f"kept {row.document}") for row in pairs(4)]
    work = job(tmp_path, rows=pairs(3), validation=kept)
    embedding.train(work)
    _, last = validation_losses(work.run)[-1]
    assert last == pytest.approx(loss_of(work.run.model, kept, work.config.pairs.scale), rel=1e-3)


def test_validation_rows_take_negatives_from_all_passages_and_training_rows_only_from_each_other(
    tmp_path: Path,
) -> None:
    rows, kept = split(held=2)
    trained, measured = pair_rows(job(tmp_path, rows=rows, validation=kept))
    seen, held = {row.positive for row in rows}, {row.positive for row in kept}
    assert all(set(row.negatives) <= seen for row in trained)
    assert all(set(row.negatives) <= seen | held for row in measured)
    assert any(set(row.negatives) & seen for row in measured)


def test_validation_rows_without_enough_negatives_are_left_out_and_the_run_says_so(tmp_path: Path) -> None:
    [row, good, poor] = pairs(3)
    kept = [replace(good, document="kept"), replace(poor, document="kept", negatives=())]
    said: list[str] = []
    _, measured = pair_rows(job(tmp_path, rows=[row], validation=kept, say=said.append))
    assert measured == kept[:1]
    assert "The loss is measured on 1 of 2 validation rows; the others have fewer than 2 negatives." in said


def test_without_any_validation_row_it_is_trained_all_the_same(tmp_path: Path) -> None:
    [row, poor] = pairs(2)
    kept = [replace(poor, document="kept", negatives=())]
    work = job(tmp_path, rows=[row], validation=kept, optimizer=OptimizerConfig(steps=5, precision="float32"))
    reranker.train(work)
    assert work.run.reports()[-1]["step"] == 5
    assert validation_losses(work.run) == []


def test_rows_without_negatives_get_the_nearest_passages_of_other_documents(tmp_path: Path) -> None:
    rows = [replace(row, negatives=()) for row in pairs()]
    optimizer = OptimizerConfig(steps=5, sequences=4, precision="float32")
    work = job(tmp_path, rows=rows, optimizer=optimizer)
    mined, _ = pair_rows(work)
    embedder = load_embedder()
    for row, before in zip(mined, rows, strict=True):
        assert replace(row, negatives=()) == before
        others = {other.positive for other in rows if other.document != row.document} - {row.positive}
        nearness = {
            text: float(embedder.embed_documents([text])[0] @ embedder.embed_query(row.query)) for text in others
        }
        far = [value for text, value in nearness.items() if text not in row.negatives]
        assert len(set(row.negatives)) == 2
        assert min(nearness[text] for text in row.negatives) >= max(far) - 1e-5
    assert work.run.read()["negatives_by"] == embedder.info.id
    reranker.train(work)
    assert work.run.reports()[-1]["step"] == 5


def test_too_few_documents_for_the_negatives_are_an_error(tmp_path: Path) -> None:
    rows = [replace(row, negatives=(), document="one") for row in pairs(4)]
    with pytest.raises(CallerError, match="only 0 negatives for 'a the'"):
        reranker.train(job(tmp_path, rows=rows))


def test_an_embedder_of_which_every_weight_is_trained_is_served_too(tmp_path: Path) -> None:
    work = job(tmp_path, adapter=AdapterConfig(kind="full"), validation=pairs(4))
    embedding.train(work)
    _, last = validation_losses(work.run)[-1]
    assert last == pytest.approx(loss_of(work.run.model, pairs(4), work.config.pairs.scale), rel=1e-3)


@pytest.mark.parametrize(
    ("train", "kind", "adapter"),
    [
        (reranker.train, "late-interaction", "full"),
        (reranker.train, "late-interaction", "ia3"),
        (reranker.train, "cross-encoder", "ia3"),
        (embedding.train, "late-interaction", "ia3"),
    ],
)
def test_what_could_not_be_saved_is_refused_before_anything_is_done(
    tmp_path: Path, train: Callable[[Job], None], kind: Any, adapter: Any
) -> None:
    rows, said = split()[0], list[str]()
    work = job(
        tmp_path, rows=rows, say=said.append, adapter=AdapterConfig(kind=adapter), pairs=PairsConfig(kind, negatives=2)
    )
    with pytest.raises(CallerError, match=f"'{adapter}'") as refused:
        train(work)
    assert refused.value.field == "adapter.kind"
    assert not said


def test_no_document_has_two_rows_in_a_batch_and_every_row_comes_once_an_epoch() -> None:
    rows = pairs(100)
    batches = Batches(rows, 6, seed=1)
    epochs = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        epochs.append(list(batches))
        assert sorted(i for batch in batches for i in batch) == list(range(100))
        assert all(len({rows[i].document for i in batch}) == len(batch) <= 6 for batch in batches)
        assert len(epochs[-1]) == len(batches)
    assert epochs[0] != epochs[1]
    assert epochs[0] == list(Batches(rows, 6, seed=1)), "the order depends on the seed and the epoch alone"
