"""Decoder families: what config.json says of them, and their arithmetic in torch."""

from framework.engine.architectures.families import spec_of
from framework.engine.architectures.rotary import rope_table

__all__ = ["rope_table", "spec_of"]
