"""Where deformable convolutions of sequences and volumes sample: a curve with its samples, slices with their taps.

Images have a recording that follows maps through a whole network (:mod:`pliant.show.recording`); here every layer is
drawn over the network's input, whose ends are the ends of the map that the layer reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pliant.nn.deformable import DeformableConvolution
from pliant.nn.modes import evaluation
from pliant.show import canvas, places
from pliant.show.canvas import CENTRE, INK, REGULAR, TAPS, scatter
from pliant.show.figures import DEFORMABLE, Figure
from pliant.show.layout import height, look_at, window

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Sheet

KINDS = {1: "sequences", 3: "volumes"}  # number of axes → what is drawn
LARGEST = 70.0  # square points of the marker of the largest weight
ALONG = 120  # outputs of a sequence at which the weights of taps are drawn, at most
SLICES = 4  # slices of a volume in a row


@dataclass(frozen=True)
class Taps:
    """Where one deformable convolution samples, for each of its outputs.

    Args:
        input: (C, *size), the map that it reads.
        regular: (T, *output, D), where its taps lie without offsets, in pixels of that map, the coordinates in the
            order of its axes; T = G·K, groups vary slower than taps.
        moved: (T, *output, D), where the offsets move them. NaN and infinite offsets sample nothing.
        mask: (T, *output), ones for version 1.
    """

    input: Tensor
    regular: Tensor
    moved: Tensor
    mask: Tensor

    @property
    def size(self) -> tuple[int, ...]:
        """Return the size of the map that is read."""
        return tuple(self.input.shape[1:])

    @property
    def counts(self) -> Tensor:
        """Return which samples (T, *output) read anything: those less than one pixel from the map."""
        size = self.moved.new_tensor(self.size)
        return ((self.moved > -1) & (self.moved < size)).all(-1)

    def farthest(self, count: int) -> list[tuple[int, ...]]:
        """Return up to `count` outputs whose offsets are longest on average, apart from each other.

        Outputs whose regular taps leave the map are left out, unless there are no others.
        """
        strength = (self.moved - self.regular).nan_to_num(0.0, 0.0, 0.0).norm(dim=-1).mean(0)
        last = self.regular.new_tensor(self.size) - 1
        inside = ((self.regular >= 0) & (self.regular <= last)).all(-1).all(0)
        return places.peaks(strength.masked_fill(~inside, -1.0) if inside.any() else strength, count)

    def nearest(self, point: Sequence[float]) -> tuple[int, ...]:
        """Return the output whose centre lies nearest to a point of the map."""
        away = (self.regular.mean(0) - self.regular.new_tensor(point)).square().sum(-1)
        return tuple(int(i) for i in torch.unravel_index(away.argmin(), away.shape))

    def over(self, size: Sequence[int]) -> Taps:
        """Return the same taps in pixels of a map of another size that covers the same range, end to end."""
        ratio = self.moved.new_tensor(size) / self.moved.new_tensor(self.size)
        regular, moved = ((at + 0.5) * ratio - 0.5 for at in (self.regular, self.moved))
        return Taps(self.input.new_zeros(1, *size), regular, moved, self.mask)


def taps(model: nn.Module, input: Tensor, call: Callable[[nn.Module, Tensor], Any] | None = None) -> dict[str, Taps]:
    """Return where every deformable convolution of one or three axes in a model samples, by the names of the layers.

    The model runs once, in evaluation mode. Of a layer that is called several times the last call is kept, of a batch
    the first input. Layers are found by their protocol; calls of `deform_conv1d` and `deform_conv3d` outside a layer
    are not.

    Args:
        model: any module.
        input: (C, L) or (C, D, H, W), as the model takes it without the batch.
        call: how the model is called, ``call(model, input)`` with a batch of one; None: ``model(input)``.

    >>> from pliant.nn import DeformConv1d
    >>> found = taps(nn.Sequential(DeformConv1d(2, 4, 3, padding=1)), torch.randn(2, 32))["0"]
    >>> found.moved[:, 10, 0]
    tensor([ 9., 10., 11.], dtype=torch.float64)
    """
    found: dict[str, Taps] = {}

    def ended(name: str, layer: DeformableConvolution, args: Any, kwargs: Any) -> None:
        offset, mask = layer.predict(*args, **kwargs)
        found.pop(name, None)
        found[name] = _placed(layer, args[0] if args else kwargs["input"], offset, mask)

    with torch.no_grad(), evaluation(model), ExitStack() as hooks:
        for name, layer in layers(model):
            hook = layer.register_forward_hook(
                lambda layer, args, kwargs, _, name=name: ended(name, layer, args, kwargs), with_kwargs=True
            )
            hooks.callback(hook.remove)
        (call or (lambda model, input: model(input)))(model, input.unsqueeze(0))
    return found


def layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Return the names and layers of a model whose taps this module draws."""
    return [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, DeformableConvolution) and len(layer.kernel_size) in KINDS
    ]


