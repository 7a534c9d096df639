"""All figures of a model and an image: this module chooses what is drawn and lays it out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pliant.models.detector import Detector
from pliant.models.two_stage import TwoStage
from pliant.nn import LocalResponseNorm
from pliant.show import attention, bins, canvas, fields, history, lrn, places, sampling
from pliant.show.boxes import colour, frame, frames
from pliant.show.canvas import CENTRE, INK, REGULAR, TAPS, VERMILION, YELLOW
from pliant.show.influence import At, Node, OfBox, locations, receptive_field, saliency_region
from pliant.show.layout import coloured, enlarged, grey, height, look_at, row, widened, window
from pliant.show.recording import record
from pliant.show.view import View

DEFORMABLE = 4  # deepest deformable layers whose taps are drawn over the image
LAYERS = 3  # topmost layers whose offset fields, masks and dilations are drawn
STRONGEST = 400  # effective sampling locations that are drawn
DETECTIONS = 8  # most detections that are drawn
SURE = 0.3  # minimum score of a detection that is drawn, unless all are lower
ERROR = 0.1  # bound of the saliency region


@dataclass(frozen=True)
class Figure:
    """A PNG, the name of its file without the extension, its heading, and its caption."""

    name: str
    data: bytes
    title: str
    caption: str


def figures(
    view: View, *, error: float = ERROR, evaluations: int = 60, tell: Callable[[str], None] | None = None
) -> tuple[list[Figure], list[str]]:
    """Draw every figure that applies to a view; return them, and a sentence for each one that does not apply.

    Args:
        view: from :func:`pliant.show.view.view`.
        error: bound of the saliency region.
        evaluations: maximum number of forwards in each search for a saliency region.
        tell: called with the name of each figure when it is finished.
    """
    makers: list[Callable[[View], Figure | Iterator[Figure]]] = [
        _overview,
        _taps,
        _sampling,
        functools.partial(_position, error=error, evaluations=evaluations),
        functools.partial(_box, error=error, evaluations=evaluations),
        _bins,
        _offsets,
        _masks,
        _dilation,
        _sizes,
        _inhibition,
        _attention,
    ]
    found: list[Figure] = []
    notes: list[str] = []
    for maker in makers:
        try:
            made = maker(view)
            for one in [made] if isinstance(made, Figure) else made:
                found.append(one)
                if tell is not None:
                    tell(one.name)
        except LookupError as reason:
            if str(reason.args[0]) not in notes:
                notes.append(str(reason.args[0]))
    if view.stopped:
        notes.append(f"The model's output is not traced: {view.stopped}. {view.layer or 'The output'} is explained.")
    return found, notes


def training(records: Iterable[dict[str, Any]]) -> Figure:
    """Draw how the offsets grew while the network was trained.

    Args:
        records: of the training run; see :func:`pliant.show.history.by_layer`.

    Raises:
        LookupError: the records hold no histogram.
    """
    records = list(records)
    layers = history.by_layer(records)
    if not layers:
        raise LookupError(
            "There are no histograms of a training run beside the weights: offsets over training are not drawn."
        )
    columns = min(len(layers), history.COLUMNS)
    figure = canvas.sheet(2.7 * columns + 0.9, 2.2 * -(-len(layers) // columns) + 0.3)
    figure.set_layout_engine("constrained")
    history.draw(figure, records, step="step")
    count = len(next(iter(layers.values())))
    said = f"the {count} evaluations" if count > 1 else "the evaluation"
    caption = (
        f"Lengths of the offsets of every deformable layer at {said} of the run: darker colours mean "
        "more offsets, the line is their mean. Offsets longer than the axis are counted in its last bin."
    )
    return Figure("history", canvas.png(figure), "Offsets over training", caption)


def _overview(view: View) -> Figure:
    """Draw the image, the position that is explained, and the detections of a detector."""
    H, W = view.size
    width = min(max(5.2 * W / H, 2.2), 7.0)
    figure = canvas.sheet(width, height(width, H / W))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    canvas.show_picture(axes, view.ground, size=view.size)
    drawn = 0
    if view.detections:
        scores = view.detections["scores"]
        drawn = min(DETECTIONS, max(int((scores >= SURE).sum()), min(1, len(scores))))
        labels = view.detections["labels"][:drawn].tolist()
        known = [view.classes[label] if label < len(view.classes) else str(label) for label in labels]
        names = [f"{name} {score:.2f}" for name, score in zip(known, scores.tolist(), strict=False)]
        frames(axes, view.detections["boxes"][:drawn].tolist(), names, [colour(label) for label in labels])
    if view.box is not None:
        frame(axes, view.box, YELLOW)
    canvas.scatter(axes, row(view.centre), CENTRE, size=150, marker="P", layer=6)
    canvas.scatter(axes, row(view.centre), "white", size=14, outlined=False, layer=7)
    y, x = view.centre
    name = view.layer or "the model's output"
    caption = (
        f"The image as the network reads it, {W} × {H} pixels. The cross marks position {view.position} (row, column) "
        f"of the map of {name}; its centre lies at x = {x:g}, y = {y:g}."
    )
    if view.detections:
        caption += f" {drawn} detections" + (f" (score at least {SURE})" if drawn > 1 else ", the best one")
        caption += ", in the colours of their classes."
    if view.box is not None:
        caption += " Yellow: the box that is explained."
    return Figure("picture", canvas.png(figure), "The image", caption)


def _taps(view: View) -> Figure:
    """Draw the taps of the deformable layers, the deepest first, where they move most, over the whole image."""
    known = view.recording.layers()
    names = [name for name in reversed(view.recording.deformable()) if name in known][:DEFORMABLE]
    if not names:
        _chosen(view)
        raise LookupError(f"No deformable layer can be traced to the image: {view.recording.stop()}.")
    H, W = view.image.shape[:2]
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    wide = 7.0 if columns == 1 else 5.4
    tall = height(wide, H / W)
    figure = canvas.sheet(wide * columns, rows * (tall + 1.6))
    figure.set_layout_engine("constrained")
    cells = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[tall, 1.0] * rows)
    for axes in cells.flat:
        axes.set_axis_off()
    for i, name in enumerate(names):
        over, under = cells[2 * (i // columns), i % columns], cells[2 * (i // columns) + 1, i % columns]
        under.set_axis_on()
        places.draw(over, view.paper, view.recording, name, name or "the model")
        places.histogram(under, view.recording.deformable()[name], "lengths of all offsets")
    caption = (
        "The deformable layers of the network from the deepest: rings are the taps of the regular grid, dots are where "
        f"the predicted offsets move them, at {places.PLACES} places (crosses) where a layer's offsets are longest. "
        "Below each picture the lengths of all offsets of the layer on this image."
    )
    return Figure("taps", canvas.png(figure), "Where the taps go", caption)


def _sampling(view: View) -> Figure:
    """Draw sampling points through one, two and three layers, without and with the offsets."""
    import numpy as np

    steps = [step for _, step in view.recording.steps(view.layer) if step.taps > 1]
    most, paths = 0, 1
    for step in reversed(steps[-3:]):
        paths *= step.taps
        most += paths <= 20_000
    if not most:
        raise LookupError(
            f"Below {view.layer or 'the output'} there is no convolution with few taps: no sampling points."
        )
    deformable = any(step.offset is not None for step in steps[-most:])
    found = {
        (regular, depth): view.recording.trace(view.position, view.layer, depth, regular=regular)
        for regular in ((True, False) if deformable else (True,))
        for depth in range(1, most + 1)
    }
    part = window(view.image, np.concatenate([trace.points[trace.inside] for trace in found.values()]))
    part = widened(part, np.concatenate([trace.points for (_, depth), trace in found.items() if depth < 3]))
    rows = len(found) // most
    ratio = (part[1] - part[0]) / (part[3] - part[2])
    tall = height(3.7, ratio)
    figure = canvas.sheet(3.7 * most, rows * (tall + 0.3))
    cells = figure.subplots(rows, most, squeeze=False)
    for (regular, depth), trace in found.items():
        axes = cells[0 if regular else 1, depth - 1]
        kind = "regular grid" if regular else "with offsets"
        title = f"{kind}, {depth} layer{'s' * (depth > 1)}: {len(trace.points)} paths"
        sampling.draw(axes, view.paper, trace, title=title, color=REGULAR if regular else TAPS, size=view.size)
        look_at(axes, part)
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.3 / figure.get_figheight(), 0.02, 0.3 / tall)
    names = ", ".join(found[True, most].layers)
    caption = (
        f"Where the position at the cross samples through the last {most} convolutions of more than one tap (from the "
        f"top: {names}), without the predicted offsets and with them. Below these layers a point lies at the centre of "
        "what its position of the map samples. On a regular grid several paths end at the same point. Fainter points "
        "have less weight; grey rings are out of bounds. Points far outside are cut off."
    )
    if not deformable:
        caption = caption.replace(", without the predicted offsets and with them", ", which are not deformable")
    return Figure("sampling", canvas.png(figure), "Sampling points", caption)


def _position(view: View, error: float, evaluations: int) -> Figure:
    node = At(view.layer, view.position, run=view.call, map=view.recording.node(view.layer))
    return _support(
        view, node, "support", "Spatial support of the position", "the features at the cross", error, evaluations
    )


def _box(view: View, error: float, evaluations: int) -> Figure:
    if not isinstance(view.model, Detector):
        raise LookupError("The model is not a detector of pliant.models: no box is explained.")
    if not isinstance(view.model, TwoStage):
        raise LookupError("The detector pools no boxes: none is explained.")
    if view.box is None:
        raise LookupError("Nothing is detected and no box is given: no box is explained.")
    title = "Spatial support of the box"
    return _support(view, OfBox(view.box), "support-box", title, "the features of the box", error, evaluations)


def _support(view: View, node: Node, name: str, title: str, what: str, error: float, evaluations: int) -> Figure:
    """Draw the three analyses of DCNv2: receptive field, sampling and bin locations, saliency region."""
    import numpy as np

    try:
        field_ = receptive_field(view.model, view.picture, node)
        cell = max(2, max(field_.shape) // 32)
        ground = 0.0 if view.image.ndim == 2 else None  # a grey image is painted over with white
        region = saliency_region(
            view.model, view.picture, node, error=error, cell=cell, fill=ground, evaluations=evaluations
        )
    except ValueError as reason:
        raise LookupError(f"No spatial support of {what}: {reason}.") from reason
    strength = locations(view.model, view.picture, node)
    points, weights = [], []
    for layer, found in strength.items():
        if found.strength.ndim == 3 and layer in view.recording.deformable() and found.strength.any():
            points.append(view.recording.samples(layer).reshape(-1, 2))
            weights.append(found.strength.ravel() / found.strength.max())
    pooled = None
    # In a position-sensitive layer the bins of each class move independently: too many for one panel.
    alike = [name for name, layer in bins.layers(view.model).items() if layer.classes is None]
    if isinstance(node, OfBox) and alike:
        pooled = bins.bins(view.model, view.picture, torch.tensor([node.box]), alike[0])
    H, W = field_.shape
    count = 2 + bool(points) + bool(pooled)
    rows = 2 if count == 4 else 1  # four in a row would be too small to see the points
    columns, side = count // rows, 3.7
    figure = canvas.sheet(side * columns, rows * (height(side, H / W) + 0.3))
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    # Square roots: gradients fall off so fast that only their peak would be visible.
    shown = np.sqrt(field_ / max(field_.max(), 1e-300))
    fields.draw_map(panels[0], grey(view.ground), shown, cmap="inferno", alpha=0.8, bar=False, size=view.size)
    panels[0].set_title("effective receptive field (root)", fontsize=11, color=INK, pad=5)
    if points:
        at, weight = np.concatenate(points), np.concatenate(weights)
        best = np.argsort(weight)[-STRONGEST:]
        canvas.show_picture(panels[1], view.paper, "effective sampling locations", size=view.size)
        alpha = 0.15 + 0.85 * weight[best]
        canvas.scatter(panels[1], at[best], TAPS, size=13, alpha=alpha, outlined=False)
    if pooled is not None:
        canvas.show_picture(panels[-2], view.paper, "effective bin locations", size=view.size)
        force = strength[pooled.layer].strength[0].ravel()
        alpha = 0.15 + 0.85 * force / max(force.max(), 1e-300)
        canvas.scatter(panels[-2], pooled.moved[0].reshape(-1, 2), TAPS, size=15, alpha=alpha)
    hidden = np.where(enlarged(region.mask, view.ground.shape[:2])[..., None], coloured(view.ground), 1.0)
    # The outline separates white parts of the image from what is painted over.
    canvas.show_picture(panels[-1], hidden, f"saliency region: {region.share:.0%} of the image", size=view.size)
    if region.mask.any() and not region.mask.all():
        panels[-1].contour(region.mask, levels=[0.5], colors=[VERMILION], linewidths=1.2)
    for axes in panels:
        if view.box is not None:
            frame(axes, view.box, YELLOW)
        if isinstance(node, At):
            canvas.scatter(axes, row(view.centre), CENTRE, size=70, marker="P", layer=6)
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.3 / figure.get_figheight(), 0.02, 0.3 / height(side, H / W))
    caption = (
        f"What {what} depend on. First: how strongly their norm changes with each pixel, square root. "
        + (f"Next: the {len(best)} samples of deformable layers whose movement changes them most. " if points else "")
        + ("Next: the bins, fainter if their movement changes them less. " if pooled is not None else "")
        + f"Last: a small part of the image for which they are the same up to {region.error:.1%} "
        f"(bound {error:.0%}, cells of {cell} pixels, {region.evaluations} evaluations); the rest is painted "
        + ("white." if view.image.ndim == 2 else "in the mean colour.")
    )
    return Figure(name, canvas.png(figure), title, caption)


def _bins(view: View) -> Figure:
    if not bins.layers(view.model) or not isinstance(view.model, TwoStage):
        raise LookupError("The model has no deformable RoI pooling: no bins are drawn.")
    boxes = view.detections["boxes"][:3].tolist()
    if view.box is not None:
        boxes = [list(view.box), *(b for b in boxes if max(abs(p - q) for p, q in zip(b, view.box, strict=True)) > 0.5)]
    if not boxes:
        raise LookupError("Nothing is detected and no box is given: no bins are drawn.")
    found = bins.bins(view.model, view.picture, torch.tensor(boxes[:3]))
    count, side = len(found.boxes), max(map(bins.window, found.boxes))
    figure = canvas.sheet(3.7 * count + 0.3, 7.5)
    for offsets, cells in zip((False, True), figure.subplots(2, count, squeeze=False), strict=True):
        for i, axes in enumerate(cells):
            bins.draw(axes, view.paper, found, i, offsets=offsets, side=side, size=view.size)
        cells[0].set_ylabel("moved bins" if offsets else "regular bins", fontsize=13, color=INK)
    figure.subplots_adjust(0.3 / figure.get_figwidth(), 0.005, 0.997, 0.997, 0.03, 0.02)
    Ph, Pw = found.regular.shape[1:3]
    caption = (
        f"Centres of the {Ph} × {Pw} bins that {found.layer} pools from boxes (yellow), all at one zoom: above on the "
        "regular grid, below where the offsets move them (dots, from the rings)."
    )
    if found.mask is not None:
        caption += " Fainter dots have less weight, relative to the strongest bin of their box."
    return Figure("bins", canvas.png(figure), "Moved bins", caption)


def _offsets(view: View) -> Iterator[Figure]:
    for i, (name, step) in enumerate(_chosen(view)):
        Ho, Wo = step.above
        Kh, Kw = step.kernel
        figure = canvas.sheet(1.5 * (Kw + 0.6) + 0.4, Kh * (height(1.5, Ho / Wo) + 0.25) + 0.1)
        figure.set_layout_engine("constrained")
        fields.draw_offsets(figure, step)
        groups = f", first of {step.groups} offset groups" if step.groups > 1 else ""
        caption = (
            f"Offsets of {name or 'the model'}{groups}, one panel per tap, laid out as the kernel: the colour is the "
            "direction, paler colours are shorter offsets, white is zero."
        )
        yield Figure(f"offsets-{i + 1}", canvas.png(figure), f"Offset fields of {name or 'the model'}", caption)


def _masks(view: View) -> Iterator[Figure]:
    modulated = [(name, step) for name, step in _chosen(view) if step.mask is not None]
    if not modulated:
        raise LookupError("No deformable convolution of the model is modulated: no masks are drawn.")
    for i, (name, step) in enumerate(modulated):
        Ho, Wo = step.above
        figure = canvas.sheet(1.5 * step.kernel[1] + 0.7, step.kernel[0] * (height(1.5, Ho / Wo) + 0.25))
        figure.set_layout_engine("constrained")
        fields.draw_masks(figure, step)
        caption = f"Mask of each tap of {name or 'the model'}, laid out as the kernel."
        yield Figure(f"masks-{i + 1}", canvas.png(figure), f"Modulation of {name or 'the model'}", caption)


def _dilation(view: View) -> Figure:
    chosen = [(name, step) for name, step in _chosen(view) if step.kernel != (1, 1)]
    H, W = view.size
    figure = canvas.sheet(3.3 * len(chosen), height(2.8, H / W) + 0.3)
    figure.set_layout_engine("constrained")
    for axes, (name, step) in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        values, centres = fields.effective_dilation(step), view.recording.centres(name)
        fields.draw_map(
            axes, grey(view.ground), values, centres, title=name or "the model", size=view.size,
            unit="mean distance of taps, map pixels",
        )  # fmt: skip
    caption = (
        "Effective dilation: the mean distance of adjacent taps, in pixels of the map that the layer samples. Without "
        "offsets it is everywhere the dilation of the layer."
    )
    return Figure("dilation", canvas.png(figure), "Effective dilation", caption)


def _sizes(view: View) -> Figure:
    _chosen(view)
    if not view.detections:
        raise LookupError("There are no detections: effective dilation is not drawn against the size of objects.")
    kept = view.detections["boxes"][view.detections["scores"] >= SURE].tolist()
    boxes = kept + ([list(view.box)] if view.box is not None else [])
    rows = fields.dilation_in_boxes(view.recording, [tuple(box) for box in boxes])
    if len({row.size for row in rows}) < 3:
        raise LookupError("There are fewer than three objects: effective dilation is not drawn against their size.")
    figure = canvas.sheet(7.6, 3.4)
    figure.set_layout_engine("constrained")
    fields.draw_dilation(figure.subplots(), rows)
    caption = "Mean effective dilation inside each detected object and the given box, against its size."
    return Figure("dilation-size", canvas.png(figure), "Effective dilation and size of object", caption)


def _inhibition(view: View) -> Figure:
    norms = [(name, m) for name, m in view.model.named_modules() if isinstance(m, LocalResponseNorm)]
    norms = [(name, m) for name, m in norms if m.region == "channel"]
    if not norms:
        raise LookupError("The model has no local response normalization over channels.")
    name, norm = norms[0]
    seen: list[Tensor] = []
    handle = norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    try:
        record(view.model, view.picture, view.call)
    finally:
        handle.remove()
    found = lrn.inhibition(seen[0][:1], norm.size, norm.alpha, norm.beta, norm.k, even=norm.even)
    figure = canvas.sheet(8.6, 6.2)
    figure.set_layout_engine("constrained", wspace=0.06)
    lrn.draw(figure, found, view.image)
    caption = (
        f"Lateral inhibition in {name or 'the model'} (size {norm.size}, α = {norm.alpha:g}, β = {norm.beta:g}, "
        f"k = {norm.k:g}): responses at the position where they are strongest (ring), before and after; the share of "
        "its response that each channel loses to its neighbours, over the whole map; and how much it loses to which."
    )
    return Figure("lrn", canvas.png(figure), "Lateral inhibition", caption)


def _attention(view: View) -> Iterator[Figure]:
    found = list(attention.attention(view.model, view.picture, view.call).items())[-LAYERS:]
    if not found:
        raise LookupError("The model has no multi-scale deformable attention: where queries look is not drawn.")
    (H, W), (y, x) = view.size, view.centre
    for i, (name, one) in enumerate(reversed(found)):
        query = one.nearest(((x + 0.5) / W, (y + 0.5) / H))
        columns = min(len(one.levels), 4)
        figure = canvas.sheet(2.7 * columns, -(-len(one.levels) // columns) * (height(2.7, H / W) + 0.3))
        figure.set_layout_engine("constrained")
        attention.draw(figure, one, query, view.ground, size=view.size)
        if view.box is not None:
            for panel in figure.axes[: len(one.levels)]:
                frame(panel, view.box, YELLOW)
        caption = (
            f"Samples of query {query} of {name or 'the model'}, whose samples lie nearest to the position: a panel "
            "for each level, a colour for each head, the weight as the area. Crosses are pixels of the level."
            + (" Yellow: the box that is explained." if view.box is not None else "")
        )
        yield Figure(f"attention-{i + 1}", canvas.png(figure), f"Where a query of {name or 'the model'} looks", caption)


def _chosen(view: View) -> list[tuple[str, Any]]:
    """Return the topmost deformable convolutions, the last one first."""
    found = list(view.recording.deformable().items())[::-1][:LAYERS]
    if not found:
        raise LookupError("The model has no deformable convolution: offsets, masks and dilation are not drawn.")
    return found
