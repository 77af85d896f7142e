"""What identifies an adapter: where its files are, and the hash of their content that keys whatever is cached."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA or (IA)³ adapter in PEFT's own files.

    Attributes:
        digest: SHA-256 over its configuration and weights, in hexadecimal.
        folder: holds adapter_config.json and adapter_model.safetensors.
        pinned: digests that are to stay resident from now on, as known where this adapter was looked up; None: nothing
            is known of that there, so those that were stay.
    """

    digest: str
    folder: Path
    pinned: frozenset[str] | None = field(default=None, compare=False)
