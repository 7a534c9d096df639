"""Count what a network costs: parameters and multiply-adds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pliant.models.faster_rcnn import RoIPooling
from pliant.models.resnet import FrozenBatchNorm2d
from pliant.models.rfcn import PartScores
from pliant.models.two_stage import TwoStage
from pliant.nn import DeformConv2d, DeformPSRoIPool, DeformRoIPool, LocalResponseNorm


def parameters(model: nn.Module) -> int:
    """Return the number of learned values of `model`."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, *shape: int) -> int:
    """Return the multiply-adds of one forward pass on an input of `shape`.

    Counted, with P output positions, K taps and g groups: convolution ``P·O·K·C/g``; deformable convolution that of
    its two convolutions, and four for each of the ``P·K·C`` bilinear samples, five with a mask; linear ``O·C``; batch
    normalization 1 a value; local response normalization ``size + 2`` a value (square, window, product); RoI pooling
    four for each bilinear sample, twice with offsets, and one a value with a mask. Other pooling and activations
    multiply nothing and are not counted, nor is what a detector does with boxes.

    A detector is counted in evaluation, on one picture, with as many proposals as it takes at most (`post_nms`), each
    as large as the picture.

    Args:
        model: a network on the CPU.
        shape: of the input, with the batch: counts are of the whole batch. For a detector (channels, H, W).

    Raises:
        TypeError: `model` holds a layer with parameters that this function does not know.
        ValueError: a detector and a shape that is not a picture's.

    >>> multiply_adds(nn.Conv2d(3, 8, 3, padding=1), 1, 3, 10, 10)
    21600
    """
    total = 0

    def count(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
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
        elif isinstance(layer, RoIPooling):
            if layer.deform is None:
                scale = 1 / output.new_tensor(layer.strides)[layer.levels(inputs[1])]
                total += (
                    4 * output.shape[1] * _samples(inputs[1], scale, (layer.size, layer.size), layer.sampling_ratio)
                )
        elif isinstance(layer, DeformRoIPool):
            # It pools twice: before its branch, whose layers have hooks of their own, and after.
            samples = _samples(inputs[1], layer.spatial_scale, layer.output_size, layer.sampling_ratio)
            total += 2 * 4 * output.shape[1] * samples + (output.numel() if layer.version == 2 else 0)
        elif isinstance(layer, DeformPSRoIPool):
            offsets = len(output) * 2 * layer.classes * layer.part_size**2
            total += 4 * layer.sample_per_part**2 * (output.numel() + offsets)
        elif isinstance(layer, PartScores):
            if layer.deform is None:
                total += 4 * 16 * len(output) * layer.conv.out_channels
        elif next(layer.parameters(recurse=False), None) is not None:
            raise TypeError(f"multiply_adds: does not know what a {type(layer).__name__} costs")

    hooks = [layer.register_forward_hook(count) for layer in model.modules()]
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            if isinstance(model, TwoStage):
                if len(shape) != 3:
                    raise ValueError(f"multiply_adds: a detector needs the shape (channels, H, W), got {shape}")
                with _all_proposals(model, shape[2], shape[1]):
                    model([torch.zeros(shape)])
            else:
                model(torch.zeros(shape))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return total


def _samples(rois: Tensor | list[Tensor], scale: Tensor | float, size: tuple[int, int], ratio: int) -> int:
    """Return how often RoI pooling reads a channel: `ratio`² times a bin, or as often as the bin has pixels."""
    boxes = torch.cat(rois) if isinstance(rois, list) else rois[:, 1:]
    bins = size[0] * size[1]
    if ratio > 0:
        return len(boxes) * bins * ratio**2
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0) * torch.as_tensor(scale).reshape(-1, 1)
    return int((sides / sides.new_tensor(size[::-1])).ceil().prod(1).sum()) * bins


@contextmanager
def _all_proposals(model: TwoStage, width: int, height: int) -> Iterator[None]:
    """Let a detector propose its whole picture, as often as it may."""
    count = model.rpn.post_nms[1]
    boxes = torch.tensor([0.0, 0.0, width, height]).expand(1, count, 4)
    model.rpn.proposals = lambda *predicted: (boxes, torch.ones(1, count, dtype=torch.bool))  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.rpn.proposals
