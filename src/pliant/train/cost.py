"""Count what a network costs: parameters and multiply-adds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pliant.models.resnet import FrozenBatchNorm2d
from pliant.nn import DeformConv2d, LocalResponseNorm


def parameters(model: nn.Module) -> int:
    """Return the number of learned values of `model`."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, *shape: int) -> int:
    """Return the multiply-adds of one forward pass on an input of `shape`.

    Counted, with P output positions, K taps and g groups: convolution ``P·O·K·C/g``; deformable convolution that of
    its two convolutions, and four for each of the ``P·K·C`` bilinear samples, five with a mask; linear ``O·C``; batch
    normalization 1 a value; local response normalization ``size + 2`` a value (square, window, product). Pooling and
    activations multiply nothing and are not counted.

    Args:
        model: a network on the CPU.
        shape: of the input, with the batch: counts are of the whole batch.

    Raises:
        TypeError: `model` holds a layer with parameters that this function does not know.

    >>> multiply_adds(nn.Conv2d(3, 8, 3, padding=1), 1, 3, 10, 10)
    21600
    """
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += output.numel() * layer.weight[0].numel()
        elif isinstance(layer, DeformConv2d):
            # Its branch is an nn.Conv2d with a hook of its own.
            K = layer.kernel_size[0] * layer.kernel_size[1]
            samples = output.numel() // layer.out_channels * K * layer.in_channels
            total += output.numel() * layer.weight[0].numel() + samples * (5 if layer.version == 2 else 4)
        elif isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features
        elif isinstance(layer, nn.BatchNorm2d | FrozenBatchNorm2d):
            total += output.numel()
        elif isinstance(layer, LocalResponseNorm):
            total += output.numel() * (layer.size + 2)
        elif next(layer.parameters(recurse=False), None) is not None:
            raise TypeError(f"multiply_adds: does not know what a {type(layer).__name__} costs")

    hooks = [layer.register_forward_hook(count) for layer in model.modules()]
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(shape))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return total
