"""Encoders: token ids to vectors. They know tensors and nothing of text; `auto`, `bert` and `pooling` import torch."""
