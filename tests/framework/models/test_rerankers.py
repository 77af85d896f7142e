from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from framework.errors import CallerError, ModelUnavailable
from framework.models import rerankers
from framework.models.base import Reranker
from framework.models.rerankers import load_reranker
from framework.testing.adapters import write_ia3
from framework.testing.tiny_bert import WORDS, write_bert, write_json
from framework.training.recipes.reranker import describe

TEXTS = ["the cat sat on the mat", "a dog runs fast", "red house", "the blue tree sat on a red house the dog runs"]


def cross_encoder(folder: Path, kind: str = "bert", **config: Any) -> Path:
    return write_bert(folder, kind, task="ForSequenceClassification", num_labels=1, **config)


def by_transformers(folder: Path, query: str, text: str, kind: str = "bert") -> float:
    from tokenizers import Tokenizer
    from transformers import AutoModelForSequenceClassification

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encoding = tokenizer.encode(query, text)
    types = {"token_type_ids": torch.tensor([encoding.type_ids])} if kind == "bert" else {}
    with torch.inference_mode():
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        return float(model(input_ids=torch.tensor([encoding.ids]), **types).logits[0, 0])


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_an_ordinary_cross_encoder_gives_the_scores_of_transformers(tmp_path: Path, kind: str) -> None:
    segments = {"bert": {}, "roberta": {"type_vocab_size": 1}, "modernbert": {}}[kind]
    folder = cross_encoder(tmp_path / "m", kind, **segments)
    scores = load_reranker(str(folder)).score("the red cat", TEXTS)
    expected = [by_transformers(folder, "the red cat", text, kind) for text in TEXTS]
    np.testing.assert_allclose(scores, expected, atol=2e-4)
    assert np.ptp(expected) > 0.01, "a model that scores all alike would prove nothing"


def test_a_model_that_tells_classes_apart_is_no_reranker(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "m", task="ForSequenceClassification", num_labels=3)
    with pytest.raises(ModelUnavailable, match="tells 3 classes apart"):
        load_reranker(str(folder))


def test_an_embedding_model_is_no_reranker() -> None:
    with pytest.raises(CallerError, match="is a embedding model, not a reranker"):
        load_reranker("all-minilm-l6-v2")


def test_a_text_longer_than_the_model_is_scored_by_its_best_window(tmp_path: Path) -> None:
    reranker = load_reranker(str(cross_encoder(tmp_path / "m")))  # reads 40 tokens
    words = [WORDS[i % len(WORDS)] for i in range(100)]
    room = 40 - 3 - 2
    starts = [0, 33, 65]  # three windows of 35, overlapping by an eighth or so
    windows = [" ".join(words[start : start + room]) for start in starts]
    whole = reranker.score("red cat", [" ".join(words)])[0]
    assert whole >= reranker.score("red cat", windows[:1])[0] - 1e-4
    assert whole == pytest.approx(
        max(reranker.score("red cat", [windows[0], windows[2], " ".join(words[32:67])])), abs=1e-3
    )


def test_what_is_not_read_of_a_query_is_told(tmp_path: Path) -> None:
    reranker = load_reranker(str(cross_encoder(tmp_path / "m")))
    assert reranker.query_excess("red cat") == 0
    assert reranker.query_excess("red " * 30) == 30 - 18
    np.testing.assert_array_equal(reranker.score("red " * 30, TEXTS), reranker.score("red " * 18, TEXTS))


def test_no_texts_have_no_scores_and_an_empty_one_has_one(tmp_path: Path) -> None:
    reranker = load_reranker(str(cross_encoder(tmp_path / "m")))
    assert reranker.score("red cat", []).shape == (0,)
    assert np.isfinite(reranker.score("red cat", ["", "red"])).all()
    with pytest.raises(CallerError, match="not Unicode"):
        reranker.score("red cat", ["a\ud800"])


# --- an adapter with a head -------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A random LoRA adapter with a head, on a random model that lies beside it."""
    import peft
    from transformers import AutoModel

    base = write_bert(tmp_path / "base")
    folder = tmp_path / "adapter"
    config = peft.LoraConfig("FEATURE_EXTRACTION", r=4, target_modules=["query", "dense"], init_lora_weights=False)
    torch.manual_seed(2)
    peft.get_peft_model(AutoModel.from_pretrained(base, add_pooling_layer=False), config).save_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    head = {"token_weight.weight": torch.randn(1, 32, generator=generator), "token_weight.bias": torch.zeros(1)}
    save_file(head, folder / "head.safetensors")
    write_json(folder / "reranker.json", describe(base, str(base), ["en"], tmp_path))
    return folder


