"""Embedding models on this machine: tokenize, batch, encode, pool."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from framework.encoders import bert_layout
from framework.encoders.batcher import token_budget_batches
from framework.errors import CallerError, ModelUnavailable
from framework.models.base import Embedder, EmbedderInfo, ModelCard, Vectors
from framework.models.catalog import Catalog
from framework.models.config import DEFAULTS, ModelsConfig
from framework.models.digests import file_digest
from framework.models.folder import ModelFolder
from framework.models.recipe import Recipe, read_recipe

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from framework.encoders.auto import AutoEncoder
    from framework.encoders.bert import BertEncoder
    from framework.encoders.bert_query import BertQuery

# Padded tokens in a batch: on a CPU, few enough that the activations stay in its caches.
BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
# Texts tokenized at a time: a token takes some 100 bytes until it is embedded.
WINDOW = 1024


def load_embedder(name: str | None = None, config: ModelsConfig = DEFAULTS) -> Embedder:
    """The embedding model of that name, or the configured one, ready to embed.

    Raises:
        NotFound: no such model.
        ModelUnavailable: its files are missing, damaged, or ask for something that is not supported.
    """
    catalog = Catalog(config)
    resolved = catalog.resolve(name or config.embedder)
    if resolved.card.kind != "embedding":
        raise CallerError(
            f"{resolved.card.name!r} is a {resolved.card.kind} model, not an embedding model.",
            hint="`lectern models list` shows the kinds.",
            field="embedder",
        )
    return LocalEmbedder(resolved.card, ModelFolder(resolved.path), catalog.cache, config.threads)


class LocalEmbedder:
    """An embedding model whose weights are in a folder. Safe to call from several threads.

    torch is imported by what embeds documents. A query does without where the model is of the BERT family and nothing
    else has imported torch: the import takes longer than all that `lectern search` does.

    Args:
        card: what the catalog knows of it.
        folder: its files.
        cache: where the digest of its weights is remembered.
        threads: threads for the whole process's torch; None: torch's own choice.
    """

    def __init__(self, card: ModelCard, folder: ModelFolder, cache: Path, threads: int | None = None) -> None:
        recipe = read_recipe(folder, card)
        self._recipe = recipe
        self._threads = threads
        self._loading = threading.Lock()
        self._loaded: tuple[str, BertEncoder | AutoEncoder] | None = None
        self._tokenizer = load_tokenizer(recipe.transformer, recipe.lowercase)
        self._query = _query_encoder(recipe)
        width = self._query.width if self._query else self._encoder()[1].width
        self._info = EmbedderInfo(
            id=_identity(recipe, cache),
            name=card.name,
            dimensions=width,
            max_tokens=recipe.max_tokens,
            languages=card.languages,
            query_prefix=recipe.query_prefix,
            document_prefix=recipe.document_prefix,
        )

    @property
    def info(self) -> EmbedderInfo:
        return self._info

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        vectors = np.empty((len(texts), self._info.dimensions), dtype=np.float32)
        budget = BATCH_TOKENS[self._encoder()[0]] if texts else 0
        for start in range(0, len(texts), WINDOW):
            window = texts[start : start + WINDOW]
            tokens = self._tokenize([self._info.document_prefix + text for text in _checked(window)])
            self._refuse_long(window, tokens, start)
            for batch in token_budget_batches([len(ids) for ids in tokens], budget):
                vectors[[start + i for i in batch]] = self._embed([tokens[i] for i in batch])
        return vectors

    def embed_query(self, text: str) -> Vectors:
        _checked([text])
        encoding = self._tokenizer.encode(self._info.query_prefix + text)
        ids: list[int] = encoding.ids
        excess = len(ids) - self._info.max_tokens
        if excess > 0:
            # The special tokens behind the text stay; its last words go.
            end = len(ids)
            while end and encoding.special_tokens_mask[end - 1]:
                end -= 1
            ids = ids[: end - excess] + ids[end:]
        query = self._query
        if query and query.usable and ids and "torch" not in sys.modules:
            return self._finite(query(ids, self._recipe.pooling))
        vector: Vectors = self._embed([ids])[0]
        return vector

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._tokenize([self._info.document_prefix + text for text in _checked(texts)])]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        _checked([text])
        spans: list[tuple[int, int]] = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return spans

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]

    def _refuse_long(self, texts: Sequence[str], tokens: list[list[int]], start: int) -> None:
        limit = self._info.max_tokens
        for i, ids in enumerate(tokens):
            if len(ids) > limit:
                raise CallerError(
                    f"Text {start + i} has {len(ids)} tokens, {self._info.name} takes {limit}: {texts[i][:60]!r}...",
                    hint="Split it into smaller chunks.",
                    field="texts",
                )

    def _embed(self, tokens: list[list[int]]) -> Vectors:
        import torch

        from framework.encoders.pooling import pool

        device, encoder = self._encoder()
        lengths = [len(ids) for ids in tokens]
        longest = max(lengths)
        padded = np.zeros((len(tokens), longest), dtype=np.int64)
        for row, ids in zip(padded, tokens, strict=True):
            row[: len(ids)] = ids
        with torch.inference_mode():
            sizes = torch.tensor(lengths, device=device)
            hidden = encoder(torch.from_numpy(padded).to(device), sizes)
            vectors: Vectors = pool(hidden, sizes, self._recipe.pooling).cpu().numpy()
        return self._finite(vectors)

    def _finite(self, vectors: Vectors) -> Vectors:
        if not np.isfinite(vectors).all():
            raise ModelUnavailable(f"{self._info.name} computes NaN: its weights are damaged.", hint="Fetch it again.")
        return vectors

    def _encoder(self) -> tuple[str, BertEncoder | AutoEncoder]:
        """The device and the encoder on it, loaded by the first call."""
        if self._loaded is None:
            with self._loading:
                if self._loaded is None:
                    self._loaded = _load_encoder(self._recipe, self._threads)
        return self._loaded


def _checked(texts: Sequence[str]) -> Sequence[str]:
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise CallerError(f"Text {i} is a {type(text).__name__}, not a string.", field="texts")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise CallerError(f"Text {i} is not Unicode: {error}.", field="texts") from None
    return texts


def load_tokenizer(folder: ModelFolder, lowercase: bool = False) -> Tokenizer:
    """The folder's tokenizer, without the cutting and padding that its file may ask for.

    Raises:
        ModelUnavailable: there is none, or it can't be read.
    """
    from tokenizers import Tokenizer, normalizers

    path = folder.file("tokenizer.json")
    if path is None:
        raise ModelUnavailable(
            f"{folder.path} has no tokenizer.json.",
            hint="Save the tokenizer again with transformers' fast tokenizer.",
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise ModelUnavailable(f"{path} can't be read: {error}.", hint="Fetch the model again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if lowercase:
        steps = [normalizers.Lowercase(), *([tokenizer.normalizer] if tokenizer.normalizer else [])]
        tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def _query_encoder(recipe: Recipe) -> BertQuery | None:
    """What embeds a query without torch, its files checked; None: the model is of another family."""
    if not bert_layout.supports(recipe.transformer.config):
        return None
    with refusing_damage(recipe.transformer):
        from framework.encoders.bert_query import BertQuery

        return BertQuery(recipe.transformer.config, recipe.transformer.weights())


def _load_encoder(recipe: Recipe, threads: int | None) -> tuple[str, BertEncoder | AutoEncoder]:
    """The device, and the encoder on it."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)  # for the whole process: torch knows no other scope
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config, files = recipe.transformer.config, recipe.transformer.weights()
    with refusing_damage(recipe.transformer):
        if bert_layout.supports(config):
            from framework.encoders.bert import BertEncoder

            return device, BertEncoder.load(config, files, device)
        from framework.encoders.auto import AutoEncoder

        return device, AutoEncoder(recipe.transformer.path, device)


@contextmanager
def refusing_damage(folder: ModelFolder) -> Iterator[None]:
    """Weights that can't be loaded become a `ModelUnavailable` that says why."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        what = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise ModelUnavailable(
            f"The weights in {folder.path} can't be loaded: {what}.", hint="Fetch the model again."
        ) from error


def _identity(recipe: Recipe, cache: Path) -> str:
    """Hash of all that decides a vector: weights, configuration, tokenizer, pooling, prefixes and limit."""
    folder = recipe.transformer
    names = [*folder.weights(), folder.path / "config.json", folder.path / "tokenizer.json"]
    parts: dict[str, Any] = {path.name: file_digest(path, cache) for path in names}
    parts |= {key: value for key, value in asdict(recipe).items() if key != "transformer"}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
