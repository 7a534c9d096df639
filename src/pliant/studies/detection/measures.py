"""What the deformable layers of a detector do on test images: effective dilation by size of object, shifts of bins."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pliant.nn import DeformConv2d
from pliant.show import bins
from pliant.studies.detection.protocol import Kept, shown, size_of
from pliant.studies.measures import OffsetSums, correlation, effective_dilation

NAMES = ("dilation", "spearman", "offsets", "bins")
GROUPS = ("small", "medium", "large", "background")
IMAGES = 120  # measured, at most


def layer_name(name: str) -> str:
    """Return the papers' name of a 3×3 convolution of a ResNet-18.

    >>> layer_name("layer4.1.conv2")
    'c5.4'
    """
    stage, block, conv = name.removeprefix("layer").split(".")
    return f"c{int(stage) + 1}.{2 * int(block) + int(conv.removeprefix('conv'))}"


def watch(model: Any, image: Tensor) -> Iterator[tuple[str, DeformConv2d, Tensor, Tensor]]:
    """Return (name in the backbone, layer, its input, its offsets) of every deformable convolution of it."""
    seen: list[tuple[str, DeformConv2d, Tensor]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs, name=name: seen.append((name, layer, inputs[0])))
        for name, layer in model.backbone.named_modules()
        if isinstance(layer, DeformConv2d)
    ]
    try:
        model.backbone(model.batch([shown(image)])[0])
    finally:
        for hook in hooks:
            hook.remove()
    for name, layer, map_ in seen:
        yield name, layer, map_, layer.predict(map_)[0]


@torch.no_grad()
def watched(model: nn.Module, test: Kept) -> dict[str, Any]:
    """Return what a detector's deformable layers do, on the CPU; None for layers that it lacks.

    ``dilation``: rows of layer, group, mean, sd, n. A position of a layer's map belongs to the objects in whose boxes
    its centre lies, by their size, or to the background. ``spearman``: per layer ρ of an object's √(w·h) and the mean
    effective dilation in its box, with a bootstrap interval over images. ``offsets``: per layer the mean |offset| and
    the share of samples that read nothing. ``bins``: see :func:`moved_bins`.

    Source: Dai et al., ICCV 2017, table 2.
    """
    model.eval()
    result: dict[str, Any] = dict.fromkeys(NAMES)
    if not any(isinstance(layer, DeformConv2d) for layer in model.modules()):
        return result | {"bins": moved_bins(model, test)}
    totals: dict[tuple[str, str], list[float]] = {}
    offsets = OffsetSums()
    objects: dict[str, list[list[tuple[float, float]]]] = {}
    for index in range(min(IMAGES, len(test))):
        image, target = test[index]
        boxes = target["boxes"][~target["ignore"]]
        for path, layer, map_, offset in watch(model, image):
            name = layer_name(path)
            distance = effective_dilation(layer, offset)[0]
            inside = _inside(boxes, distance.shape, image.shape[-2:])
            here = []
            for box, on in zip(boxes, inside, strict=True):
                _add(totals, (name, size_of(box, test.area_ranges)), distance[on])
                if on.any():
                    here.append((float((box[2:] - box[:2]).prod().sqrt()), float(distance[on].mean())))
            _add(totals, (name, "background"), distance[~inside.any(0)])
            objects.setdefault(name, []).append(here)
            offsets.add(name, layer, offset, *map_.shape[2:])
    return result | {
        "dilation": [
            {"layer": name, "group": group, "mean": s / n, "sd": math.sqrt(max(0.0, q / n - (s / n) ** 2)), "n": int(n)}
            for (name, group), (s, q, n) in totals.items()
            if n
        ],
        "spearman": {name: _correlation(images) for name, images in objects.items()},
        "offsets": offsets.means(),
        "bins": moved_bins(model, test),
    }


@torch.no_grad()
def moved_bins(model: Any, test: Kept) -> list[dict[str, Any]] | None:
    """Return how far deformable RoI pooling moves the bins of the true boxes; None where there is none.

    Rows of group (size of the object), n, and mean: the length of a bin's shift relative to the box's sides.
    """
    pool = model.pool.deform
    if pool is None:
        return None
    found: dict[str, list[float]] = {}
    for index in range(min(IMAGES, len(test))):
        image, target = test[index]
        boxes = target["boxes"][~target["ignore"]]
        if len(boxes):
            for box, shift in zip(boxes, bin_shifts(model, image, boxes)[0], strict=True):
                found.setdefault(size_of(box, test.area_ranges), []).append(float(shift.norm(dim=0).mean()))
    return [
        {"group": group, "mean": sum(found[group]) / len(found[group]), "n": len(found[group])}
        for group in GROUPS
        if group in found
    ]


def bin_shifts(model: Any, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return by how much deformable RoI pooling moves the bins of boxes, and their masks.

    Returns:
        shifts (n, 2, P, P), x first, relative to the box's sides; masks (n, 1, P, P) or None.
    """
    found = bins.bins(model, shown(image), boxes)
    sides = (found.boxes[:, 2:] - found.boxes[:, :2])[:, None, None]
    shifts = torch.from_numpy((found.moved - found.regular)[..., ::-1] / sides).float().permute(0, 3, 1, 2)
    return shifts, None if found.mask is None else torch.from_numpy(found.mask).float()[:, None]


def cell_of(model: Any, box: Tensor) -> tuple[int, int]:
    """Return the position (row, column) of the backbone's last map that holds the centre of a box."""
    x, y = ((box[:2] + box[2:]) / 2 / model.backbone.strides[-1]).long().tolist()
    return y, x


def _inside(boxes: Tensor, size: torch.Size, image: torch.Size) -> Tensor:
    """Return which positions of a map of `size` lie in which boxes: (n, Ho, Wo)."""
    (Ho, Wo), (H, W) = size, image
    y = (torch.arange(Ho) + 0.5) * (H / Ho)
    x = (torch.arange(Wo) + 0.5) * (W / Wo)
    left, top, right, bottom = boxes.T[..., None, None]
    inside: Tensor = (x >= left) & (x < right) & (y[:, None] >= top) & (y[:, None] < bottom)
    return inside


def _add(totals: dict[tuple[str, str], list[float]], key: tuple[str, str], values: Tensor) -> None:
    total = totals.setdefault(key, [0.0, 0.0, 0])
    values = values.double()
    total[0] += float(values.sum())
    total[1] += float(values.square().sum())
    total[2] += values.numel()


def _correlation(images: list[list[tuple[float, float]]]) -> dict[str, float]:
    """Return Spearman's ρ over objects, and its interval over images, whose objects are resampled together."""
    import numpy as np

    most = max(1, *(len(objects) for objects in images))
    values = np.full((2, most, len(images)), np.nan)
    for column, objects in enumerate(images):
        for row, pair in enumerate(objects):
            values[:, row, column] = pair
    return correlation(*values)
