"""A GGUF file as a folder in Hugging Face's layout, converted once and kept in the cache.

The weights are stored as float32: what a quantized block stands for (scale × 4 bits + minimum, the factors in half
precision) needs up to 26 bits of mantissa, so a 16-bit type would round every weight a second time; and a float32 file
is mapped and computed with as it is, its pages shared by all processes. GGUF's specification:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from framework.errors import ModelUnavailable
from framework.models.digests import file_digest
from framework.models.progress import Report, silent

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

# Part of the folder's name: raise it when the conversion changes, and old folders are no longer found.
FORMAT = 1
LOCK_SECONDS = 600
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_CONTROL, _USER_DEFINED = 3, 4


def convert(source: Path, cache: Path, progress: Report = silent) -> Path:
    """The folder that a GGUF file is converted to, made now unless it is there already.

    Two processes at once do no harm: the second waits for the first and takes its result. The folder appears whole or
    not at all.

    Raises:
        ModelUnavailable: the file is damaged, of an architecture or tokenizer that is not supported, or the cache can't
            be written.
    """
    from filelock import FileLock, Timeout

    target = converted(source, cache)
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock"), timeout=LOCK_SECONDS):
            if not target.is_dir():
                with _whole_folder(target) as draft:
                    _write_folder(source, draft, progress)
    except Timeout as error:
        raise ModelUnavailable(f"Another process has been converting {source} for {LOCK_SECONDS} s.") from error
    except OSError as error:
        raise ModelUnavailable(
            f"{target} can't be written: {error}.", hint="Free some space, or set LECTERN_CACHE to another folder."
        ) from error
    return target


def converted(source: Path, cache: Path) -> Path:
    """The folder that `convert` makes, whether it is there or not."""
    name = re.sub(r"[^a-z0-9]+", "-", source.stem.lower()).strip("-") or "model"
    return cache / "models" / f"{name}-{file_digest(source, cache)[:16]}.{FORMAT}"


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """A draft of a folder that becomes `target` on success. One at a time: the caller holds the lock."""
    draft = target.with_name(f".{target.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
    draft.mkdir()
    try:
        yield draft
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_folder(source: Path, folder: Path, progress: Report) -> None:
    reader, fields = _read(source, progress)
    config = _config(source, fields, {tensor.name for tensor in reader.tensors})
    tokens = _special_tokens(fields)
    _tokenizer(source, fields).save(str(folder / "tokenizer.json"))
    _write_json(folder / "config.json", config)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(fields, tokens, config["max_position_embeddings"]))
    ids: dict[str, Any] = {
        key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config
    }
    _write_json(folder / "generation_config.json", ids)
    _write_weights(folder / "model.safetensors", _named_tensors(source, reader, config), config, progress)


def _read(source: Path, progress: Report) -> tuple[GGUFReader, dict[str, Any]]:
    """The reader, and the file's key-value pairs."""
    from gguf import GGUFReader

    progress("reading", 0, 1)
    try:
        reader = GGUFReader(source)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise ModelUnavailable(f"{source} is not a whole GGUF file: {error}.", hint="Fetch it again.") from error
    progress("reading", 1, 1)
    return reader, fields


def _config(source: Path, fields: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """config.json of a Llama."""
    architecture = fields.get("general.architecture")
    if architecture != "llama" or any(key.startswith("llama.rope.scaling") for key in fields):
        raise ModelUnavailable(
            f"{source} holds the architecture {architecture!r} or a scaled rotary embedding, which can't be converted.",
            hint="Use the model's safetensors by its Hugging Face id.",
        )
    try:
        hidden, heads = int(fields["llama.embedding_length"]), int(fields["llama.attention.head_count"])
        config: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": hidden,
            "intermediate_size": int(fields["llama.feed_forward_length"]),
            "num_hidden_layers": int(fields["llama.block_count"]),
            "num_attention_heads": heads,
            "num_key_value_heads": int(fields.get("llama.attention.head_count_kv", heads)),
            "head_dim": int(fields.get("llama.rope.dimension_count", hidden // heads)),
            "max_position_embeddings": int(fields["llama.context_length"]),
            "rms_norm_eps": _shortest(fields["llama.attention.layer_norm_rms_epsilon"]),
            "rope_theta": _shortest(fields.get("llama.rope.freq_base", 10000.0)),
            "vocab_size": len(fields["tokenizer.ggml.tokens"]),
            "tie_word_embeddings": "output.weight" not in names,
            "attention_bias": False,
            "mlp_bias": False,
            "dtype": "float32",
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelUnavailable(f"{source} lacks a part of its configuration: {error}.") from error
    if config["num_hidden_layers"] > len(names):
        raise ModelUnavailable(f"{source} has {len(names)} tensors for {config['num_hidden_layers']} layers.")
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        if f"tokenizer.ggml.{theirs}_token_id" in fields:
            config[f"{ours}_token_id"] = int(fields[f"tokenizer.ggml.{theirs}_token_id"])
    return config


def _shortest(value: float) -> float:
    """A float32 as the shortest decimal that means it: 1e-05 and not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _tokenizer(source: Path, fields: Mapping[str, Any]) -> Any:
    """The byte-level BPE tokenizer that the file's vocabulary and merges describe."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    splits = {
        "gpt-2": byte_level,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]),
    }
    kind, split = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or split not in splits:
        raise ModelUnavailable(
            f"{source} has the tokenizer {kind}/{split}, which can't be converted (gpt2/{' or '.join(splits)} can).",
            hint="Use the model's safetensors by its Hugging Face id.",
        )
    try:
        words: list[str] = fields["tokenizer.ggml.tokens"]
        merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
        types = fields.get("tokenizer.ggml.token_type") or [1] * len(words)
        tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    except Exception as error:  # the library raises nothing narrower for merges that fit no vocabulary
        raise ModelUnavailable(f"{source}: its vocabulary is damaged: {error}.", hint="Fetch it again.") from error
    tokenizer.pre_tokenizer = splits[split]
    tokenizer.decoder = decoders.ByteLevel()
    added = [(word, kind) for word, kind in zip(words, types, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(word, special=kind == _CONTROL, normalized=False) for word, kind in added])
    return tokenizer


