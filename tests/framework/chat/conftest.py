"""A chat model made on the spot: random weights, a byte-level tokenizer of a few hundred tokens, a ChatML template."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from framework.models.config import EngineConfig
from framework.models.constraints import Vocabulary
from framework.models.local_chat import LocalChat

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    '{"name": "search", "arguments": {"query": "the weather"}}',
    "<tool_call>\n</tool_call>",
    "true false null 0.5",
]
CONTEXT = 1024


def make_folder(folder: Path, template: str = TEMPLATE, seed: int = 0) -> Path:
    """Write a complete model folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        show_progress=False,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(special), encoding="utf-8")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> LocalChat:
    """The random model, loaded once."""
    return LocalChat(tiny_folder, "tiny", config=EngineConfig(device="cpu", dtype="float32", kv_dtype="float32"))


@pytest.fixture(scope="session")
def vocabulary(tiny_folder: Path) -> Vocabulary:
    text = (tiny_folder / "tokenizer.json").read_text(encoding="utf-8")
    return Vocabulary(text, len(json.loads(text)["model"]["vocab"]), [1])


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., Path]:
    """`model_folder(template=..., seed=...)` makes a folder of the test's own."""
    return lambda template=TEMPLATE, seed=0: make_folder(tmp_path / "model", template, seed)
