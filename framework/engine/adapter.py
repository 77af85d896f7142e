"""What identifies an adapter: where its files are, and the hash of their content that keys whatever is cached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA or (IA)³ adapter in PEFT's own files.

    Attributes:
        digest: SHA-256 over its configuration and weights, in hexadecimal.
        folder: holds adapter_config.json and adapter_model.safetensors.
    """

    digest: str
    folder: Path
