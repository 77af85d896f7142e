"""Any other architecture, through transformers. Slow to import, so only asked for where `bert` can't serve."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


class AutoEncoder:
    """Token ids to the last hidden states, by transformers' own class for the model.

    Raises:
        ValueError, OSError: the folder can't be loaded, or would need code of its own.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import AutoModel

        self._model = AutoModel.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, local_files_only=True
        )
        self._model.eval().to(device)
        self.width: int = self._model.config.hidden_size

    def __call__(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Hidden states (texts, tokens, width) of `ids` (texts, tokens), padded on the right beyond `lengths`."""
        mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
        hidden: Tensor = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden


class AutoPairScorer:
    """Token ids of pairs to one score each, by transformers' own class for sequence classification with one label.

    Raises:
        ValueError, OSError: the folder can't be loaded, or would need code of its own.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import AutoModelForSequenceClassification

        self._model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, local_files_only=True
        )
        self._model.eval().to(device)
        self._segments = getattr(self._model.config, "type_vocab_size", 0) > 1

    def __call__(self, ids: Tensor, lengths: Tensor, segments: Tensor) -> Tensor:
        """Scores (pairs,) of `ids` (pairs, tokens), padded on the right beyond `lengths`."""
        mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
        more = {"token_type_ids": segments} if self._segments else {}
        logits: Tensor = self._model(input_ids=ids, attention_mask=mask, **more).logits
        return logits[:, 0]
