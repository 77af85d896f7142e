"""A trained reward model: how good an answer is, as a number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from framework.errors import CallerError, Conflict
from framework.extras import require
from framework.messages import Message, ToolSpec
from framework.models.catalog import Catalog, Resolved
from framework.models.chat_text import shared_text
from framework.training.rendering import Renderer
from framework.training.run import file_hash

if TYPE_CHECKING:
    from framework.training.job import Job

HEAD: Final = "score"  # transformers' name of the head
DESCRIPTION: Final = "reward.json"


class RewardModel:
    """Scores answers; higher is better, and only differences mean something.

    Args:
        folder: a run folder of the recipe "reward", or the folder `adapter` or `model` in it.
        catalog: where the base is found.

    Raises:
        CallerError: there is no reward model, or it can't be read.
        Conflict: the base has changed since.
    """

    def __init__(self, folder: Path, catalog: Catalog | None = None) -> None:
        require("train", "peft", "transformers")
        place = next((p for p in (folder, folder / "adapter", folder / "model") if (p / DESCRIPTION).is_file()), None)
        if place is None:
            raise CallerError(f"There is no reward model in {folder}.", hint='Train one with recipe = "reward".')
        about = json.loads((place / DESCRIPTION).read_text(encoding="utf-8"))
        base = (catalog or Catalog()).resolve(about["base"])
        for name, digest in about["base_sha256"].items():
            if not (base.path / name).is_file() or file_hash(base.path / name) != digest:
                raise Conflict(f"The reward model in {place} was trained on another {name} of {about['base']}.")
        self._model = _load(place, base, about["padding"])
        self._renderer = Renderer(shared_text(base.path, base.card.name))

    def score(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> float:
        """How good the last message, an assistant's, is as an answer to those before.

        Raises:
            CallerError: the last message is not an assistant's, or nothing stands before it.
        """
        import torch

        if len(messages) < 2 or messages[-1].role != "assistant":
            raise CallerError("What is scored is an assistant's message after another one.", field="messages")
        prompt = self._renderer.text.prompt(messages[:-1], tools)
        ids = [*prompt, *self._renderer.answer(messages[-1], tools)]
        with torch.inference_mode():
            return float(self._model(input_ids=torch.tensor([ids])).logits[0, 0])


def score(folder: Path, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> float:
    """The score of one answer; to score several, keep a `RewardModel`."""
    return RewardModel(folder).score(messages, tools)


def _load(place: Path, base: Resolved, padding_id: int) -> Any:
    """The model in float32, for inference."""
    import torch
    from transformers import AutoModelForSequenceClassification

    whole = (place / "config.json").is_file()
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        place if whole else base.path, num_labels=1, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    model.config.get_text_config().pad_token_id = padding_id
    if not whole:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, place)
    return model.eval()


def padding(base: Resolved, tokenizer: Any) -> str:
    """The token that fills batches; it must end no answer: transformers' head reads the last token that is another."""
    ends = shared_text(base.path, base.card.name).ends
    token: str = tokenizer.convert_ids_to_tokens(next(id_ for id_ in range(len(tokenizer)) if id_ not in ends))
    return token


def describe(job: Job) -> None:
    """Write beside the result what loading it takes."""
    folder = job.run.model if job.config.adapter.kind == "full" else job.run.adapter
    tokenizer = job.tokenizer()
    files = sorted(p for p in job.base.path.iterdir() if p.suffix in (".json", ".safetensors", ".jinja"))
    about = {
        "base": job.base.card.name,
        "base_sha256": {path.name: file_hash(path) for path in files},
        "padding": tokenizer.convert_tokens_to_ids(padding(job.base, tokenizer)),
    }
    (folder / DESCRIPTION).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
