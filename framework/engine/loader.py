"""Weights straight from safetensors, mapped into memory: a tensor is read from disk when it is first touched."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from framework.errors import ModelUnavailable

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model's folder.

    Raises:
        ModelUnavailable: there is none, or it is not a JSON object.
    """
    return _json(folder, "config.json", hint="Name a folder in Hugging Face's layout.")


class Weights:
    """The tensors of a folder's safetensors, whole or in shards, in float or as `quantize.save_quantized` wrote them.

    Names are those of `DecoderSpec`: "layers.0.mlp.up_proj" is that layer's weight, "layers.0.mlp.up_proj.bias" its
    bias; the checkpoint may have "model." before them.

    Raises:
        ModelUnavailable: no safetensors, a missing or broken file, or a quantization other than ours.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = read_config(folder)
        scheme = config.get("quantization_config")
        if scheme is not None:
            check_scheme(scheme, folder)
        self.is_quantized = scheme is not None
        self._files = [_opened(path) for path in _shards(folder)]
        self._places = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118, not a mapping

    def __contains__(self, name: str) -> bool:
        return self._full(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """A tensor in its stored type, which shares the file's memory: not to be written to.

        Rounded weights are given as the float32 that they stand for.

        Args:
            shape: what it must have.

        Raises:
            ModelUnavailable: there is none of this name, or its shape differs.
        """
        rounded = self.quantized(name, shape)
        if rounded is not None:
            return rounded[0].float() * rounded[1][:, None]
        return self._stored(name, shape)

    def quantized(self, name: str, shape: tuple[int, ...] | None = None) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A weight that is stored rounded: int8 (out, in) and float32 scales (out,); None: it is stored in float.

        Raises:
            ModelUnavailable: its shape, or that of its scales, is wrong.
        """
        full = self._full(name) if self.is_quantized else None
        if full is None or f"{full}_scale" not in self._places:
            return None
        weight = self._stored(name, shape)
        scale = self._stored(f"{full}_scale", (weight.shape[0], 1)).float().reshape(-1)
        if weight.dtype != torch.int8:
            raise ModelUnavailable(f"{self.folder}: {full} has scales but is {weight.dtype}, not int8.")
        return weight, scale

    def _full(self, name: str) -> str | None:
        candidates = [prefix + name + suffix for suffix in ("", ".weight") for prefix in ("", "model.")]
        return next((full for full in candidates if full in self._places), None)

    def _stored(self, name: str, shape: tuple[int, ...] | None) -> torch.Tensor:
        full = self._full(name)
        if full is None:
            raise ModelUnavailable(
                f"{self.folder} has no weight named {name!r}.", hint="Its config.json describes another model."
            )
        tensor: torch.Tensor = self._places[full].get_tensor(full)
        if shape is not None and tuple(tensor.shape) != shape:
            raise ModelUnavailable(
                f"{self.folder}: {full} has the shape {tuple(tensor.shape)}, where config.json asks for {shape}."
            )
        return tensor


def check_scheme(scheme: Mapping[str, Any], folder: Path) -> None:
    """Refuse rounded weights that we would misread.

    Raises:
        ModelUnavailable: anything but compressed-tensors' "int-quantized" with a scale per output channel.
    """
    method, layout = scheme.get("quant_method"), scheme.get("format")
    groups = (scheme.get("config_groups") or {}).values()
    weights = [group.get("weights") or {} for group in groups]
    inputs = [group.get("input_activations") or {} for group in groups]
    known = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    dynamic = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
    wanted = [(group, known) for group in weights] + [(group, dynamic) for group in inputs]
    fits = bool(wanted) and all(group.get(key) == value for group, rule in wanted for key, value in rule.items())
    if method != "compressed-tensors" or layout != "int-quantized" or not fits:
        raise ModelUnavailable(
            f"{folder} is quantized with {method!r} ({layout or 'no format named'}), which can't be read.",
            hint="Read are float weights, and compressed-tensors' int-quantized with 8 bits a channel (W8A8).",
        )


def _shards(folder: Path) -> list[Path]:
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not (folder / "model.safetensors.index.json").is_file():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise ModelUnavailable(
                f"{folder} has its weights as {', '.join(pickles[:3])}, which may run code when loaded.",
                hint="Only safetensors are read: load it where you trust it and call save_pretrained.",
            )
        raise ModelUnavailable(f"{folder} has no model.safetensors.", hint="Copy or download the folder again.")
    index = _json(folder, "model.safetensors.index.json").get("weight_map") or {}
    names = sorted({str(name) for name in index.values()})
    for name in names:
        if PurePosixPath(name).name != name or "\\" in name:
            raise ModelUnavailable(f"{folder}: a shard is named {name!r}, outside the model's folder.")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise ModelUnavailable(
            f"{folder}: missing the weights {', '.join(missing[:3]) or 'of an empty index'}.",
            hint="Copy or download the folder again.",
        )
    return [folder / name for name in names]


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise ModelUnavailable(
            f"{path} can't be read as safetensors: {error}.", hint="Copy or download the folder again."
        ) from error


def _json(folder: Path, name: str, hint: str = "") -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_bytes())
    except FileNotFoundError as error:
        raise ModelUnavailable(f"{folder} has no {name}.", hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise ModelUnavailable(f"{folder / name} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ModelUnavailable(f"{folder / name} holds a {type(value).__name__}, not an object.")
    return value
