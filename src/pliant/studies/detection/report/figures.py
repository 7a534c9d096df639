"""The report's figures, drawn from the weights and the test images of the study."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pliant import _files
from pliant.models import boxes
from pliant.nn import deformable_layers
from pliant.show import canvas, sampling
from pliant.show.bins import window
from pliant.show.boxes import frame, frames
from pliant.show.layout import look_at
from pliant.studies.detection import measures, single
from pliant.studies.detection.contestants import CONTESTANTS, find
from pliant.studies.detection.hog import HogMachine
from pliant.studies.detection.protocol import Kept, Protocol, Task, shown, size_of
from pliant.studies.detection.report import support
from pliant.studies.detection.report.results import Results
from pliant.studies.report.figures import Figure, drawn, first, unreadable
from pliant.studies.store import weights

# Shown beside the truth in the figure of detections, where the folder has their weights.
SHOWN = ("hog", "regular", "dconv-c3-c5", "mdconv-c3-c5-mdpool", "full-mimic-fg")
SCENES = 4
HIT = 0.5  # least overlap with an object of its class for a detection that is drawn as correct
RIGHT, WRONG, TRUE = canvas.GREEN, canvas.VERMILION, canvas.SKY
SMALL = 6.5  # points, of names on small images


def all_figures(results: Results) -> list[Figure]:
    """Draw every figure that the folder has weights for; add a note for each one left out."""
    makers: list[Callable[[Results], Figure]] = [
        functools.partial(detections, data=data) for data in results.conditions
    ]
    return drawn(results, [*makers, moved, sampled, support.outside, supported], results.notes)


def detections(results: Results, data: str) -> Figure:
    """Draw what several contestants find in the same test images, as many as there are objects."""
    finders = [(name, find_) for name in SHOWN if (find_ := _finder(results, name, data)) is not None]
    if not finders:
        raise LookupError(f"The folder holds no weights for {data}, so no detections are drawn.")
    test = _test(results, data)
    chosen = [i for i in range(len(test)) if int((~test[i][1]["ignore"]).sum()) >= 3][:SCENES]
    figure = canvas.sheet(2.35 * (len(finders) + 1), 2.55 * len(chosen) + 0.1)
    rows = figure.subplots(len(chosen), len(finders) + 1, squeeze=False)
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.3 / figure.get_figheight(), 0.03, 0.03)
    for cells, index in zip(rows, chosen, strict=True):
        image, target = test[index]
        counted = ~target["ignore"]
        truth, labels = target["boxes"][counted], target["labels"][counted]
        pixels = image.permute(1, 2, 0).numpy() / 255
        title = "truth" if index == chosen[0] else ""
        canvas.show_picture(cells[0], pixels, title)
        frames(cells[0], truth.tolist(), [test.classes[i] for i in labels.tolist()], [TRUE] * len(truth), SMALL)
        for cell, (name, find_) in zip(cells[1:], finders, strict=True):
            canvas.show_picture(cell, pixels, results.label(name) if index == chosen[0] else "")
            found = find_(image)
            best, named = found["boxes"][: len(truth)], found["labels"][: len(truth)]
            overlap = (boxes.iou(best, truth) * (labels == named[:, None])).amax(1)
            colours = [RIGHT if hit else WRONG for hit in (overlap >= HIT).tolist()]
            frames(cell, best.tolist(), [test.classes[i] for i in named.tolist()], colours, SMALL)
    seed = f", seed {results.seeds[0]}" if len(results.seeds) > 1 else ""
    caption = (
        f"Test images ({data}){seed}. Each shows as many detections as it has objects, those of the "
        f"highest score: green where an object of that class overlaps by {HIT} or more, else orange."
    )
    alternative = "True boxes and the detections of several contestants, side by side"
    return Figure(f"detections-{data}", canvas.png(figure), caption, alternative)


def moved(results: Results) -> Figure:
    """Draw the bins of RoI pooling on a small, a medium and a large object, before and after their offsets."""
    model, name, data = _model(results, lambda c: c.roi_pool != "align", "a network with deformable RoI pooling")
    return bins_by_size(model, name, _test(results, data))


def bins_by_size(model: Any, name: str, test: Kept) -> Figure:
    """Draw the bins that a network pools from a small, a medium and a large object, all at one zoom."""
    examples = _by_size(test)
    # As wide as the part of the image that each shows.
    wide = [_around(image, box)[0].shape[1] for image, box in examples.values()]
    unit = 9.3 / sum(wide)
    figure = canvas.sheet(9.6, 2 * (max(wide) * unit + 0.3))
    above, below = figure.subplots(2, len(examples), squeeze=False, gridspec_kw={"width_ratios": wide})
    for before, after, (size, (image, box)) in zip(above, below, examples.items(), strict=True):
        with torch.no_grad():
            shifts, masks = measures.bin_shifts(model, image, box[None])
        P = shifts.shape[-1]
        image, corner = _around(image, box)
        box, sides = box - corner.repeat(2), box[2:] - box[:2]
        middle = (torch.arange(P) + 0.5) / P
        y, x = torch.meshgrid(middle, middle, indexing="ij")
        regular = torch.stack((y, x), -1)
        there = regular + shifts[0].flip(0).permute(1, 2, 0)  # x comes first there, y first here
        weight = masks[0, 0] / masks[0, 0].max() if masks is not None else torch.ones(P, P)
        for axes, at, color, alpha, title in (
            (before, regular, canvas.REGULAR, torch.ones(P, P), f"{size} object"),
            (after, there, canvas.TAPS, 0.15 + 0.85 * weight, ""),
        ):
            canvas.show_picture(axes, image.permute(1, 2, 0).numpy() / 255, title)
            frame(axes, box.tolist(), canvas.YELLOW)
            points = (at * sides.flip(0) + box[:2].flip(0) - 0.5).reshape(-1, 2)
            canvas.scatter(axes, points.numpy(), color, size=20, alpha=alpha.flatten().numpy())
            H, W = image.shape[1:]
            look_at(axes, (-0.5, H - 0.5, -0.5, W - 0.5))
    for cells, text in ((above, "regular bins"), (below, "moved bins")):
        cells[0].set_ylabel(text, fontsize=11, color=canvas.INK)
    figure.subplots_adjust(0.03, 0.005, 0.997, 1 - 0.3 / figure.get_figheight(), 0.02, 0.02)
    caption = (
        f"Centres of the {P} × {P} bins that {name} pools from a true box (yellow), all at one zoom: above without "
        "offsets, below with them. With modulation, fainter bins have smaller weights relative to the largest of the "
        "box."
    )
    alternative = "Bins of RoI pooling on objects of three sizes, regular above, moved below"
    return Figure("bins", canvas.png(figure), caption, alternative)


def sampled(results: Results) -> Figure:
    """Draw the 729 points of three convolutions on a small and a large object and on the background."""
    wanted: tuple[tuple[Callable[[Any], bool], str], ...] = (
        (lambda c: c.name == "regular", "the regular network"),
        (lambda c: any(c.deform) and c.roi_pool == "align", "a network with deformable convolutions"),
        (lambda c: any(c.deform) and c.roi_pool != "align", "a network with both"),
    )
    models = []
    for which, what in wanted:
        try:
            models.append(_model(results, which, what))
        except LookupError:
            continue
    if not any(name for _, name, _ in models if "regular" not in name):
        raise LookupError("The folder holds no weights of a deformable network, so sampling points are not drawn.")
    test = _test(results, models[0][2])
    examples = {size: found for size, found in _by_size(test).items() if size != "medium"}
    figure = canvas.sheet(3.3 * (len(examples) + 1), 3.45 * len(models))
    rows = figure.subplots(len(models), len(examples) + 1, squeeze=False)
    for cells, (model, name, _) in zip(rows, models, strict=True):
        places = [(f"{size} object", image, measures.cell_of(model, box)) for size, (image, box) in examples.items()]
        last = list(examples.values())[-1][0]
        places.append(("background", last, _background(model, test, last)))
        for cell, (title, image, place) in zip(cells, places, strict=True):
            found = sampling.trace(_chain(model), model.batch([shown(image)])[0], place, 3)
            text = f"{title}\n{name if cell is cells[0] else ' '}"  # two lines everywhere, so that the images align
            color = canvas.TAPS if list(deformable_layers(model.backbone)) else canvas.REGULAR
            pale = 0.45 + 0.55 * image.permute(1, 2, 0).numpy() / 255  # enough for points on top of it
            sampling.draw(cell, pale, found, title=text, margin=6, color=color)
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.45 / figure.get_figheight(), 0.02, 0.16)
    caption = (
        "What one output of the last convolution of c5 (green cross) samples through the last three 3×3 convolutions: "
        "729 paths, many of which coincide where grids are regular. Paths follow the convolutions of residual blocks, "
        "not their shortcuts; below these layers, a point is the centre of the receptive field of a map pixel. Grey "
        "rings are out of bounds."
    )
    alternative = "Sampling points of three layers on a small and a large object and on the background"
    return Figure("sampling", canvas.png(figure), caption, alternative)


def supported(results: Results) -> Figure:
    """Draw what the box of a large object depends on, in the networks of the first seed."""
    if support.read(results) is None:
        raise LookupError(support.MISSING)
    data = results.conditions[0]
    tasks = {name: Task(name, data, results.seeds[0]) for name in support.DRAWN}
    models = {name: _load(results, task) for name, task in tasks.items() if weights(results.folder, task).is_file()}
    if not models:
        raise LookupError(f"The folder holds no weights for {data}, so no spatial support is drawn.")
    image, box = list(_by_size(_test(results, data)).values())[-1]
    return support.example(results, models, image, box)


def _test(results: Results, data: str) -> Kept:
    return Protocol.of(results.profile).images(data, "test", 0)


def _finder(results: Results, contestant: str, data: str) -> Callable[[Tensor], dict[str, Tensor]] | None:
    """Return the detector of a contestant and the first seed; None without its weights."""
    task = Task(contestant, data, results.seeds[0])
    path = weights(results.folder, task)
    if contestant not in CONTESTANTS or not path.is_file():
        return None
    try:
        if not find(contestant).learned:
            return HogMachine.load(_files.load(path)).detect
        model = _load(results, task)
    except Exception as error:  # a damaged file raises whatever its missing part happens to raise
        results.notes.append(f"{unreadable(path, error)}.")
        return None

    @torch.no_grad()
    def detect(image: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = model([shown(image)])[0]
        return found

    return detect


def _load(results: Results, task: Task) -> Any:
    classes = len(_test(results, task.data).classes)
    return single.load(task, Protocol.of(results.profile), classes, weights(results.folder, task))


def _model(results: Results, wanted: Callable[[Any], bool], what: str) -> tuple[Any, str, str]:
    """Return the first loadable network of the wanted kind, the last contestants first, its name and its data.

    Raises:
        LookupError: the folder holds none.
    """

    def load(task: Task) -> tuple[Any, str, str]:
        return _load(results, task), f"“{results.label(task.contestant)}”", task.data

    there = [c for c in reversed(results.contestants) if c in CONTESTANTS and wanted(CONTESTANTS[c])]
    tasks = [Task(c, data, seed) for c in there for data in results.conditions for seed in results.seeds]
    return first(((weights(results.folder, task), functools.partial(load, task)) for task in tasks), what)


def _by_size(test: Kept) -> dict[str, tuple[Tensor, Tensor]]:
    """Return an image and a box for each size: the first object of that size that is well inside its image."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for image, target in test:
        H, W = image.shape[-2:]
        for box in target["boxes"][~target["ignore"]]:
            inside = bool((box[:2] >= 8).all()) and float(box[2]) <= W - 8 and float(box[3]) <= H - 8
            if inside:
                found.setdefault(size_of(box, test.area_ranges), (image, box))
        if len(found) == 3:
            break
    return {size: found[size] for size in measures.GROUPS[:3] if size in found}


