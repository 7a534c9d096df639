"""The bins of RoI pooling, and where their offsets move them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pliant.models.two_stage import TwoStage
from pliant.nn.deformable import DeformablePool, rows_first
from pliant.nn.modes import evaluation
from pliant.show.boxes import frame
from pliant.show.canvas import BACKGROUND, REGULAR, TAPS, YELLOW, scatter, show_picture
from pliant.show.layout import look_at

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

Call = Callable[[nn.Module, Tensor, Tensor], Any]
AROUND = 0.35  # margin around a box, relative to its longer side: bins beyond it are cut off


@dataclass(frozen=True)
class Bins:
    """The bins of R boxes, in pixels of the image; the centre of a pixel has integer coordinates.

    Args:
        boxes: (R, 4), float64, x1, y1, x2, y2, as they are pooled: the position-sensitive operator rounds them.
        regular: (R, Ph, Pw, 2), float64, (y, x) of the centres of the bins without offsets.
        moved: (R, Ph, Pw, 2), with offsets.
        mask: (R, Ph, Pw), weight of each bin, or None.
        layer: name of the pooling layer.
    """

    boxes: np.ndarray
    regular: np.ndarray
    moved: np.ndarray
    mask: np.ndarray | None
    layer: str


def layers(model: nn.Module) -> dict[str, DeformablePool]:
    """Return the deformable RoI layers of a model by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, DeformablePool)}


