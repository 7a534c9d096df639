"""The report's figures, drawn from the weights and the test images of the study."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pliant import _files
from pliant.nn import DeformConv2d, LocalResponseNorm
from pliant.show import canvas, grids, lrn, sampling
from pliant.studies.geometry.contestants import CONTESTANTS, build
from pliant.studies.geometry.protocol import TRAININGS, Task
from pliant.studies.geometry.report.results import Results, deformable
from pliant.studies.report.figures import Figure, drawn, first
from pliant.studies.store import weights

SHOWN = (9, 2, 0)  # classes of the objects in the images: ankle boot, pullover, T-shirt
POSES: dict[str, dict[str, float]] = {
    "small": {"scale": 0.7},
    "large": {"scale": 1.9},
    "rotated": {"scale": 1.4, "rotation": 60.0},
}


def all_figures(results: Results) -> list[Figure]:
    """Draw every figure that the folder has weights for; add a note for each one left out."""
    return drawn(results, (sampling_pair, sampling_poses, special_cases, inhibition), results.notes)


def sampling_pair(results: Results) -> Figure:
    """Draw 9, 81 and 729 paths on one object, of the trained layers and of the same layers without offsets."""
    net, name = _net(results, lambda c: deformable(c), "a deformable network")
    chain = _chain(net)
    canvas_, on, _ = _posed(SHOWN[1], {"scale": 1.5, "rotation": 25.0}, chain)
    figure = canvas.sheet(12, 8.35)
    rows = figure.subplots(2, 3)
    depths = range(1, 4)
    still = [_without_offsets(layer) for layer in chain]
    image = canvas_[0, 0].numpy()
    for axes, layers, kind in zip(rows, (still, chain), ("regular", "deformable"), strict=True):
        for cell, depth in zip(axes, depths, strict=True):
            found = sampling.trace(layers, canvas_, on, depth)
            color = canvas.REGULAR if kind == "regular" else canvas.TAPS
            title = f"{kind}, {depth} layer{'s' * (depth > 1)}: {len(found.points)} paths"
            sampling.draw(cell, image, found, title=title, margin=1.5, color=color)
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.955, 0.02, 0.1)
    caption = (
        "What one output of the last layer (green cross) samples through one, two and three 3×3 layers. Top: regular "
        "grids, whose 81 and 729 paths end in 25 and 49 positions; bottom: the trained layers of "
        f"{name}. The object is a test image drawn at scale 1.5, rotated by 25°. Fainter points have smaller weights; "
        "grey rings are out of bounds."
    )
    alternative = "Sampling points of one, two and three layers over an image, regular above, deformable below"
    return Figure("sampling", canvas.png(figure), caption, alternative)


def sampling_poses(results: Results) -> Figure:
    """Draw the points on a small, a large and a rotated object, for an output on the object and one beside it."""
    net, name = _net(results, lambda c: deformable(c), "a deformable network")
    chain = _chain(net)
    figure = canvas.sheet(12, 9.3)
    rows = figure.subplots(3, 4)
    for axes, (pose, ranges), kind in zip(rows, POSES.items(), SHOWN, strict=True):
        canvas_, on, off = _posed(kind, ranges, chain)
        image = canvas_[0, 0].numpy()
        for cell, depth, place in zip(axes, (1, 2, 3, 3), (on, on, on, off), strict=True):
            found = sampling.trace(chain, canvas_, place, depth)
            title = f"{pose}, {len(found.points)} paths" + (", background" if place == off else "")
            sampling.draw(cell, image, found, title=title, margin=1.5)
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.965, 0.02, 0.1)
    caption = (
        f"Sampling points of {name} on a small (scale 0.7), a large (1.9) and a rotated object (60°), for an output on "
        "the object and, in the last column, one on the background."
    )
    alternative = "Sampling points on a small, a large and a rotated object and on the background"
    return Figure("poses", canvas.png(figure), caption, alternative)


def special_cases(results: Results) -> Figure:
    """Draw regular, scaled, stretched, sheared and rotated grids over a test image."""
    canvas_ = _drawn(SHOWN[1], {"scale": 1.5})
    figure = canvas.sheet(8.6, 6.2)
    image = canvas_[0, 0].numpy()
    *cells, key = figure.subplots(2, 3).flat
    for axes, (name, case) in zip(cells, grids.SPECIAL_CASES.items(), strict=True):
        offsets = grids.affine_offsets(3, **case) if case else None
        grids.draw(axes, image, (31.5, 31.5), offsets, pixel=9.0, title=name)
    grids.legend(key)
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.95, 0.03, 0.12)
    caption = (
        "Scaling, stretching, shearing and rotating the sampling grid are special cases of offsets: rings are the "
        "regular 3×3 taps, dots where the offsets move them."
    )
    alternative = "Regular, scaled, stretched, sheared and rotated sampling grids over an image"
    return Figure("grids", canvas.png(figure), caption, alternative)


def inhibition(results: Results) -> Figure:
    """Draw the responses of the first layer before and after local response normalization."""
    net, name = _net(results, lambda c: CONTESTANTS[c].lrn, "a network with local response normalization")
    x = _drawn(SHOWN[1], {"scale": 1.5})
    image = x[0, 0].numpy()
    norm = None
    with torch.no_grad():
        for layer in net.features:
            if isinstance(layer, LocalResponseNorm):
                norm = layer
                break
            x = layer(x)
    if norm is None:
        raise LookupError(f"{name} holds no local response normalization, so its responses are not drawn.")
    found = lrn.inhibition(x, norm.size, norm.alpha, norm.beta, norm.k)
    figure = canvas.sheet(8.6, 6.2)
    figure.set_layout_engine("constrained", wspace=0.06)
    lrn.draw(figure, found, image)
    caption = (
        f"Lateral inhibition in the first layer of {name}, size {norm.size}, α = {norm.alpha:g}, β = {norm.beta:g}, "
        f"k = {norm.k:g}: responses where they are strongest (ring), before and after; the share of its response that "
        "each channel loses to its neighbours, over the whole map; and how much of it each neighbour takes."
    )
    alternative = "Responses before and after local response normalization, and what channels lose to neighbours"
    return Figure("lrn", canvas.png(figure), caption, alternative)


def _net(results: Results, wanted: Callable[[str], bool], what: str) -> tuple[Any, str]:
    """Return the first loadable network of the wanted kind, the last contestants and augmentation first, and its name.

    Raises:
        LookupError: the folder holds none.
    """

    def load(task: Task) -> tuple[Any, str]:
        net = build(task.contestant)
        net.load_state_dict(_files.load(weights(results.folder, task)))
        seed = f", seed {task.seed}" if len(results.seeds) > 1 else ""
        return net.eval(), f"“{results.label(task.contestant)}” ({task.training} training{seed})"

    there = [c for c in reversed(results.contestants) if c in CONTESTANTS and wanted(c)]
    tasks = [Task(c, t, seed) for c in there for t in reversed(TRAININGS) for seed in results.seeds]
    return first(((weights(results.folder, task), functools.partial(load, task)) for task in tasks), what)


def _chain(net: Any) -> list[nn.Module]:
    """Return the layers up to the last convolution."""
    layers = list(net.features)
    while not isinstance(layers[-1], DeformConv2d | nn.Conv2d):
        layers.pop()
    return layers


def _without_offsets(layer: nn.Module) -> nn.Module:
    """Return a regular convolution in place of a deformable one; a trace uses its grid and not its weights."""
    if not isinstance(layer, DeformConv2d):
        return layer
    geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return nn.Conv2d(layer.in_channels, layer.out_channels, *geometry)


def _drawn(label: int, pose: dict[str, Any]) -> Tensor:
    """Return the first test image of a class on the canvas (1, 1, 64, 64), in an exact pose."""
    from pliant.data import FashionMNIST, Ranges, draw, render

    data = FashionMNIST.load().test
    first = int((data.labels == label).nonzero()[0])
    exact: dict[str, Any] = {kind: (value, value) for kind, value in pose.items()}
    ranges = Ranges(**exact)
    return render(data.pictures[first : first + 1], draw(ranges, 1, torch.Generator().manual_seed(1)))


def _posed(
    label: int, pose: dict[str, float], chain: list[nn.Module]
) -> tuple[Tensor, tuple[int, int], tuple[int, int]]:
    """Return a drawn object, the output position nearest to its centre, and one far from it."""
    image = _drawn(label, pose)
    with torch.no_grad():
        x = image
        for layer in chain:
            x = layer(x)
    Ho, Wo = x.shape[-2:]
    ink = torch.nn.functional.adaptive_avg_pool2d(image, (Ho, Wo))[0, 0]
    y, x_ = torch.meshgrid(torch.arange(Ho), torch.arange(Wo), indexing="ij")
    middle = (ink * y).sum() / ink.sum(), (ink * x_).sum() / ink.sum()
    distance = (y - middle[0]) ** 2 + (x_ - middle[1]) ** 2
    on = int(torch.where(ink > 0.2, distance, float("inf")).argmin())
    # At least two pixels from the border, so that the grid of one layer fits on the map.
    inner = (y >= 2) & (y < Ho - 2) & (x_ >= 2) & (x_ < Wo - 2)
    off = int(torch.where(inner, distance - 1e4 * ink, -float("inf")).argmax())
    return image, divmod(on, Wo), divmod(off, Wo)
