"""Rerankers on this machine: ordinary cross-encoders, and adapters with a head on a model that embeds."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from framework.encoders import bert_layout
from framework.encoders.batcher import token_budget_batches
from framework.errors import CallerError, ModelUnavailable
from framework.models.base import ModelCard, Reranker
from framework.models.catalog import RERANKER, Catalog
from framework.models.config import DEFAULTS, ModelsConfig
from framework.models.digests import file_digest
from framework.models.embedders import BATCH_TOKENS, load_tokenizer, refusing_damage
from framework.models.folder import ModelFolder
from framework.models.recipe import longest_input, read_recipe

if TYPE_CHECKING:
    import torch
    from tokenizers import Encoding, Tokenizer

    from framework.encoders.late_interaction import LateInteraction

Scores = NDArray[np.float32]
HEAD = "head.safetensors"
# A query may take this share of what a model reads at once; the rest is for the text.
QUERY_SHARE = 0.5
# Vectors of texts that were read last: a text of 150 tokens takes 230 kB, and reading it 65 ms of a core.
KEPT_BYTES = 128 * 2**20


class _Scorer(Protocol):
    """A loaded model: tokens of a query and of windows of texts to one score for each window."""

    def __call__(self, query: Sequence[int], windows: Sequence[Sequence[int]]) -> Scores: ...


def load_reranker(name: str | None = None, config: ModelsConfig = DEFAULTS) -> Reranker:
    """The reranker of that name, or the configured one, ready to score.

    Raises:
        NotFound: no such model.
        CallerError: it is no reranker.
        ModelUnavailable: its files are missing, damaged, or don't fit its base.
    """
    catalog = Catalog(config)
    resolved = catalog.resolve(name or config.reranker)
    if resolved.card.kind != "reranker":
        raise CallerError(
            f"{resolved.card.name!r} is a {resolved.card.kind} model, not a reranker.",
            hint="`lectern models list` shows the kinds.",
            field="reranker",
        )
    folder = ModelFolder(resolved.path)
    parts = _adapter_parts(folder, catalog) if folder.file(RERANKER) else _folder_parts(folder)
    return LocalReranker(resolved.card, parts, config.threads)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a reranker is made of: the folder of its encoder, and where it has one, of its adapter.

    Attributes:
        limit: tokens that are read at once, the marks between them included.
        marks: how many of them are marks.
    """

    encoder: ModelFolder
    limit: int
    marks: int
    lowercase: bool = False
    adapter: ModelFolder | None = None


class LocalReranker:
    """A reranker whose weights are in a folder. Safe to call from several threads.

    A text that is longer than the model reads is read in windows, and scored by the best of them. torch is imported by
    the first call that scores.

    Args:
        card: what the catalog knows of it.
        parts: its folders and limits.
        threads: threads for the whole process's torch; None: torch's own choice.
    """

    def __init__(self, card: ModelCard, parts: Parts, threads: int | None = None) -> None:
        self._card = card
        self._parts = parts
        self._threads = threads
        self._loading = threading.Lock()
        self._loaded: _Scorer | None = None
        self._tokenizer = load_tokenizer(parts.encoder, parts.lowercase)
        self._most = max(1, int((parts.limit - parts.marks) * QUERY_SHARE))

    @property
    def name(self) -> str:
        return self._card.name

    @property
    def languages(self) -> tuple[str, ...]:
        return self._card.languages

    def query_excess(self, query: str) -> int:
        return max(0, len(self._ids(query)) - self._most)

    def score(self, query: str, texts: Sequence[str]) -> Scores:
        if not texts:
            return np.zeros(0, np.float32)
        asked = self._ids(query)[: self._most]
        room = self._parts.limit - self._parts.marks - (0 if self._parts.adapter else len(asked))
        windows, owners = [], []
        for i, encoding in enumerate(self._encode(texts)):
            for window in _windows(encoding.ids, room):
                windows.append(window)
                owners.append(i)
        found = self._scorer()(asked, windows)
        if not np.isfinite(found).all():
            raise ModelUnavailable(f"{self.name} computes NaN: its weights are damaged.", hint="Fetch it again.")
        scores = np.full(len(texts), -np.inf, np.float32)
        np.maximum.at(scores, owners, found)
        return scores

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._encode([text])[0].ids
        return ids

    def _encode(self, texts: Sequence[str]) -> list[Encoding]:
        try:
            for text in texts:
                text.encode()
        except UnicodeEncodeError as error:
            raise CallerError(f"A text is not Unicode: {error}.", field="texts") from None
        return self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)

    def _scorer(self) -> _Scorer:
        if self._loaded is None:
            with self._loading:
                if self._loaded is None:
                    self._loaded = _load(self._parts, self._tokenizer, self._threads)
        return self._loaded


