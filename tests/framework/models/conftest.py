"""Small models made on the spot: a BERT folder as transformers saves it, and a Llama as a GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from framework.testing.tiny_bert import Json, write_bert


@pytest.fixture
def save_bert(tmp_path: Path) -> Callable[..., Path]:
    """Saves a random model of 32 dimensions; `files` are further JSON files, `kind` is bert, roberta or modernbert."""

    def save(name: str = "tiny", kind: str = "bert", files: dict[str, Json] | None = None, **config: Any) -> Path:
        return write_bert(tmp_path / name, kind, files, **config)

    return save


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    """Writes a random Llama of 2 layers with Q4_1, Q8_0 and float32 tensors; keywords override its fields."""

    def write(name: str = "tiny.gguf", *, tied: bool = True, extra: tuple[str, ...] = (), **fields: Any) -> Path:
        from gguf import GGMLQuantizationType, GGUFWriter
        from gguf.quants import quantize

        path = tmp_path / name
        writer = GGUFWriter(path, fields.pop("architecture", "llama"))
        _add_llama_fields(writer)
        _add_byte_tokenizer(writer, fields.pop("pre", "smollm"))
        random = np.random.default_rng(0)
        shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (264, 64), "output_norm.weight": (64,)}
        if not tied:
            shapes["output.weight"] = (264, 64)
        for i in range(2):
            shapes |= {
                f"blk.{i}.attn_norm.weight": (64,), f"blk.{i}.attn_q.weight": (64, 64),
                f"blk.{i}.attn_k.weight": (32, 64), f"blk.{i}.attn_v.weight": (32, 64),
                f"blk.{i}.attn_output.weight": (64, 64), f"blk.{i}.ffn_norm.weight": (64,),
                f"blk.{i}.ffn_gate.weight": (96, 64), f"blk.{i}.ffn_up.weight": (96, 64),
                f"blk.{i}.ffn_down.weight": (64, 96),
            }  # fmt: skip
        shapes |= dict.fromkeys(extra, (64,))
        for tensor, shape in shapes.items():
            values = random.normal(size=shape).astype(np.float32) * 0.5
            kind = GGMLQuantizationType.F32 if len(shape) == 1 else GGMLQuantizationType.Q4_1
            kind = GGMLQuantizationType.Q8_0 if tensor == "token_embd.weight" else kind
            writer.add_tensor(tensor, quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _add_llama_fields(writer: Any) -> None:
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(50_000.0)
    writer.add_layer_norm_rms_eps(1e-5)


def _add_byte_tokenizer(writer: Any, pre: str) -> None:
    from tokenizers import pre_tokenizers

    merges = ["h e", "l l", "he ll", "hell o", "Ġ w"]
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words += sorted(pre_tokenizers.ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in merges]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_types([3] * 3 + [1] * (len(words) - 3))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}")
