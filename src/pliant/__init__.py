"""Deformable and normalizing operators for PyTorch, and the networks, experiments and pictures built on them."""

from pliant import nn, ops

__all__ = ["nn", "ops"]
__version__ = "0.1.0"