def by_hand(adapter: Path, query: str, text: str) -> float:
    """The score by PEFT's own model, one text at a time, token by token."""
    import peft
    from tokenizers import Tokenizer
    from transformers import AutoModel

    base = json.loads((adapter / "reranker.json").read_text())["base"]
    model = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(base, add_pooling_layer=False), adapter).eval()
    tokenizer = Tokenizer.from_file(f"{base}/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    head = load_file(adapter / "head.safetensors")

    def hidden(words: str) -> torch.Tensor:
        ids = torch.tensor([tokenizer.encode(words).ids])
        found: torch.Tensor = model.base_model.model(ids).last_hidden_state[0]
        return found

    with torch.inference_mode():
        asked, read = hidden(query)[1:-1], functional.normalize(hidden(text), dim=-1)
        total = norm = 0.0
        for token in asked:
            weight = float(functional.softplus(head["token_weight.weight"][0] @ token + head["token_weight.bias"][0]))
            total += weight * float((read @ functional.normalize(token, dim=0)).max())
            norm += weight
    return total / norm


def test_an_adapter_compares_token_by_token_as_peft_computes_them(adapter: Path) -> None:
    scores = load_reranker(str(adapter)).score("the red cat", TEXTS)
    np.testing.assert_allclose(scores, [by_hand(adapter, "the red cat", text) for text in TEXTS], atol=2e-5)


def test_a_text_has_the_same_score_alone_and_among_others(adapter: Path) -> None:
    reranker = load_reranker(str(adapter))
    together = reranker.score("the red cat", TEXTS * 40)
    alone = [reranker.score("the red cat", [text])[0] for text in TEXTS]
    np.testing.assert_allclose(together, alone * 40, atol=2e-6)


def test_a_text_that_was_read_before_has_the_same_score(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerankers, "KEPT_BYTES", 3 * 8 * 32 * 4)  # some of the texts, never all
    reranker = load_reranker(str(adapter))
    for query in ("the red cat", "a dog", "the red cat"):
        fresh = load_reranker(str(adapter)).score(query, TEXTS[::-1])
        np.testing.assert_allclose(reranker.score(query, TEXTS[::-1]), fresh, atol=2e-6)
        np.testing.assert_allclose(reranker.score(query, TEXTS), fresh[::-1], atol=2e-6)
    scorer = cast(Any, reranker)._loaded
    assert 0 < len(scorer._kept) < len(TEXTS)
    assert scorer._kept_bytes == sum(kept.nbytes for kept in scorer._kept.values()) <= rerankers.KEPT_BYTES


def test_an_adapter_knows_what_it_was_described_as(adapter: Path) -> None:
    reranker = load_reranker(str(adapter))
    assert isinstance(reranker, Reranker)
    assert (reranker.name, reranker.languages) == (str(adapter), ("en",))


def test_an_adapter_of_other_weights_is_refused_by_name(adapter: Path) -> None:
    base = adapter.with_name("base")
    tensors = load_file(base / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][0, 0] += 1
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelUnavailable, match="adapter was trained on other weights than those of"):
        load_reranker(str(adapter))


def damage(change: Callable[[Path], Any], adapter: Path) -> Reranker:
    change(adapter)
    return load_reranker(str(adapter))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "head.safetensors").unlink(), "has no head.safetensors"),
        (lambda folder: save_file({"x": torch.zeros(1)}, folder / "head.safetensors"), "missing 'token_weight.weight'"),
        (lambda folder: (folder / "head.safetensors").write_bytes(b"x" * 20), "can't be loaded"),
        (
            lambda folder: save_file(
                {"token_weight.weight": torch.full((1, 32), torch.nan), "token_weight.bias": torch.zeros(1)},
                folder / "head.safetensors",
            ),
            "not finite",
        ),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors"),
        (lambda folder: write_json(folder / "reranker.json", {"kind": "magic"}), "no reranker that is known"),
    ],
)
def test_a_damaged_adapter_is_refused(adapter: Path, change: Callable[[Path], Any], message: str) -> None:
    with pytest.raises(ModelUnavailable, match=message):
        damage(change, adapter).score("red", ["red"])


def test_an_adapter_whose_scales_would_be_dropped_is_refused(adapter: Path) -> None:
    (adapter / "adapter_config.json").unlink()
    layers = json.loads((adapter.with_name("base") / "config.json").read_text())["num_hidden_layers"]
    write_ia3(adapter, {f"encoder.layer.{n}.attention.self.query": (32, 32) for n in range(layers)})
    with pytest.raises(ModelUnavailable, match=r"is \(IA\)³"):
        load_reranker(str(adapter)).score("red", ["red"])


@pytest.mark.parametrize("length", ["many", None, True, -1, 2.5])
def test_a_description_without_a_length_that_could_be_one_is_refused(adapter: Path, length: Any) -> None:
    said = json.loads((adapter / "reranker.json").read_text())
    write_json(adapter / "reranker.json", {**said, "max_tokens": length})
    with pytest.raises(ModelUnavailable, match=r"reranker\.json: max_tokens must be a whole number"):
        load_reranker(str(adapter))


def test_an_adapter_that_is_pickled_is_refused(adapter: Path) -> None:
    shutil.move(adapter / "adapter_model.safetensors", adapter / "adapter_model.bin")
    with pytest.raises(ModelUnavailable, match="can't be used"):
        load_reranker(str(adapter)).score("red", ["red"])


def test_the_one_that_ships_prefers_an_answer_to_what_is_only_on_the_subject() -> None:
    texts = [
        "Penguins are birds. Their colonies are loud, and penguins are found in many zoos.",
        "Emperor penguins breed on the sea ice of Antarctica in the middle of winter.",
        "The price list is valid from January.",
    ]
    scores = load_reranker().score("Where do emperor penguins breed?", texts)
    assert scores.argsort().tolist() == [2, 0, 1]
