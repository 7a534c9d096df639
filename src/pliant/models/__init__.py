"""The networks, one readable file each, built from the operators."""

from pliant.models.alexnet import AlexNet

__all__ = ["AlexNet"]