def _placed(layer: DeformableConvolution, input: Tensor, offset: Tensor, mask: Tensor | None) -> Taps:
    """Place the taps of a layer, for the first input of a batch."""
    moves = layer.offsets(offset)[0].double().cpu()  # (G, *kernel, *output, D)
    D = moves.shape[-1]
    G, kernel, output = moves.shape[0], moves.shape[1 : 1 + D], moves.shape[1 + D : -1]
    grid = moves.new_zeros((*kernel, *output, D))
    geometry = zip(layer.stride, layer.padding, layer.dilation, strict=True)
    for axis, (stride, padding, dilation) in enumerate(geometry):
        shape = [-1 if i == axis else 1 for i in range(D)]
        tap, place = torch.arange(kernel[axis]).view(*shape, *[1] * D), torch.arange(output[axis]).view(shape)
        grid[..., axis] = stride * place - padding + dilation * tap
    regular = grid.expand_as(moves).reshape(-1, *output, D)
    moved = regular + layer.offset_scale * moves.reshape(regular.shape)
    shares = torch.ones(G, *kernel, *output) if mask is None else mask[0]
    return Taps(input[0].detach().double().cpu(), regular, moved, shares.detach().double().cpu().reshape(-1, *output))


def draw(
    figure: Sheet, found: Taps, input: Tensor | None = None, position: Sequence[int] | None = None
) -> list[tuple[int, ...]]:
    """Draw the taps of a layer over a sequence or a volume; return the outputs whose taps are drawn.

    Rings are the taps of the regular grid, dots are where their offsets move them, and the area of a dot is its mask.
    Of a sequence a curve is drawn with the taps of a few outputs, and below it the distance of every tap from its
    output. Of a volume those slices are drawn that the taps of one output read; a tap between two slices lies in both,
    and its area is divided between them as its weight is.

    Args:
        figure: an empty figure.
        found: from :func:`taps`.
        input: (C, *size), over which the taps are drawn; its mean over channels is. None: the map that the layer reads.
            Of another size it covers the same range, end to end.
        position: the output whose taps are drawn; None: those whose offsets are longest, four of a sequence.
    """
    ground = (found.input if input is None else input.detach().double().cpu()).mean(0).nan_to_num(0.0, 0.0, 0.0)
    shown = found.over(ground.shape)
    if ground.dim() == 1:
        outputs = found.farthest(places.PLACES) if position is None else [tuple(position)]
        _sequence(figure, shown, ground.numpy(), outputs)
    else:
        outputs = found.farthest(1) if position is None else [tuple(position)]
        _slices(figure, shown, ground.numpy(), outputs[0])
    return outputs


