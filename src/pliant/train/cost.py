"""Count what a network costs: parameters and multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pliant.models.deformable_detr import DeformableDETR
from pliant.models.detector import Detector
from pliant.models.faster_rcnn import RoIPooling
from pliant.models.resnet import FrozenBatchNorm2d
from pliant.models.rfcn import PartScores
from pliant.models.two_stage import TwoStage
from pliant.nn import LocalResponseNorm, MSDeformAttn
from pliant.nn.deformable import DeformableAggregation, DeformableConvolution, DeformableLayer, DeformablePool
from pliant.nn.modes import evaluation


def parameters(model: nn.Module) -> int:
    """Return the number of learned values of `model`."""
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, *shape: int) -> int:
    """Return the multiply-adds of one forward pass on an input of `shape`.

    With P output positions, K taps and g groups, the counts are:

    - convolution: ``P·O·K·C/g``;
    - deformable convolution: its two convolutions, and 4 per bilinear sample, of which there are ``P·K·C``, or 5 with a
      mask;
    - linear: ``O·C``;
    - batch normalization: 1 per value;
    - local response normalization: ``size + 2`` per value (square, window, product);
    - layer and group normalization: 1 per value;
    - attention among Q queries of width C: ``4·Q·C²`` for its projections and ``2·Q²·C``;
    - multi-scale deformable attention, DCNv3 and DCNv4: 5 per bilinear sample and channel, besides their projections;
    - RoI pooling: 4 per bilinear sample; with offsets it pools twice; with a mask 1 more per value.

    Other pooling and activations multiply nothing and are not counted. What a detector does with boxes is not counted
    either.

    A detector is counted in evaluation mode, on one image, with the most proposals that it takes (`post_nms`), each as
    large as the image.

    Args:
        model: a network on the CPU.
        shape: of the input, with the batch: the whole batch is counted. For a detector (channels, H, W).

    Raises:
        TypeError: `model` holds a layer with parameters, or a deformable layer, that this function does not know.
        ValueError: a detector and a shape other than (channels, H, W).

    >>> multiply_adds(nn.Conv2d(3, 8, 3, padding=1), 1, 3, 10, 10)
    21600
    """
    total = 0

    def count(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            total += output.numel() * layer.weight[0].numel()
        elif isinstance(layer, DeformableConvolution) and not layer.transposed:
            # Its branch has a hook of its own.
            K, corners = math.prod(layer.kernel_size), 2 ** len(layer.kernel_size)
            samples = output.numel() // layer.out_channels * K * layer.in_channels
            total += output.numel() * K * layer.in_channels // layer.groups + samples * (corners + layer.modulated)
        elif isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features
        elif isinstance(layer, nn.BatchNorm2d | FrozenBatchNorm2d | nn.LayerNorm | nn.GroupNorm):
            total += output.numel()
        elif isinstance(layer, LocalResponseNorm):
            total += output.numel() * (layer.size + 2)
        elif isinstance(layer, nn.MultiheadAttention):
            # Its projections call no module.
            N, Q, C = output[0].shape
            total += N * Q * C * (4 * C + 2 * Q)
        elif isinstance(layer, MSDeformAttn):
            total += 5 * output.numel() * sum(layer.points)
        elif isinstance(layer, DeformableAggregation):
            total += 5 * output.numel() * (math.prod(layer.kernel_size) - layer.remove_center)
        elif isinstance(layer, RoIPooling):
            if layer.deform is None:
                scale = 1 / output.new_tensor(layer.strides)[layer.levels(inputs[1])]
                samples = _samples(inputs[1], scale, (layer.size, layer.size), layer.sampling_ratio)
                total += 4 * output.shape[1:].numel() * samples
        elif isinstance(layer, DeformablePool):
            # It pools twice: before its branch, whose layers have hooks of their own, and after.
            values = layer.pooled_to_predict + output.shape[1:].numel()
            samples = _samples(inputs[-1], layer.spatial_scale, layer.bins, layer.sampling_ratio)
            total += 4 * values * samples + output.numel() * layer.modulated
        elif isinstance(layer, PartScores):
            if layer.deform is None:
                total += 4 * 16 * len(output) * layer.conv.out_channels
        elif isinstance(layer, DeformableDETR):
            pass  # embeddings are added
        elif isinstance(layer, DeformableLayer) or next(layer.parameters(recurse=False), None) is not None:
            raise TypeError(f"multiply_adds: does not know what a {type(layer).__name__} costs")

    hooks = [layer.register_forward_hook(count) for layer in model.modules()]
    try:
        with torch.no_grad(), evaluation(model):
            if isinstance(model, Detector):
                if len(shape) != 3:
                    raise ValueError(f"multiply_adds: a detector needs the shape (channels, H, W), got {shape}")
                with _all_proposals(model, shape[2], shape[1]) if isinstance(model, TwoStage) else nullcontext():
                    model([torch.zeros(shape)])
            else:
                model(torch.zeros(shape))
    finally:
        for hook in hooks:
            hook.remove()
    return total


def _samples(rois: Tensor | list[Tensor], scale: Tensor | float, size: tuple[int, int], ratio: int) -> int:
    """Return the samples per bin of RoI pooling, summed over RoIs: `ratio`², or as many as the bin has pixels."""
    boxes = torch.cat(rois) if isinstance(rois, list) else rois[:, 1:]
    if ratio > 0:
        return len(boxes) * ratio**2
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0) * torch.as_tensor(scale).reshape(-1, 1)
    return int((sides / sides.new_tensor(size[::-1])).ceil().prod(1).sum())


@contextmanager
def _all_proposals(model: TwoStage, width: int, height: int) -> Iterator[None]:
    """Let a detector propose its whole image, as many times as `post_nms` allows."""
    count = model.rpn.post_nms[1]
    boxes = torch.tensor([0.0, 0.0, width, height]).expand(1, count, 4)
    model.rpn.proposals = lambda *predicted: (boxes, torch.ones(1, count, dtype=torch.bool))  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.rpn.proposals
