from __future__ import annotations

import pytest
import torch
from torch import Tensor

from framework.encoders.bert import BertEncoder, load_tensors
from framework.encoders.cross_encoder import CrossEncoder
from framework.encoders.late_interaction import LateInteraction, score
from framework.models.folder import ModelFolder
from framework.testing.tiny_bert import write_bert


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    path = tmp_path_factory.mktemp("model") / "cross"
    return ModelFolder(write_bert(path, task="ForSequenceClassification", num_labels=1))


def encoder(folder: ModelFolder) -> BertEncoder:
    return BertEncoder.load(folder.config, folder.weights())


def batch(*rows: list[int]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows]), torch.tensor([len(row) for row in rows])


@torch.inference_mode()
def test_a_pair_that_is_padded_has_the_score_that_it_has_alone(folder: ModelFolder) -> None:
    weights = load_tensors(folder.weights())
    model = CrossEncoder(encoder(folder), weights)
    short, long = [2, 5, 3, 6, 3], [2, 5, 7, 3, 8, 9, 4, 3]
    ids, lengths = batch(short, long)
    together = model(ids, lengths, torch.zeros_like(ids))
    alone = [model(*batch(row), torch.zeros(1, len(row), dtype=torch.long))[0] for row in (short, long)]
    torch.testing.assert_close(together, torch.stack(alone))


@torch.inference_mode()
def test_which_text_a_token_belongs_to_counts(folder: ModelFolder) -> None:
    model = CrossEncoder(encoder(folder), load_tensors(folder.weights()))
    ids, lengths = batch([2, 5, 3, 6, 3])
    segments = torch.tensor([[0, 0, 0, 1, 1]])
    assert not torch.allclose(model(ids, lengths, segments), model(ids, lengths, torch.zeros_like(ids)))


def test_a_head_of_several_classes_is_refused(folder: ModelFolder) -> None:
    weights = load_tensors(folder.weights())
    weights |= {"classifier.weight": torch.zeros(3, 32), "classifier.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match="makes one score"):
        CrossEncoder(encoder(folder), weights)


def late(folder: ModelFolder, weight: Tensor | None = None) -> LateInteraction:
    head = {
        "token_weight.weight": torch.zeros(1, 32) if weight is None else weight,
        "token_weight.bias": torch.zeros(1),
    }
    return LateInteraction(encoder(folder), head)


@torch.inference_mode()
def test_a_text_that_is_the_query_has_the_highest_score_there_is(folder: ModelFolder) -> None:
    model = late(folder)
    row = [2, 5, 7, 8, 3]
    [same, other] = model.texts(*batch(row, [2, 9, 3]))
    query = model.query(torch.tensor(row))
    assert float(score(query, same)) == pytest.approx(1, abs=1e-5)
    assert -1 <= float(score(query, other)) < 1


@torch.inference_mode()
def test_padding_is_no_token_of_a_text(folder: ModelFolder) -> None:
    model = late(folder)
    [padded, _] = model.texts(*batch([2, 9, 3], [2, 5, 7, 8, 4, 3]))
    [alone] = model.texts(*batch([2, 9, 3]))
    torch.testing.assert_close(padded, alone)


@torch.inference_mode()
def test_the_heads_weights_say_how_much_each_token_of_a_query_counts(folder: ModelFolder) -> None:
    ids = torch.tensor([2, 5, 7, 8, 3])
    even = late(folder).query(ids).norm(dim=-1)
    torch.testing.assert_close(even, torch.full((3,), 1 / 3))
    weighted = late(folder, torch.randn(1, 32, generator=torch.Generator().manual_seed(0))).query(ids).norm(dim=-1)
    assert float(weighted.sum()) == pytest.approx(1, abs=1e-5)
    assert float(weighted.max() - weighted.min()) > 0.01


@pytest.mark.parametrize("head", [{"token_weight.weight": torch.zeros(1, 8), "token_weight.bias": torch.zeros(1)}])
def test_a_head_of_another_width_is_refused(folder: ModelFolder, head: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="shapes"):
        LateInteraction(encoder(folder), head)