def _sequence(figure: Sheet, shown: Taps, curve: np.ndarray, outputs: Sequence[tuple[int, ...]]) -> None:
    """Draw a curve with the taps of a few outputs, and below it where all taps lie, seen from their outputs."""
    over, under = figure.subplots(2, 1, sharex=True, height_ratios=[1.2, 1.0])
    over.plot(range(len(curve)), curve, color="#8A8A8A", linewidth=1.1, zorder=2)
    for (place,) in outputs:
        centre = float(shown.regular[:, place].mean())
        read = shown.counts[:, place]
        still, there, area = shown.regular[:, place, 0], shown.moved[read, place, 0], _area(shown)[read, place]
        scatter(over, _on(curve, still), REGULAR, size=34, hollow=True)
        over.scatter(
            *_on(curve, there).T[::-1], s=area.numpy(), color=TAPS, edgecolors="white", linewidths=0.6, zorder=5
        )
        scatter(over, _on(curve, shown.regular.new_tensor([centre])), CENTRE, size=60, marker="P", layer=6)
        over.axvline(centre, color=CENTRE, linewidth=0.8, alpha=0.5, zorder=1)
        under.axvline(centre, color=CENTRE, linewidth=0.8, alpha=0.5, zorder=1)
    _distances(under, shown)
    over.set_ylabel("input", fontsize=9)
    for axes in (over, under):
        axes.tick_params(labelsize=9)
        axes.spines[["right", "top"]].set_visible(False)