def bins(
    model: nn.Module,
    picture: Tensor,
    boxes: Tensor,
    layer: str | None = None,
    *,
    label: int | None = None,
    call: Call | None = None,
) -> Bins:
    """Compute where deformable RoI pooling places the bins of some boxes.

    A bin of the box (x1, y1, x2, y2) has its centre at ``x1 + (j + ½)/Pw·w − ½`` and moves by ``gamma·offset·w``, and
    likewise in y. The position-sensitive operator pools from ``round(x1)`` to ``round(x2) + 1``, and the bins of each
    class move independently.

    Args:
        model: a detector of `pliant.models`, or any module with a deformable RoI layer.
        picture: the image, (C, H, W), as the model takes it.
        boxes: (R, 4), x1, y1, x2, y2 in pixels of the image.
        layer: name of the RoI layer; None: the first one that is called.
        label: class whose bins are returned, if a position-sensitive layer has classes; None: class 0.
        call: ``call(model, picture, boxes)`` runs the model so that the layer pools these boxes in this order.
            None, for detectors of `pliant.models`): the maps are computed once, then the head runs on each box.

    Returns:
        A :class:`Bins`.

    Raises:
        LookupError: the model has no deformable RoI layer or none of this name, or it was not called.
        ValueError: boxes of another shape, a label out of range, or another number of boxes was pooled.
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"bins: boxes must have shape (R, 4), got {tuple(boxes.shape)}")
    there = layers(model)
    if layer is not None and layer not in there:
        raise LookupError(
            f"bins: there is no deformable RoI layer {layer!r}; the model has {', '.join(there) or 'none'}"
        )
    if not there:
        raise LookupError("bins: the model has no deformable RoI layer, its bins do not move")
    seen: dict[str, list[tuple[Tensor, Tensor | None]]] = {}

    def look(name: str, pool: DeformablePool, inputs: tuple[Any, ...]) -> None:
        *_, x, rois = inputs  # of a position-sensitive layer the features stand between score maps and RoIs
        found = pool.predict(x, rois)
        seen.setdefault(name, []).append(found if isinstance(found, tuple) else (found, None))

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda pool, inputs, name=name: look(name, pool, inputs))
        for name in there
        if layer in (None, name)
    ]
    try:
        with torch.no_grad(), evaluation(model):
            (call or _one_by_one)(model, picture, boxes)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise LookupError(f"bins: {layer or 'a deformable RoI layer'} was never called")
    name, found = next(iter(seen.items()))
    return _placed(name, there[name], found, boxes, label)


def _one_by_one(model: nn.Module, picture: Tensor, boxes: Tensor) -> None:
    """Run the head of a detector on each box alone, since pyramids sort boxes by size."""
    if not isinstance(model, TwoStage):
        raise ValueError(f"bins: it is not known how {type(model).__name__} takes boxes; pass call=")
    _, maps = model.maps(model.batch([picture])[0])
    for box in boxes.to(maps[0].device, torch.float32):
        model.head(maps, torch.cat((box.new_zeros(1), box))[None])


def _placed(
    name: str, pool: DeformablePool, found: list[tuple[Tensor, Tensor | None]], boxes: Tensor, label: int | None
) -> Bins:
    """Turn offsets in extents of the boxes into positions in the image."""
    offset = torch.cat([one for one, _ in found]).double().cpu()
    if len(offset) != len(boxes):
        raise ValueError(f"bins: {name} pooled {len(offset)} boxes instead of {len(boxes)}")
    masks = [one for _, one in found if one is not None]
    mask = torch.cat(masks)[:, 0].double().cpu().numpy() if masks else None
    if pool.classes is None and label is not None:
        raise ValueError(f"bins: the bins of {name} are the same for all classes, but label is {label}")
    if pool.classes is not None and not 0 <= (label or 0) < pool.classes:
        raise ValueError(f"bins: {name} has classes 0 to {pool.classes - 1}, got label {label}")
    boxes, (Ph, Pw) = pool.boxes(boxes.detach().double().cpu()), pool.bins
    parts = (pool.offset_scale * pool.offsets(offset))[:, label or 0].squeeze(-2)
    # The part whose offset a bin takes.
    row, column = (torch.arange(n) * m // n for n, m in zip((Ph, Pw), parts.shape[1:3], strict=True))
    shift = rows_first(pool, parts[:, row][:, :, column])
    corner, size = boxes[:, :2].flip(1), (boxes[:, 2:] - boxes[:, :2]).flip(1)
    middle = torch.stack(
        torch.meshgrid((torch.arange(Ph) + 0.5) / Ph, (torch.arange(Pw) + 0.5) / Pw, indexing="ij"), -1
    ).double()
    corner, size = corner[:, None, None] - 0.5, size[:, None, None]
    regular = corner + middle * size
    moved = regular + shift * size
    return Bins(boxes.numpy(), regular.numpy(), moved.numpy(), mask, name)


def window(box: Sequence[float]) -> float:
    """Return the side of the part of an image that shows a box (x1, y1, x2, y2) and what its bins reach around it."""
    x1, y1, x2, y2 = box
    return (1 + 2 * AROUND) * max(x2 - x1, y2 - y1)


def draw(
    axes: Axes,
    picture: np.ndarray,
    found: Bins,
    index: int = 0,
    *,
    title: str = "",
    offsets: bool = True,
    side: float | None = None,
    size: tuple[int, int] | None = None,
) -> None:
    """Draw the bins of one box: rings at their regular centres, dots where offsets move them, fainter for less weight.

    Args:
        axes: matplotlib axes to draw on.
        picture: the image, (H, W) or (H, W, 3).
        found: from :func:`bins`.
        index: of the box.
        title: above the image.
        offsets: draw where the bins move; False draws the regular bins alone.
        side: of the part that is shown, in pixels, for several boxes at one zoom; None is :func:`window` of this box.
        size: (H, W) of the image as the network reads it, where `picture` has another resolution.
    """
    x1, y1, x2, y2 = found.boxes[index]
    regular, moved = found.regular[index].reshape(-1, 2), found.moved[index].reshape(-1, 2)
    show_picture(axes, picture, title, size=size)
    frame(axes, found.boxes[index], YELLOW)
    if offsets:
        for (ya, xa), (yb, xb) in zip(regular, moved, strict=True):
            axes.plot([xa, xb], [ya, yb], color=BACKGROUND, linewidth=1.8, zorder=2)
            axes.plot([xa, xb], [ya, yb], color=REGULAR, linewidth=0.8, zorder=3)
        mask = found.mask[index].ravel() if found.mask is not None else None
        alpha = 1.0 if mask is None else 0.2 + 0.8 * mask / max(mask.max(), 1e-12)
        scatter(axes, regular, REGULAR, size=10, hollow=True)
        scatter(axes, moved, TAPS, size=20, alpha=alpha)
    else:
        scatter(axes, regular, REGULAR, size=20)
    H, W = picture.shape[:2] if size is None else size
    half = min((window(found.boxes[index]) if side is None else side) / 2, max(H, W) / 2)
    # Shifted into the image: no strip of white where the box lies near an edge.
    y, x = (
        min(max((low + high - 1) / 2, min(half, n / 2) - 0.5), n - 0.5 - min(half, n / 2))
        for low, high, n in ((y1, y2, H), (x1, x2, W))
    )
    look_at(axes, (y - half, y + half, x - half, x + half))
