"""One call that shows where a model looks: at an image, from one position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pliant.data.images import pixels, read_image
from pliant.models.predictor import Predictor, resized
from pliant.show import canvas, sampling
from pliant.show.boxes import frame
from pliant.show.canvas import CENTRE, REGULAR, TAPS, YELLOW
from pliant.show.layout import height, look_at, row, window
from pliant.show.paths import Trace
from pliant.show.view import View, view

if TYPE_CHECKING:
    import PIL.Image
    from matplotlib.figure import Figure

    ImageLike = str | Path | PIL.Image.Image | Tensor

LAYERS = 2  # convolutions through which samples are followed, at most: 81 paths can be told apart
PATHS = 20_000  # most paths that are drawn


@dataclass(frozen=True)
class Look:
    """Where a model looks from one position; a notebook shows its picture.

    Args:
        view: the model's pass over the image, and the position.
        learned: paths from the position down to the image.
        regular: the same paths without offsets; None if no layer on the way is deformable.
    """

    view: View
    learned: Trace
    regular: Trace | None

    def figure(self) -> Figure:
        """Return the picture: the image with the position, and the samples without and with the offsets."""
        import numpy as np

        panels = [(self.regular, REGULAR, "regular grid"), (self.learned, TAPS, "with offsets")]
        if self.regular is None:
            panels = [(self.learned, REGULAR, "samples")]
        traces = [trace for trace, _, _ in panels if trace is not None]
        part = window(self.view.image, np.concatenate([trace.points[trace.inside] for trace in traces]))
        H, W = self.view.size
        tall, wide = height(3.6, H / W), height(3.6, H / W) * (part[3] - part[2]) / (part[1] - part[0])
        figure = canvas.sheet(3.6 + wide * len(traces), tall + 0.35)
        ratios = [3.6, *[wide] * len(traces)]
        cells = list(figure.subplots(1, len(ratios), gridspec_kw={"width_ratios": ratios}))
        canvas.show_picture(cells[0], self.view.ground, f"{W} × {H} pixels", size=self.view.size)
        if self.view.box is not None:
            frame(cells[0], self.view.box, YELLOW)
        canvas.scatter(cells[0], row(self.view.centre), CENTRE, size=110, marker="P", layer=6)
        for axes, (trace, colour, title) in zip(cells[1:], panels, strict=True):
            assert trace is not None
            said = f"{title}: {len(trace.points)} paths"
            sampling.draw(axes, self.view.paper, trace, title=said, color=colour, size=self.view.size)
            look_at(axes, part)
        figure.subplots_adjust(0.003, 0.005, 0.997, 1 - 0.35 / figure.get_figheight(), 0.02)
        return figure

    def save(self, path: str | Path, dpi: int = 150) -> Path:
        """Write the picture as a PNG and return its path.

        Raises:
            OSError: it could not be written.
        """
        path = Path(path)
        path.write_bytes(canvas.png(self.figure(), dpi))
        return path

    def _repr_png_(self) -> bytes:
        return canvas.png(self.figure())

    def __repr__(self) -> str:
        x, y = (round(v, 1) for v in self.view.centre[::-1])
        layers = " ← ".join(self.learned.layers)
        return (
            f"Look: {len(self.learned.points)} paths from x = {x:g}, y = {y:g} through {layers}; .save(path) draws them"
        )


def look(
    model: nn.Module | Predictor,
    image: ImageLike,
    at: tuple[float, float] | None = None,
    *,
    layer: str | None = None,
    prepare: Callable[[Tensor], Tensor] | None = None,
    call: Callable[[nn.Module, Tensor], Any] | None = None,
) -> Look:
    """Show where a model looks in an image.

    The model runs once. From the position `at` of the last map that can be followed, paths lead down through the two
    topmost convolutions to the pixels that they sample, with their offsets and without; see
    :func:`pliant.show.sampling.trace`. Samples outside the image are not drawn.

    Args:
        model: any module that takes images (1, 3, H, W), or a :class:`pliant.models.Predictor`, which also says how
            images are resized.
        image: a path, an image of Pillow's, or a tensor (3, H, W), uint8 or with values in 0 … 1.
        at: (x, y) in pixels of `image`; None is the best detection of a detector, or the middle.
        layer: name of the module from whose map paths start; None is the last one that can be followed.
        prepare: turns the image, float32 (3, H, W) in 0 … 1, into what the model takes, such as a normalization; it may
            resize. None leaves it.
        call: how the model is called, ``call(model, batch)``; None is ``model(batch)``.

    Returns:
        A :class:`Look`. A notebook shows it; ``save(path)`` writes it.

    Raises:
        OSError: the file is missing or no image.
        TypeError: the image is of another type, or a layer cannot be followed.
        ValueError: the position is not on the image, or nothing can be followed.

    Source: Dai et al., ICCV 2017, figure 5.

    >>> import torch
    >>> from pliant.nn import DeformConv2d
    >>> found = look(nn.Sequential(DeformConv2d(3, 8, 3, padding=1)), torch.rand(3, 24, 32), at=(20, 10))
    >>> found
    Look: 9 paths from x = 20, y = 10 through 0; .save(path) draws them
    """
    given = _tensor(image)
    whole = given.float() if given.is_floating_point() else given.float() / 255
    classes: Sequence[str] = ()
    seen = whole
    if isinstance(model, Predictor):
        seen, classes = resized(whole, model.resize), model.classes
        model = model.model
    if prepare is not None:
        seen = prepare(seen)
    (H, W), (h, w) = whole.shape[1:], seen.shape[1:]
    if at is not None and not (0 <= at[0] < W and 0 <= at[1] < H):
        raise ValueError(f"look: at = ({at[0]:g}, {at[1]:g}) is not on the image of {W} × {H} pixels (x, y)")
    point = None if at is None else ((at[0] + 0.5) * w / W, (at[1] + 0.5) * h / H)
    photograph = whole.clamp(0, 1).permute(1, 2, 0).double().cpu().numpy()
    drawn = None if (h, w) != (H, W) else photograph
    made = view(model, seen, image=drawn, layer=layer, point=point, classes=classes, call=call, photograph=photograph)
    return Look(made, *_traces(made))


def _traces(made: View) -> tuple[Trace, Trace | None]:
    """Return the paths of a view with offsets, and without them if there are any."""
    steps = [step for _, step in made.recording.steps(made.layer) if step.taps > 1]
    depth, paths = 0, 1
    for step in reversed(steps[-LAYERS:]):
        paths *= step.taps
        depth += paths <= PATHS
    if not depth:
        raise ValueError(f"look: below {made.layer or 'the output'} there is no convolution to follow")
    learned = made.recording.trace(made.position, made.layer, depth)
    if all(step.offset is None for step in steps[-depth:]):
        return learned, None
    return learned, made.recording.trace(made.position, made.layer, depth, regular=True)


def _tensor(image: ImageLike) -> Tensor:
    """Return an image as a tensor (3, H, W)."""
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Tensor):
        if image.dim() != 3 or image.shape[0] != 3:
            raise ValueError(f"look: an image must have shape (3, H, W), got {tuple(image.shape)}")
        return image
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise TypeError(f"look: image must be a path, an image of Pillow's or a tensor, got {type(image).__name__}")
    return pixels(image)