def _distances(axes: Axes, shown: Taps) -> None:
    """Draw where the taps of every output lie, seen from its centre: lines for regular ones, dots for moved ones."""
    centres = shown.regular.mean(0)
    away, still = (shown.moved - centres)[..., 0], (shown.regular - centres)[..., 0]
    every = -(-len(centres) // ALONG)
    for tap in range(len(away)):
        read = shown.counts[tap].nonzero()[:, 0][::every]
        axes.plot(centres[:, 0], still[tap], color=REGULAR, linewidth=0.9, linestyle="--", zorder=2)
        area = _area(shown)[tap, read] / 6
        axes.scatter(centres[read, 0], away[tap, read], s=area.numpy(), color=TAPS, linewidths=0, zorder=3)
    axes.set_ylabel("distance of taps", fontsize=9)
    axes.set_xlabel("position in the input", fontsize=9)


def _area(shown: Taps) -> Tensor:
    """Return the area of every tap in square points."""
    size = shown.mask.abs().nan_to_num(0.0, 0.0, 0.0)
    return LARGEST * size / size.max().clamp_min(1e-12)


def _on(curve: np.ndarray, at: Tensor) -> np.ndarray:
    """Return points (P, 2), (y, x), on a curve; beyond its ends it is 0, and falls to that within one pixel."""
    import numpy as np

    padded = np.pad(curve, 1)
    return np.stack((np.interp(at.numpy() + 1, np.arange(len(padded)), padded), at.numpy()), 1)


def _slices(figure: Sheet, shown: Taps, volume: np.ndarray, output: tuple[int, ...]) -> None:
    """Draw the slices that the taps of one output read, each with the taps in it."""
    import numpy as np

    where: tuple[Any, ...] = (slice(None), *output)
    arrays = (shown.regular, shown.moved, _area(shown), shown.counts)
    still, there, area, read = (array.numpy()[where] for array in arrays)
    there, begun, area = there[read], still[read], area[read]
    # The share of each slice in each tap.
    share = np.clip(1 - abs(np.arange(len(volume))[:, None] - there[:, 0]), 0, 1)
    rings = abs(np.arange(len(volume))[:, None] - still[:, 0]) <= 0.5
    used = np.flatnonzero((share > 0.02).any(1) | rings.any(1))
    columns = min(SLICES, max(len(used), 1))
    rows = max(-(-len(used) // columns), 1)
    inside = np.concatenate((there, still))[:, 1:]
    part = window(volume[0], inside)
    wide = 8.0 / max(columns, 3)
    figure.set_size_inches(wide * columns, rows * (height(wide, (part[1] - part[0]) / (part[3] - part[2])) + 0.25))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, z in zip(panels, used, strict=False):
        canvas.show_picture(axes, _shade(volume)[z], f"slice {z}")
        look_at(axes, part)
        here = share[z] > 0.02
        for (_, y, x), (_, v, u) in zip(begun[here], there[here], strict=True):
            axes.plot([x, u], [y, v], color=INK, linewidth=0.8, alpha=0.6, zorder=3)
        scatter(axes, still[rings[z]][:, 1:], REGULAR, size=30, hollow=True)
        axes.scatter(
            there[here, 2], there[here, 1], s=area[here] * share[z, here], color=TAPS, edgecolors="white",
            linewidths=0.6, zorder=5,
        )  # fmt: skip
        middle = still.mean(0)
        if abs(middle[0] - z) <= 0.5:
            scatter(axes, middle[None, 1:], CENTRE, size=70, marker="P", layer=6)
    for axes in panels[len(used) :]:
        axes.set_axis_off()


def _shade(volume: np.ndarray) -> np.ndarray:
    """Return a volume with 0 for white and its maximum for dark grey, as an image is drawn."""
    shade: np.ndarray = volume - volume.min()
    return shade


def figures(
    model: nn.Module,
    input: Tensor,
    *,
    layer: str | None = None,
    point: Sequence[float] | None = None,
    call: Callable[[nn.Module, Tensor], Any] | None = None,
) -> list[Figure]:
    """Draw the taps of the deformable layers of a model over a sequence or a volume, a figure for each, deepest first.

    Args:
        model: any module.
        input: (C, L) or (C, D, H, W), as the model takes it without the batch.
        layer: the only layer to draw; None: the four deepest.
        point: (x,) or (x, y, z) in pixels of `input`, whose nearest output is drawn; None: where offsets are longest.
        call: how the model is called, ``call(model, input)`` with a batch of one.

    Raises:
        ValueError: the input has another shape, no such layer was called, or the point is not on the input.
    """
    size = tuple(input.shape[1:])
    if len(size) not in KINDS:
        raise ValueError(f"input must have shape (C, L) or (C, D, H, W), got {tuple(input.shape)}")
    if point is not None and not (
        len(point) == len(size) and all(0 <= at < n for at, n in zip(point, size[::-1], strict=True))
    ):
        said, whole = ",".join(f"{at:g}" for at in point), " × ".join(map(str, size[::-1]))
        raise ValueError(f"the point {said} is not on the input of {whole} (x, or x, y, z)")
    found = {name: one for name, one in taps(model, input, call).items() if len(one.size) == len(size)}
    if layer is not None and layer not in found:
        known = ", ".join(map(repr, found)) or "none"
        raise ValueError(f"{layer!r} is no deformable layer that the model called; there are: {known}")
    if not found:
        raise ValueError(f"the model called no deformable layer of {KINDS[len(size)]}")
    names = [layer] if layer is not None else list(reversed(found))[:DEFORMABLE]
    return [_figure(i, name, found[name], input, point) for i, name in enumerate(names, 1)]


def _figure(number: int, name: str, found: Taps, input: Tensor, point: Sequence[float] | None) -> Figure:
    """Draw one layer, and say what is drawn."""
    size = input.shape[1:]
    figure = canvas.sheet(8.0, 4.4)
    figure.set_layout_engine("constrained")
    position = None if point is None else found.over(size).nearest(tuple(point)[::-1])
    outputs = draw(figure, found, input, position)
    lengths = (found.moved - found.regular).nan_to_num(0.0, 0.0, 0.0).norm(dim=-1)
    channels = f", the mean of its {len(input)} channels" if len(input) > 1 else ""
    places_ = ", ".join(str(at[0] if len(at) == 1 else at) for at in sorted(outputs))
    if len(size) == 1:
        said = (
            f"Above the input{channels}. Rings: the regular taps of the output{'s' * (len(outputs) > 1)} {places_} "
            "(crosses); dots: where the offsets move them, their area the mask. Below: how far all taps lie from their "
            "output, regular (dashed) and moved (dots)."
        )
    else:
        said = (
            f"Slices of the input{channels} that the taps of output {places_} (plane, row, column; cross) read. Rings: "
            "the regular taps; dots: where the offsets move them, their area the mask. A tap between two slices lies "
            "in both, and its area is divided as its weight is."
        )
    median, longest = float(lengths.median()), float(lengths.max())
    said += f" Offsets in pixels of the layer's map: median {median:.2f}, longest {longest:.1f}."
    if found.size != tuple(size):
        said += f" That map has size {' × '.join(map(str, found.size))} and is laid over the input end to end."
    return Figure(f"taps-{number}", canvas.png(figure, 150), f"Where the taps of {name or 'the model'} go", said)