def _special_tokens(fields: Mapping[str, Any]) -> dict[str, str]:
    words = fields.get("tokenizer.ggml.tokens", [])
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {ours: fields.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in named.items()}
    return {f"{ours}_token": words[i] for ours, i in ids.items() if i is not None and 0 <= i < len(words)}


def _tokenizer_config(fields: Mapping[str, Any], tokens: Mapping[str, str], longest: int) -> dict[str, Any]:
    config: dict[str, Any] = {
        # The class that takes tokenizer.json as it is; an architecture's own class may rebuild it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": longest,
        **tokens,
    }
    if "tokenizer.chat_template" in fields:
        config["chat_template"] = fields["tokenizer.chat_template"]
    return config


def _named_tensors(source: Path, reader: GGUFReader, config: Mapping[str, Any]) -> dict[str, ReaderTensor]:
    """The file's tensors by Hugging Face's names.

    Raises:
        ModelUnavailable: one has no place in the architecture, is missing, or lies beyond the end of the file.
    """
    named = {_name(source, tensor.name): tensor for tensor in reader.tensors}
    expected = set(_shapes(config))
    missing, surplus = expected - named.keys(), named.keys() - expected
    if missing or surplus:
        what = f"lacks {min(missing)}" if missing else f"has {min(surplus)} beside the model's own tensors"
        raise ModelUnavailable(f"{source} {what}.", hint="Fetch it again.")
    for name, shape in _shapes(config).items():
        found = tuple(int(size) for size in reversed(named[name].shape))
        if found != shape:
            raise ModelUnavailable(f"{source}: {name} has the shape {found}, not {shape}.", hint="Fetch it again.")
    return named


def _name(source: Path, name: str) -> str:
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if match and match[2] in _BLOCK:
        return f"model.layers.{match[1]}.{_BLOCK[match[2]]}.weight"
    if name in _OUTER:
        return _OUTER[name]
    raise ModelUnavailable(f"{source} has a tensor {name!r}, which is no part of a plain Llama.")


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model with its shape, in the order in which they are written."""
    hidden, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    block: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{part}.weight": shape for part, shape in block.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def _write_weights(
    path: Path, tensors: Mapping[str, ReaderTensor], config: Mapping[str, Any], progress: Report
) -> None:
    """model.safetensors, one tensor in memory at a time (https://github.com/huggingface/safetensors#format)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    shapes = _shapes(config)
    for name, shape in shapes.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done, name in enumerate(shapes):
            progress("converting", done, len(shapes))
            file.write(_values(name, tensors[name], config).tobytes())
    progress("converting", len(shapes), len(shapes))


def _values(name: str, tensor: ReaderTensor, config: Mapping[str, Any]) -> NDArray[np.float32]:
    from gguf import dequantize

    values: NDArray[np.float32] = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype="<f4")
    if not np.isfinite(values).all():
        raise ModelUnavailable(f"{name} holds NaN or infinity: the file is damaged.", hint="Fetch it again.")
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
    if heads is None:
        return values
    # GGUF keeps the two halves that a rotation mixes side by side, Hugging Face one after the other.
    pairs = values.reshape(config[heads], -1, 2, values.shape[-1])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