def _chain(model: Any) -> list[nn.Module]:
    backbone = model.backbone
    return [backbone.conv1, backbone.bn1, nn.ReLU(), *backbone.stages()]


def _background(model: Any, test: Kept, image: Tensor) -> tuple[int, int]:
    """Return the inner position of the last map that is farthest from every box."""
    target = next(t for i, t in test if i is image)
    stride = model.backbone.strides[-1]
    H, W = (side // stride for side in image.shape[-2:])
    y, x = torch.meshgrid(torch.arange(1, H - 1), torch.arange(1, W - 1), indexing="ij")
    at = (torch.stack((x, y), -1).reshape(-1, 1, 2) + 0.5) * stride
    box = target["boxes"]
    away = torch.maximum(box[:, :2] - at, at - box[:, 2:]).clamp(min=0).norm(dim=2).amin(1)
    best = int(away.argmax())
    return int(y.flatten()[best]), int(x.flatten()[best])


def _around(image: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Return a square crop of the image, about twice as large as the box in it, and its corner (x, y)."""
    extent = torch.tensor(image.shape[:0:-1])
    side = min(int(window(box.tolist())), int(extent.min()))
    corner = ((box[:2] + box[2:] - side) / 2).long().clamp(min=0).minimum(extent - side)
    x, y = corner.tolist()
    return image[:, y : y + side, x : x + side], corner