def _windows(ids: list[int], room: int) -> Iterator[list[int]]:
    """The text in as many windows as it takes, of much the same length, each overlapping the next by an eighth."""
    step = room - room // 8
    count = 1 + max(0, -(-(len(ids) - room) // step))
    last = max(0, len(ids) - room)
    for i in range(count):
        start = round(i * last / (count - 1)) if count > 1 else 0
        yield ids[start : start + room]


def _folder_parts(folder: ModelFolder) -> Parts:
    """An ordinary cross-encoder."""
    labels = folder.config.get("num_labels", len(folder.config.get("id2label") or (0,)))
    if labels != 1:
        raise ModelUnavailable(
            f"{folder.path} tells {labels} classes apart; a reranker has one label.",
            hint="Name a model that was trained to rerank.",
        )
    marks = 4 if folder.config.get("model_type") in bert_layout.ROBERTA else 3
    return Parts(folder, longest_input(folder), marks)


def _adapter_parts(folder: ModelFolder, catalog: Catalog) -> Parts:
    """An adapter with a head, and the embedding model that it was trained on."""
    said = folder.json(RERANKER) or {}
    if said.get("kind") != "late-interaction" or not isinstance(said.get("base"), str):
        raise ModelUnavailable(f"{folder.path / RERANKER} describes no reranker that is known here.")
    base = catalog.resolve(said["base"])
    recipe = read_recipe(ModelFolder(base.path), base.card)
    files = recipe.transformer.weights()
    digests = [file_digest(file, catalog.cache) for file in files]
    if digests != said.get("base_sha256"):
        raise ModelUnavailable(
            f"{folder.path.name} was trained on other weights than those of {base.card.name!r} here.",
            hint="Train it again on them: docs/training.md.",
        )
    return Parts(recipe.transformer, recipe.max_tokens, 2, recipe.lowercase, folder)


def _load(parts: Parts, tokenizer: Tokenizer, threads: int | None) -> _Scorer:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)  # for the whole process: torch knows no other scope
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with refusing_damage(parts.adapter or parts.encoder):
        return _Late(parts, tokenizer, device) if parts.adapter else _Pairs(parts, tokenizer, device)


class _Pairs:
    """Query and text in one sequence, with the marks that the tokenizer puts around a pair."""

    def __init__(self, parts: Parts, tokenizer: Tokenizer, device: str) -> None:
        self._tokenizer = tokenizer
        self._device = device
        folder = parts.encoder
        self._model: Any
        if bert_layout.supports(folder.config):
            from framework.encoders.bert import BertEncoder, load_tensors
            from framework.encoders.cross_encoder import CrossEncoder

            weights = load_tensors(folder.weights())
            self._model = CrossEncoder(BertEncoder(folder.config, weights, device), weights, device)
        else:
            from framework.encoders.auto import AutoPairScorer

            self._model = AutoPairScorer(folder.path, device)
        # Where marks stand, learned from a pair of one token each: [CLS] a [SEP] b [SEP], or <s> a </s></s> b </s>.
        probe = tokenizer.encode("a", "a")
        place = [i for i, special in enumerate(probe.special_tokens_mask) if not special]
        first, second = place[0], place[-1]
        self._before, self._between = probe.ids[:first], probe.ids[place[len(place) // 2 - 1] + 1 : second]
        self._after = probe.ids[second + 1 :]
        self._types = probe.type_ids[first], probe.type_ids[second], probe.type_ids[-1]

    def __call__(self, query: Sequence[int], windows: Sequence[Sequence[int]]) -> Scores:
        import torch

        head = [*self._before, *query, *self._between]
        rows = [[*head, *window, *self._after] for window in windows]
        scores = np.empty(len(rows), np.float32)
        with torch.inference_mode():
            for batch in token_budget_batches([len(row) for row in rows], BATCH_TOKENS[self._device]):
                ids, lengths = padded([rows[i] for i in batch], self._device)
                segments = torch.full_like(ids, self._types[1])
                segments[:, : len(head)] = self._types[0]
                scores[batch] = self._model(ids, lengths, segments).float().cpu().numpy()
        return scores


class _Late:
    """Query and texts apart, compared token by token. Texts that were read last are kept: searches find them again."""

    def __init__(self, parts: Parts, tokenizer: Tokenizer, device: str) -> None:
        from safetensors.torch import load_file

        assert parts.adapter is not None
        self._device = device
        head = parts.adapter.file(HEAD)
        if head is None:
            raise ModelUnavailable(f"{parts.adapter.path} has no {HEAD}.", hint="Copy or train it again.")
        encoder = _adapted(parts.encoder, parts.adapter, device)
        from framework.encoders.late_interaction import LateInteraction

        self._model: LateInteraction = LateInteraction(encoder, load_file(head), device)
        probe = tokenizer.encode("a")
        self._before, self._after = probe.ids[0], probe.ids[-1]
        self._kept: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()
        self._kept_bytes = 0
        self._keeping = threading.Lock()

    def __call__(self, query: Sequence[int], windows: Sequence[Sequence[int]]) -> Scores:
        import torch

        from framework.encoders.late_interaction import score

        if not query:
            return np.zeros(len(windows), np.float32)
        with torch.inference_mode():
            asked = self._model.query(torch.tensor([self._before, *query, self._after], device=self._device))
            found = [score(asked, vectors) for vectors in self._vectors([tuple(window) for window in windows])]
            scores: Scores = torch.stack(found).float().cpu().numpy()
        return scores

    def _vectors(self, windows: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        """The vectors of each window's tokens, those that are kept and those that are new."""
        with self._keeping:
            known = {window: self._kept[window] for window in windows if window in self._kept}
            for window in known:
                self._kept.move_to_end(window)
        new = [window for window in dict.fromkeys(windows) if window not in known]
        rows = [[self._before, *window, self._after] for window in new]
        for batch in token_budget_batches([len(row) for row in rows], BATCH_TOKENS[self._device]):
            read = self._model.texts(*padded([rows[i] for i in batch], self._device))
            known |= zip((new[i] for i in batch), read, strict=True)
        self._keep({window: known[window] for window in new})
        return [known[window] for window in windows]

    def _keep(self, vectors: Mapping[tuple[int, ...], torch.Tensor]) -> None:
        with self._keeping:
            for window, kept in vectors.items():
                if window not in self._kept:
                    self._kept[window] = kept
                    self._kept_bytes += kept.nbytes
            while self._kept_bytes > KEPT_BYTES:
                self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes


def _adapted(base: ModelFolder, adapter: ModelFolder, device: str) -> Any:
    """The base's encoder with the adapter in its weights."""
    from framework.encoders.bert import BertEncoder
    from framework.engine.lora import identify, read_adapter

    if not bert_layout.supports(base.config):
        raise ModelUnavailable(f"{base.path} is no encoder of the BERT family, which adapters are for.")
    shapes = bert_layout.shapes(base.config)
    linears = {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2 and "_embeddings" not in name
    }
    try:
        weights = read_adapter(identify(adapter.path), linears)
    except CallerError as error:
        raise ModelUnavailable(f"The adapter in {adapter.path} can't be used: {error}", hint=error.hint) from error
    if weights.input_scale or weights.output_scale:
        raise ModelUnavailable(
            f"The adapter in {adapter.path} is (IA)³, which rerankers don't apply.", hint="Train it with LoRA."
        )
    updates = {f"{name}.weight": pair.b @ pair.a for name, pair in weights.lora.items()}
    return BertEncoder.load(base.config, base.weights(), device, updates)


def padded(rows: Sequence[Sequence[int]], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (rows, longest), zero behind each row's end, and the rows' lengths."""
    import torch

    lengths = [len(row) for row in rows]
    ids = np.zeros((len(rows), max(lengths)), dtype=np.int64)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(ids).to(device), torch.tensor(lengths, device=device)
