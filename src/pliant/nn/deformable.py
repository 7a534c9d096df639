"""What deformable layers have in common: the questions that statistics, figures and counts ask of each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class DeformableLayer(Protocol):
    """A layer that predicts where it samples. Any module with these members is one, whatever its class.

    Attributes:
        branches: names of the children that predict; the first one predicts the offsets, and a child may be None.
        axes: coordinates of an offset in the layer's order, such as "yx", "xy" or "zyx".
        unit: "pixels" of the map that is sampled, or "extents" of the RoI.
        offset_scale: factor that turns a predicted offset into a move in `unit`.
        offset_lr_mult: learning rate of the branches relative to the rest.
        modulated: whether samples are multiplied by a mask.
    """

    branches: tuple[str, ...]
    axes: str
    unit: str
    offset_scale: float
    offset_lr_mult: float
    modulated: bool

    def predict(self, *inputs: Any) -> Any:
        """Return offsets and mask (or None), or the offsets alone, for the last of the inputs that `forward` takes."""

    def offsets(self, predicted: Tensor) -> Tensor:
        """Return the offsets (N, …, D) in what the first branch returned, before `offset_scale`; D follows `axes`."""

    def map_size(self, input: Tensor) -> tuple[int, ...]:
        """Return the size of the map that is sampled, of what the first branch reads; () if that does not tell."""

    def inside(self, moves: Tensor, size: Sequence[int]) -> Tensor | None:
        """Return which samples (N, …) lie on a map of `size` or in the RoI, or None where `moves` do not tell.

        `moves` are ``offset_scale · offsets(…)``.
        """


@runtime_checkable
class DeformableConvolution(DeformableLayer, Protocol):
    """A convolution over a regular grid: tap k of output p samples at ``stride·p − padding + dilation·k + offset``.

    A `transposed` one writes there instead. `offsets` has the shape (N, G, *kernel, *output, D).
    """

    in_channels: int
    out_channels: int
    groups: int
    offset_groups: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    boundary: str
    transposed: bool


@runtime_checkable
class DeformableAggregation(DeformableLayer, Protocol):
    """A layer that adds masked samples of a window, per group of channels, without a weight: DCNv3 and DCNv4.

    `offsets` has the shape (N, Ho, Wo, G, K, 2), x first; columns of taps come first, and the middle tap may be
    missing.
    """

    channels: int
    groups: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    remove_center: bool


@runtime_checkable
class DeformablePool(DeformableLayer, Protocol):
    """A layer that pools RoIs into bins, each of which moves by a part's offset times the sides of its box.

    `offsets` has the shape (N, classes or 1, rows of parts, columns of parts, positions, 2), x first.

    Attributes:
        bins: Ph and Pw of the output.
        classes: how many classes move their bins apart from each other; None: bins have no classes.
        spatial_scale: pixels of the map per pixel of the image.
        sampling_ratio: samples of a bin in each direction; 0 or less: as many as the bin has pixels, rounded up.
        pooled_to_predict: values of an RoI that are pooled before its offsets are known.
    """

    bins: tuple[int, int]
    classes: int | None
    spatial_scale: float
    sampling_ratio: int
    pooled_to_predict: int

    def boxes(self, rois: Tensor) -> Tensor:
        """Return the boxes (R, 4) that are pooled for `rois` (R, 4), both x1, y1, x2, y2 in pixels of the image."""


class BranchHook:
    """Call a function after every forward of a branch, with the branch, its inputs and its output.

    The hook belongs to whoever watches a network, not to the network: a copy of the network, by pickle, `torch.save` or
    `copy.deepcopy`, has a hook that does nothing.
    """

    def __init__(self, look: Callable[[nn.Module, tuple[Any, ...], Tensor], None] | None = None) -> None:
        self.look = look

    def __call__(self, branch: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self.look is not None:
            self.look(branch, inputs, output)

    def __reduce__(self) -> tuple[type[BranchHook], tuple[()]]:
        return BranchHook, ()


def deformable_layers(model: nn.Module) -> Iterator[tuple[str, DeformableLayer]]:
    """Yield name and layer of every deformable layer in a model.

    >>> from pliant.nn import DeformConv2d
    >>> [name for name, _ in deformable_layers(nn.Sequential(nn.Conv2d(3, 8, 3), DeformConv2d(8, 8, 3)))]
    ['1']
    """
    for name, layer in model.named_modules():
        if isinstance(layer, DeformableLayer):
            yield name, layer


def offset_branch(layer: DeformableLayer) -> nn.Module:
    """Return the child of a layer that predicts its offsets."""
    branch: nn.Module = getattr(layer, layer.branches[0])
    return branch


def taps_by_row(values: Tensor, kernel_size: Sequence[int], remove_center: bool) -> Tensor:
    """Return (…, K, D) of a :class:`DeformableAggregation` as (…, Kh·Kw, D), rows of taps first; a missing tap is 0.

    >>> from torch import arange
    >>> taps_by_row(arange(1, 9).view(8, 1), (3, 3), True).view(3, 3)
    tensor([[1, 4, 6],
            [2, 0, 7],
            [3, 5, 8]])
    """
    (Kh, Kw), tap = kernel_size, -2
    if remove_center:
        before = (Kw // 2) * Kh + Kh // 2
        first, last = values.split([before, values.shape[tap] - before], tap)
        values = torch.cat([first, torch.zeros_like(values[..., :1, :]), last], tap)
    rows: Tensor = values.unflatten(tap, (Kw, Kh)).transpose(-3, -2).flatten(-3, -2)
    return rows


def rows_first(layer: DeformableLayer, values: Tensor) -> Tensor:
    """Return (…, D) of a layer with its coordinates in the order (z,) y, x."""
    return values[..., [layer.axes.index(axis) for axis in sorted(layer.axes, reverse=True)]]
