"""The files of named adapters: copied in once, checked, under the SHA-256 of their content, never changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from framework.engine.adapter import Adapter
from framework.errors import CallerError, ModelUnavailable, StoreCorrupt

FILES: Final = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """The folders `files` and `staging` of the adapters' folder; who holds the adapters' lock changes them."""

    folder: Path

    def place(self, digest: str) -> Path:
        """The folder that holds, or would hold, the files with this digest."""
        return self.folder / "files" / digest

    def require(self, name: str, digest: str) -> None:
        """Raises: StoreCorrupt: the files with this digest are gone or damaged."""
        if not intact(self.place(digest), digest):
            raise StoreCorrupt(
                f"The files of {name!r} with the digest {digest[:12]} are gone or damaged.",
                hint=f"Put back {self.place(digest)}, or train and publish again.",
            )

    def take_in(self, name: str, folder: Path, base: Path) -> tuple[Adapter, int]:
        """Copy an adapter's files, check the copy, and put it under its digest; returns it and its size in bytes.

        Args:
            name: what messages call it.
            base: folder of the model that it is to fit.

        Raises:
            CallerError: it is no adapter, or does not fit.
        """
        from framework.engine.lora import identify, read_adapter

        identify(folder)  # refuses what must not be copied: missing files, pickles, links that lead out
        staging = self.folder / "staging"
        shutil.rmtree(staging, ignore_errors=True)
        draft = staging / name  # messages name the folder
        draft.mkdir(parents=True)
        try:
            for file in FILES:
                _copy(folder / file, draft / file)
            adapter = identify(draft)
            read_adapter(adapter, linears_of(base))
            size = (draft / FILES[1]).stat().st_size
            final = self.place(adapter.digest)
            if not intact(final, adapter.digest):
                shutil.rmtree(final, ignore_errors=True)
                final.parent.mkdir(exist_ok=True)
                draft.rename(final)
                sync(final.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return Adapter(adapter.digest, final), size

    def remove(self, digest: str) -> None:
        """Take the files with this digest away."""
        shutil.rmtree(self.place(digest), ignore_errors=True)


def linears_of(folder: Path) -> Mapping[str, tuple[int, int]]:
    """(out, in) of each linear layer of the model in a folder, without its weights.

    Raises:
        ModelUnavailable: its config.json can't be used.
    """
    from framework.engine.architectures.families import spec_of
    from framework.engine.loader import read_config

    spec = spec_of(read_config(folder))
    if spec is not None:
        return spec.all_linears
    import torch
    import transformers

    from framework.engine.architectures.pretrained import linear_shapes

    auto: Any = transformers.AutoModelForCausalLM
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            model = auto.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelUnavailable(f"The model in {folder} can't be built: {str(error)[:300]}") from error
    return linear_shapes(model)


def intact(folder: Path, digest: str) -> bool:
    """Whether a folder holds an adapter with this digest."""
    from framework.engine.lora import identify

    try:
        return identify(folder).digest == digest
    except CallerError:
        return False


def sync(path: Path) -> None:
    """Have what was written to a file or a directory on the disk before what refers to it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    sync(target)
