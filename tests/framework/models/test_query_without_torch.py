"""A query's vector without torch: the same vector, and really without."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from framework.config import Settings
from framework.errors import ModelUnavailable
from framework.models.base import Embedder, Vectors
from framework.models.embedders import load_embedder
from indexers.library import Library

SaveBert = Callable[..., Path]
TEXTS = (
    "What is the tallest mountain?",
    "",
    " ",
    "x",
    "日本語とemoji 😀 and naïve café",
    "the cat sat on the mat, a dog runs",
    "word " * 248,
    "the red cat sat on the blue mat. " * 31,
)
LONG = {"tokenizer_config.json": {"model_max_length": 280}}


def without_torch(embedder: Embedder, text: str) -> Vectors:
    """The vector as a process computes it that has not imported torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "torch")
        vector = embedder.embed_query(text)
        assert "torch" not in sys.modules
    return vector


def assert_same_vectors(embedder: Embedder) -> None:
    import torch

    assert torch.__name__ in sys.modules
    for text in TEXTS:
        ours, theirs = without_torch(embedder, text), embedder.embed_query(text)
        assert ours.dtype == np.float32
        assert ours @ theirs >= 0.999999
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_the_model_that_ships_gives_the_vectors_that_torch_gives(embedder: Embedder) -> None:
    assert_same_vectors(embedder)


@pytest.mark.parametrize(("kind", "padding"), [("bert", 0), ("roberta", 1), ("xlm-roberta", 1)])
@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token", "lasttoken"])
def test_a_saved_model_gives_the_vectors_that_torch_gives(
    save_bert: SaveBert, kind: str, padding: int, pooling: str
) -> None:
    files = LONG | {"1_Pooling/config.json": {f"pooling_mode_{pooling}": True}}
    folder = save_bert(kind=kind, files=files, max_position_embeddings=300, pad_token_id=padding)
    embedder = load_embedder(str(folder))
    assert embedder.info.max_tokens == 280
    assert_same_vectors(embedder)


def test_weights_in_shards_give_the_same_vector(save_bert: SaveBert) -> None:
    from transformers import AutoModel

    folder = save_bert(files=LONG, max_position_embeddings=300)
    model = AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="8KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert_same_vectors(load_embedder(str(folder)))


def test_weights_that_hold_nan_are_refused_here_too(save_bert: SaveBert) -> None:
    from safetensors.numpy import load_file, save_file

    folder = save_bert()
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.LayerNorm.bias"][:] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelUnavailable, match="NaN"):
        without_torch(load_embedder(str(folder)), "the cat")


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted(sys.modules), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.splitlines())


def test_half_precision_is_left_to_torch(save_bert: SaveBert) -> None:
    from transformers import AutoModel

    folder = save_bert()
    AutoModel.from_pretrained(folder).half().save_pretrained(folder)
    load = f"from framework.models.embedders import load_embedder\nmodel = load_embedder({str(folder)!r})"
    assert "torch" not in modules_after(load)
    assert "torch" in modules_after(f"{load}\nmodel.embed_query('the cat')")


def test_documents_are_left_to_torch() -> None:
    load = "from framework.models.embedders import load_embedder\nmodel = load_embedder()"
    assert "torch" not in modules_after(f"{load}\nmodel.embed_query('the cat')\nmodel.embed_documents([])")
    assert "torch" in modules_after(f"{load}\nmodel.embed_documents(['the cat'])")


def test_a_search_from_cold_imports_no_torch(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Cats\n\nThe cat sat on the mat.\n")
    with Library.open(settings) as library:
        library.index([tmp_path / "a.md"], "docs")
    run = "from framework.cli import main\nsys.argv[1:] = ['search', 'the cat', '-c', 'docs']\ntry:\n    main()\n"
    modules = modules_after(f"{run}except SystemExit as end:\n    assert not end.code, end.code")
    assert "qdrant_edge" in modules
    assert not {"torch", "transformers", "scipy"} & modules
