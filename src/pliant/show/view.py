"""A model, an image and a position: what a set of figures is about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pliant.models.detector import Detector
from pliant.show.recording import Recording, record

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class View:
    """A model, an image, and the position and box to explain; made by :func:`view`.

    Args:
        model: any module.
        picture: the image, (C, H, W), as the model takes it.
        image: the image as it is drawn, (H, W) with 0 for white, or (H, W, 3) in 0 … 1.
        recording: of the model on the image.
        layer: the layer whose map is explained.
        position: (row, column) on that map.
        box: x1, y1, x2, y2, or None.
        detections: boxes, scores and labels that a detector returns.
        classes: names of the labels.
        call: how the model is called, or None.
        photograph: the image at its own resolution, (H', W', 3) in 0 … 1, which is drawn under the points; None: the
            pixels that the model sees.
    """

    model: nn.Module
    picture: Tensor
    image: np.ndarray
    recording: Recording
    layer: str
    position: tuple[int, int]
    box: tuple[float, float, float, float] | None
    detections: dict[str, Tensor] = field(default_factory=dict)
    classes: Sequence[str] = ()
    call: Callable[[nn.Module, Tensor], Any] | None = None
    photograph: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Return (H, W) of the image as the model sees it: coordinates are its pixels."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def ground(self) -> np.ndarray:
        """Return what is drawn under points and boxes: the photograph, or the image."""
        return self.image if self.photograph is None else self.photograph

    @property
    def stopped(self) -> str:
        """Return what stops the paths from the model's own output to the image; "" if nothing does."""
        return "" if isinstance(self.model, Detector) else self.recording.stop()

    @property
    def paper(self) -> np.ndarray:
        """Return the ground, pale enough for points on top of it."""
        return self.ground if self.ground.ndim == 2 else 0.45 + 0.55 * self.ground

    @property
    def centre(self) -> tuple[float, float]:
        """Return the centre of the position in the image, (y, x)."""
        y, x = self.recording.centres(self.layer)[self.position]
        return float(y), float(x)


def view(
    model: nn.Module,
    picture: Tensor,
    *,
    image: np.ndarray | None = None,
    layer: str | None = None,
    point: tuple[float, float] | None = None,
    box: tuple[float, float, float, float] | None = None,
    classes: Sequence[str] = (),
    call: Callable[[nn.Module, Tensor], Any] | None = None,
    photograph: np.ndarray | None = None,
) -> View:
    """Run a model on an image and choose the position and the box to explain.

    Args:
        model: any module; see :func:`pliant.show.recording.record` for what can be followed.
        picture: the image, (C, H, W), as the model takes it.
        image: what is drawn, (H, W) or (H, W, 3) in 0 … 1; None: `picture`, scaled to 0 … 1.
        layer: name of the module whose map is explained; None: for a detector of `pliant.models` the last stage of the
            backbone, else the last deformable convolution, and without one as
            :meth:`pliant.show.recording.Recording.trace` chooses.
        point: (x, y) in pixels of the image; None: the centre of the box, of the best detection, or of the image.
        box: x1, y1, x2, y2; None: the best detection, if there is one.
        classes: names of a detector's labels.
        call: how the model is called, ``call(model, picture)`` with (1, C, H, W).
        photograph: the image at its own resolution, drawn under the points; None: `image`.

    Raises:
        ValueError: the point or the box is not on the image, or nothing can be traced.
    """
    _, H, W = picture.shape
    if point is not None and not (0 <= point[0] < W and 0 <= point[1] < H):
        raise ValueError(f"the point {point[0]:g},{point[1]:g} is not on the image of {W} × {H} pixels (x,y)")
    if box is not None and not (0 <= box[0] < box[2] <= W and 0 <= box[1] < box[3] <= H):
        said = ",".join(f"{v:g}" for v in box)
        raise ValueError(f"the box {said} is not on the image of {W} × {H} pixels (x1,y1,x2,y2 with x1 < x2, y1 < y2)")
    recording = record(model, picture, call)
    detections: dict[str, Tensor] = {}
    if isinstance(model, Detector):
        detections = {key: value.cpu() for key, value in recording.output[0].items()}
        layer = layer or "backbone.layer4"
        if box is None and len(detections["boxes"]):
            x1, y1, x2, y2 = detections["boxes"][0].tolist()
            box = (x1, y1, x2, y2) if point is None or (x1 <= point[0] < x2 and y1 <= point[1] < y2) else None
    if layer is None:
        # The layers that move their taps are what one wants to see of a network with such layers.
        moving = [name for name in recording.deformable() if name in recording.layers()]
        layer = moving[-1] if moving else recording.default_layer()
    if point is None:
        point = (W / 2, H / 2) if box is None else ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    position = recording.nearest((point[1] - 0.5, point[0] - 0.5), layer)
    drawn = drawable(picture, image)
    return View(model, picture, drawn, recording, layer, position, box, detections, classes, call, photograph)


def drawable(picture: Tensor, image: np.ndarray | None) -> np.ndarray:
    """Return `image`, or `picture` scaled to 0 … 1 as (H, W) or (H, W, 3)."""
    if image is not None:
        return image
    x = picture.detach().double().cpu()
    x = (x - x.min()) / (x.max() - x.min()).clamp_min(1e-12)
    drawn: np.ndarray = (x[:3].permute(1, 2, 0) if len(x) >= 3 else x[0]).numpy()
    return drawn
