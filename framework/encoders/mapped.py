"""The tensors of a safetensors file as numpy arrays over its mapped pages, which are read when they are first used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open


def map_tensors(file: Path) -> dict[str, tuple[list[int], NDArray[np.float32] | None]]:
    """Shape and values of each tensor by name; no values where they are not float32.

    Raises:
        SafetensorError, OSError: the file is damaged or can't be read.
    """
    with safe_open(file, framework="numpy"):
        pass  # it refuses what is damaged: the header can be trusted from here on
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    header.pop("__metadata__", None)
    data = np.memmap(file, np.uint8, "r").view(np.ndarray)[8 + size :]
    return {
        name: (
            t["shape"],
            data[slice(*t["data_offsets"])].view("<f4").reshape(t["shape"]) if t["dtype"] == "F32" else None,
        )
        for name, t in header.items()
    }
