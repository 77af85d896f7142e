"""Rounded and packed weights, kept in the cache directory: the next start maps them instead of making them again."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import struct
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from mmap import ACCESS_COPY, mmap
from pathlib import Path

import torch

from framework.config import cache_dir
from framework.engine.loader import Weights

VERSION = 1  # of the order that packing.py makes
ALIGNMENT = 64
LEAST = 16 << 20  # bytes; fewer are made as fast as they are read
FORGOTTEN = 30 * 24 * 3600  # seconds without a start after which a file is removed
LOG = logging.getLogger("lectern.engine")


def cached_place(weights: Weights, dtype: str) -> Path:
    """Where a folder's packed weights are kept. Its name changes with any of the folder's files."""
    folder = weights.folder.resolve()
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    digests = [
        hashlib.sha256(repr(part).encode()).hexdigest()[:16] for part in ((str(folder), dtype), (VERSION, state))
    ]
    return cache_dir() / "kernels" / f"weights-{digests[0]}-{digests[1]}.bin"


def write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Keep tensors in a file, in place of what was kept for earlier states of the same folder, or long not used.

    A disk that is full or a folder that can't be written to only costs time at the next start, and is logged.
    """
    index, offset = {}, 0
    for name, tensor in tensors.items():
        index[name] = (str(tensor.dtype).removeprefix("torch."), list(tensor.shape), offset)
        offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    header = json.dumps({"size": offset, "tensors": index}).encode()
    header += b" " * (-(len(header) + 8) % ALIGNMENT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            made = Path(work) / path.name
            with made.open("wb") as file:
                file.write(struct.pack("<Q", len(header)) + header)
                for tensor in tensors.values():
                    file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
                    file.write(bytes(-tensor.nbytes % ALIGNMENT))
                file.flush()
                os.fsync(file.fileno())
            made.replace(path)
        for other in path.parent.glob("weights-*.bin"):
            of_this_folder = other.name.startswith(path.name.rpartition("-")[0])
            if other != path and (of_this_folder or time.time() - other.stat().st_mtime > FORGOTTEN):
                other.unlink(missing_ok=True)
    except OSError as error:
        LOG.warning("Packed weights can't be kept in %s: %s", path, error)


def read(path: Path) -> dict[str, torch.Tensor] | None:
    """The tensors of a file, mapped; None: it is not there, or damaged."""
    try:
        with path.open("rb") as file:
            mapped = mmap(file.fileno(), 0, access=ACCESS_COPY)
        start = 8 + struct.unpack("<Q", mapped[:8])[0]
        header = json.loads(mapped[8:start])
        if len(mapped) != start + header["size"]:
            return None
        tensors = {}
        for name, (dtype, shape, offset) in header["tensors"].items():
            type_ = getattr(torch, dtype)
            flat = torch.frombuffer(mapped, dtype=type_, count=math.prod(shape), offset=start + offset)
            tensors[name] = flat.view(shape)
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, RuntimeError, OverflowError):
        return None
    return tensors


def packed(weights: Weights, dtype: str, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The kept tensors; made and kept where they are missing."""
    path = cached_place(weights, dtype)
    found = read(path)
    if found is not None:
        with suppress(OSError):  # a cache that can't be written to
            os.utime(path)
        return found
    made = make()
    if sum(tensor.nbytes for tensor in made.values()) < LEAST:
        return made
    write(path, made)
    return read(path) or made
