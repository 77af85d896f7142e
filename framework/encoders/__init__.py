"""Encoders: token ids to vectors. They know tensors and nothing of text; these modules import torch."""
