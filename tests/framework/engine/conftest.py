"""Small models made on the spot, and decoders driven step by step with block tables of the test's choosing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from framework.engine.forward import Decoder, ForwardInputs

BLOCK = 4

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 256,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 128,
}

# Name of the model to make: the class of its configuration, and what differs from SMALL (...: left out).
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama-bias": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama3": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama-linear": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "mistral": ("MistralConfig", {"sliding_window": 7}),
    "mistral-full": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}),
    "qwen3": ("Qwen3Config", {}),
    "qwen3-tied": ("Qwen3Config", {"tie_word_embeddings": True, "attention_bias": True}),
    "gpt-neox": ("GPTNeoXConfig", {"num_key_value_heads": None}),
    "gemma2": ("Gemma2Config", {"sliding_window": 6, "query_pre_attn_scalar": 32}),
    "gemma3": ("Gemma3TextConfig", {"sliding_window": 6}),
    "phi3": ("Phi3Config", {"pad_token_id": 0}),
    "phi3-longrope": ("Phi3Config", {"pad_token_id": 0, "rope_parameters": LONGROPE}),
    "gpt2": ("GPT2Config", {}),
    "falcon": ("FalconConfig", {"new_decoder_architecture": True, "head_dim": ..., "num_key_value_heads": ...}),
    "gpt-oss": ("GptOssConfig", {"sliding_window": 8, "num_local_experts": 2, "num_experts_per_tok": 1}),
}


def make_model(kind: str, folder: Path) -> Path:
    """A model of random weights and biases in a folder; the same for the same kind."""
    import transformers

    name, changes = KINDS[kind]
    torch.manual_seed(len(kind))
    fields = {key: value for key, value in {**SMALL, **changes}.items() if value is not ...}
    config = getattr(transformers, name)(**fields)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "bias" in parameter_name:  # else zero, or one, and no test of anything
            torch.nn.init.normal_(parameter, mean=float("norm" in parameter_name), std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a small random model by its kind, a key of KINDS; made when first asked for."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_model(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return folder


@pytest.fixture(scope="session")
def reference(model_folder: Callable[[str], Path]) -> Callable[[str, Sequence[int]], torch.Tensor]:
    """Gives transformers' own logits (tokens, vocabulary) in float32 for a kind of model and token ids."""
    models: dict[str, Any] = {}

    def logits(kind: str, tokens: Sequence[int]) -> torch.Tensor:
        from transformers import AutoModelForCausalLM

        if kind not in models:
            models[kind] = AutoModelForCausalLM.from_pretrained(
                model_folder(kind), dtype=torch.float32, attn_implementation="eager"
            ).eval()
        with torch.inference_mode():
            found: torch.Tensor = models[kind](torch.tensor([list(tokens)]), use_cache=False).logits[0]
        return found

    return logits


@dataclass
class Driver:
    """Feeds a decoder pieces of several sequences, each with its own scattered block table, and collects all logits."""

    decoder: Decoder
    block_size: int = BLOCK
    blocks: int = 64
    seed: int = 0
    slots: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.decoder.allocate(self.blocks)
        self._free = np.random.default_rng(self.seed).permutation(self.blocks).tolist()
        self.tables: dict[int, list[int]] = {}
        self.done: dict[int, int] = {}
        self.logits: dict[int, list[torch.Tensor]] = {}

    def step(self, *pieces: tuple[int, Sequence[int]]) -> torch.Tensor:
        """Compute these next tokens of these sequences; the logits of every one of them."""
        tokens, positions, starts, ends = [], [], [0], []
        for name, piece in pieces:
            first = self.done.get(name, 0)
            tokens += list(piece)
            positions += range(first, first + len(piece))
            starts.append(len(tokens))
            self.done[name] = first + len(piece)
            table = self.tables.setdefault(name, [])
            while len(table) * self.block_size < self.done[name]:
                table.append(self._free.pop())
            ends.append(len(table))
        blocks = np.zeros((len(pieces), max(ends)), dtype=np.int32)
        for row, (name, _), end in zip(blocks, pieces, ends, strict=True):
            row[:end] = self.tables[name]
        inputs = ForwardInputs(
            tokens=np.array(tokens, dtype=np.int32),
            positions=np.array(positions, dtype=np.int32),
            starts=np.array(starts, dtype=np.int32),
            blocks=blocks,
            slots=np.array([self.slots.get(name, -1) for name, _ in pieces], dtype=np.int32),
            sampled=np.arange(len(tokens), dtype=np.int32),
        )
        logits = self.decoder.forward(inputs).clone()
        for (name, _), start, stop in zip(pieces, starts, starts[1:], strict=False):
            self.logits.setdefault(name, []).append(logits[start:stop])
        return logits

    def of(self, name: int) -> torch.Tensor:
        """All logits of a sequence so far."""
        return torch.cat(self.logits[name])


@pytest.fixture
def drive() -> type[Driver]:
    """The class that feeds a decoder step by step."""
    return Driver
