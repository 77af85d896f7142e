"""The two files of an adapter, as bytes and tensors: read whole and once, so that what is checked is what is used."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from framework.engine.peft_config import refused

if TYPE_CHECKING:
    import torch

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PICKLED: Final = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # how torch.save's files begin
WEIGHTS_LIMIT: Final = 4 * 2**30


def contents(folder: Path) -> tuple[bytes, bytes]:
    """What the configuration and the weights hold. The folder's other files are not looked at.

    Raises:
        CallerError: a file is missing, pickled, too large, or a link that leads out of the folder.
    """
    pickles = sorted(path.name for path in folder.glob("adapter_model*") if path.suffix in PICKLES)
    if pickles and not (folder / WEIGHTS).is_file():
        raise refused(
            f"The adapter's weights are in {pickles[0]}, which may run code when loaded.",
            "Only safetensors are read: load it where you trust it and call save_pretrained.",
        )
    return _inside(folder, CONFIG), _inside(folder, WEIGHTS)


def _inside(folder: Path, name: str) -> bytes:
    path = folder / name
    if not path.is_file():
        raise refused(f"{folder} has no {name}.", "Name the folder that PEFT's save_pretrained wrote.")
    home, real = folder.resolve(), path.resolve()
    # The hub's cache keeps a snapshot's files as links into the blobs folder beside it.
    blobs = home.parent.parent / "blobs"
    if not (real.is_relative_to(home) or (home.parent.name == "snapshots" and real.is_relative_to(blobs))):
        raise refused(f"{path} is a link that leads out of its folder.", "Copy the file into the folder.")
    if path.stat().st_size > WEIGHTS_LIMIT:
        raise refused(f"{path} has {path.stat().st_size:,} bytes, more than {WEIGHTS_LIMIT:,}.")
    return path.read_bytes()


def digest_of(config: bytes, weights: bytes) -> str:
    """SHA-256 over the two files' own digests, so that no byte can move from one to the other unnoticed."""
    both = hashlib.sha256(config).digest() + hashlib.sha256(weights).digest()
    return hashlib.sha256(both).hexdigest()


def tensors_of(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        CallerError: it is none, is damaged or empty, or holds what is no finite floating-point number.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if data.startswith(PICKLED):
        raise refused(f"{WEIGHTS} is a pickle, which may run code when loaded.", "Save it as safetensors.")
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise refused(
            f"{WEIGHTS} is damaged, or no safetensors file: {str(error)[:200]}.", "Copy or save it again."
        ) from None
    if not tensors:
        raise refused(f"{WEIGHTS} holds no tensor.", "Save the adapter again.")
    for key, tensor in sorted(tensors.items()):
        if not tensor.is_floating_point():
            raise refused(f"{key[:200]} is of the type {tensor.dtype}.", "Adapters are float32, bfloat16 or float16.")
        if not tensor.isfinite().all():
            raise refused(
                f"{key[:200]} holds NaN or infinite values.", "The training diverged; use another checkpoint."
            )
    return tensors
