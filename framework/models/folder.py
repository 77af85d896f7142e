"""A model's folder, looked at before anything in it is loaded: which files, are they safe, are they inside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from framework.errors import ModelUnavailable

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
JSON_LIMIT = 64 * 2**20  # a tokenizer.json of 256,000 words has 33 MB


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder in Hugging Face's layout.

    Every file is reached through `file`, which refuses one that lies outside: model folders come from strangers.
    """

    path: Path

    def file(self, name: str) -> Path | None:
        """The path of a file of the folder; None: it is not there.

        Raises:
            ModelUnavailable: the name, or the link it is, leads out of the folder.
        """
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name:
            raise ModelUnavailable(f"{self.path}: a file is named {name!r}, outside the model's folder.")
        path = self.path / name
        if not path.is_file():
            return None
        home, real = self.path.resolve(), path.resolve()
        # The hub's cache keeps a snapshot's files as links into the blobs folder beside it.
        blobs = home.parent.parent / "blobs"
        if not (real.is_relative_to(home) or (home.parent.name == "snapshots" and real.is_relative_to(blobs))):
            raise ModelUnavailable(
                f"{path} is a link to {real}, outside the model's folder.", hint="Copy the file into the folder."
            )
        return path

    def json_value(self, name: str) -> Any:
        """What a JSON file holds; None: no such file.

        Raises:
            ModelUnavailable: not JSON, or beyond 64 MiB.
        """
        path = self.file(name)
        if path is None:
            return None
        if path.stat().st_size > JSON_LIMIT:
            raise ModelUnavailable(f"{path} has {path.stat().st_size:,} bytes, more than {JSON_LIMIT:,}.")
        try:
            return json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ModelUnavailable(f"{path} is not valid JSON: {error}.") from error

    def json(self, name: str) -> dict[str, Any] | None:
        """The object that a JSON file holds; None: no such file.

        Raises:
            ModelUnavailable: as `json_value`, and where it is not an object.
        """
        value = self.json_value(name)
        if value is not None and not isinstance(value, dict):
            raise ModelUnavailable(f"{self.path / name} holds a {type(value).__name__}, not an object.")
        return value

    @property
    def config(self) -> dict[str, Any]:
        """config.json.

        Raises:
            ModelUnavailable: there is none.
        """
        config = self.json("config.json")
        if config is None:
            raise ModelUnavailable(
                f"{self.path} has no config.json.", hint="Name a folder in Hugging Face's layout, or a .gguf file."
            )
        return config

    def weights(self) -> list[Path]:
        """The safetensors files, whole or in shards.

        Raises:
            ModelUnavailable: there are none, or a shard is missing.
        """
        single = self.file("model.safetensors")
        if single:
            return [single]
        index = self.json("model.safetensors.index.json")
        if index is None:
            pickles = sorted(p.name for p in self.path.iterdir() if p.suffix in PICKLES)
            if pickles:
                raise ModelUnavailable(
                    f"{self.path} has its weights as {', '.join(pickles[:3])}, which may run code when loaded.",
                    hint="Only safetensors are read: load it where you trust it and call save_pretrained.",
                )
            raise ModelUnavailable(f"{self.path} has no model.safetensors.")
        names = sorted({str(name) for name in (index.get("weight_map") or {}).values()})
        shards = [self.file(name) for name in names]
        missing = [name for name, shard in zip(names, shards, strict=True) if shard is None]
        if missing or not names:
            raise ModelUnavailable(
                f"{self.path}: missing the weights {', '.join(missing[:3]) or 'of an empty index'}.",
                hint="Copy or download the folder again.",
            )
        return [shard for shard in shards if shard]
