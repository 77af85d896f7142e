"""Random adapters in the files that PEFT writes: try what serves adapters without training one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COMMON = {
    **{"auto_mapping": None, "base_model_name_or_path": None, "revision": None, "task_type": "CAUSAL_LM"},
    **{"inference_mode": True, "fan_in_fan_out": False, "modules_to_save": None, "exclude_modules": None},
}


def write_lora(
    folder: Path,
    linears: Mapping[str, tuple[int, int]],
    *,
    rank: int = 4,
    seed: int = 0,
    size: float = 0.3,
    ranks: Mapping[str, int] | None = None,
    **config: Any,
) -> Path:
    """Write a LoRA adapter for all these linear layers and return its folder.

    Args:
        linears: (out, in) by name, as a decoder names them.
        size: standard deviation of the entries of A and B; real ones are smaller, but this shows in a test.
        ranks: ranks of some layers, by name.
        config: further fields of adapter_config.json.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (out, into) in linears.items():
        own = (ranks or {}).get(name, rank)
        tensors[f"{_path(name)}.lora_A.weight"] = torch.randn(own, into, generator=generator) * size
        tensors[f"{_path(name)}.lora_B.weight"] = torch.randn(out, own, generator=generator) * size
    targets = sorted({name.rpartition(".")[2] for name in linears})
    fields = {"r": rank, "lora_alpha": 2 * rank, "target_modules": targets, "bias": "none", "use_rslora": False,
              "use_dora": False, "init_lora_weights": True, "lora_dropout": 0.0, "layers_to_transform": None,
              "rank_pattern": dict(ranks or {}), "alpha_pattern": {}}  # fmt: skip
    return _write(folder, tensors, {"peft_type": "LORA", **COMMON, **fields, **config})


def write_ia3(
    folder: Path,
    linears: Mapping[str, tuple[int, int]],
    *,
    seed: int = 0,
    feedforward: tuple[str, ...] = ("down_proj",),
    **config: Any,
) -> Path:
    """Write an (IA)³ adapter for all these layers and return its folder; `feedforward` ones scale their input."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (out, into) in linears.items():
        shape = (1, into) if name.endswith(feedforward) else (out, 1)
        tensors[f"{_path(name)}.ia3_l"] = torch.rand(shape, generator=generator) + 0.5
    targets = sorted({name.rpartition(".")[2] for name in linears})
    fields = {"target_modules": targets, "feedforward_modules": [t for t in targets if t.endswith(feedforward)],
              "init_ia3_weights": True}  # fmt: skip
    return _write(folder, tensors, {"peft_type": "IA3", **COMMON, **fields, **config})


def _path(name: str) -> str:
    return f"base_model.model.model.{name}" if "." in name else f"base_model.model.{name}"


def _write(folder: Path, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> Path:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder
