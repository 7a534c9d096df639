"""Show where queries look: the samples of multi-scale deformable attention, per level and head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pliant.nn.modes import evaluation
from pliant.show.canvas import BACKGROUND, show_picture
from pliant.show.recording import run

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

# Colours of heads, which remain apart for readers who do not see all colours; more heads begin anew.
HEADS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#6B6B6B")
LARGEST = 140.0  # square points of the marker of the largest weight


@dataclass(frozen=True)
class Attention:
    """Where the queries of one layer look in one image.

    Args:
        locations: (Q, M, ΣP, 2), x and y in [0, 1] of the image; level after level.
        weights: (Q, M, ΣP).
        levels: (H, W) of each level.
        points: number of samples of each level.
    """

    locations: Tensor
    weights: Tensor
    levels: tuple[tuple[int, int], ...]
    points: tuple[int, ...]

    def nearest(self, point: tuple[float, float]) -> int:
        """Return the query whose samples lie, on weighted average, nearest to a point (x, y) in [0, 1]."""
        places = self.locations.nan_to_num(posinf=0.0, neginf=0.0)
        share = self.weights.abs() + 1e-12
        mean = (places * share.unsqueeze(-1)).sum((1, 2)) / share.sum((1, 2)).unsqueeze(-1)
        return int((mean - mean.new_tensor(point)).square().sum(1).argmin())


def attention(
    model: nn.Module, picture: Tensor, call: Callable[[nn.Module, Tensor], Any] | None = None
) -> dict[str, Attention]:
    """Return where the queries of every layer look, by the names of the modules that call `ms_deform_attn`.

    The model runs in evaluation mode. Any module that calls :func:`pliant.ops.ms_deform_attn` is found, networks of a
    patched transformers too. Of a module that is called several times the last call is kept, of a batch the first
    image.

    Args:
        model: any module.
        picture: the image, (C, H, W), as the model takes it.
        call: how the model is called, ``call(model, picture)`` with (1, C, H, W); None: ``model(picture)``, or
            ``model([picture[0]])`` for the detectors of `pliant.models`.

    >>> from pliant.nn import MSDeformAttn
    >>> class Looking(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = MSDeformAttn(16, levels=1, heads=4, points=2)
    ...
    ...     def forward(self, image):
    ...         value = image.flatten(2).transpose(1, 2)
    ...         return self.layer(value[:, :1], torch.full((1, 1, 1, 2), 0.5), value, [(6, 8)])
    >>> found = attention(Looking(), torch.randn(16, 6, 8))["layer"]
    >>> found.locations[0, 0, :, 0] * 8  # the first head looks to the right, one pixel further with each point
    tensor([5., 6.], dtype=torch.float64)
    """
    watch = _Watch()
    with torch.no_grad(), evaluation(model), _named(model, watch.names), watch:
        (call or run)(model, picture.unsqueeze(0))
    return watch.found


class _Watch(TorchDispatchMode):
    """Keep the locations and weights of every call of the operator, under the name of the module that calls it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = [""]
        self.found: dict[str, Attention] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.pliant.ms_deform_attn.default:
            _, sizes, starts, locations, weights, points, _ = args
            levels = tuple(zip(sizes[::2], sizes[1::2], strict=True))
            each = tuple(points) or (locations.shape[4],) * len(starts)
            places, shares = (t[0].detach().double().cpu() for t in (locations, weights))
            Q, M = places.shape[:2]
            self.found[self.names[-1]] = Attention(
                places.reshape(Q, M, sum(each), 2), shares.reshape(Q, M, sum(each)), levels, each
            )
        return func(*args, **(kwargs or {}))


@contextmanager
def _named(model: nn.Module, names: list[str]) -> Iterator[None]:
    """Let `names` end with the name of the module that is running."""
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            before = module.register_forward_pre_hook(lambda *_, name=name: names.append(name))
            after = module.register_forward_hook(lambda *_: names.pop() and None, always_call=True)
            hooks.callback(before.remove)
            hooks.callback(after.remove)
        yield


def draw(
    figure: Figure,
    found: Attention,
    query: int,
    picture: np.ndarray,
    *,
    size: tuple[int, int] | None = None,
    columns: int = 4,
) -> None:
    """Draw the samples of one query over the image: a panel per level, a colour per head, the weight as the area.

    Crosses mark the pixels of a level where there are few enough to be seen. Samples outside the image are drawn
    as far as a narrow margin reaches.

    Args:
        figure: an empty figure.
        found: from :func:`attention`.
        query: the index of the query.
        picture: the image, (H, W) with 0 for white, or (H, W, 3) in 0 … 1.
        size: (H, W) in whose pixels the image is drawn; None: that of `picture`.
        columns: panels in a row.
    """
    H, W = picture.shape[:2] if size is None else size
    margin = 0.06 * max(H, W)
    L = len(found.levels)
    columns = min(columns, L)
    panels = figure.subplots(-(-L // columns), columns, squeeze=False).ravel()
    weights, places = found.weights[query].abs(), found.locations[query]
    largest = max(float(weights.max()), 1e-12)
    end = 0
    for level, (panel, (h, w), P) in enumerate(zip(panels, found.levels, found.points, strict=False)):
        show_picture(panel, picture, f"level {level + 1}: {h} × {w}", margin=margin, size=(H, W))
        first, end = end, end + P
        _grid(panel, (h, w), (H, W))
        for head in range(len(weights)):
            x, y = (places[head, first:end] * places.new_tensor([W, H]) - 0.5).unbind(1)
            seen = (x > -margin) & (y > -margin) & (x < W - 1 + margin) & (y < H - 1 + margin)
            area = LARGEST * weights[head, first:end] / largest
            color = HEADS[head % len(HEADS)]
            dots, sizes = (x[seen].tolist(), y[seen].tolist()), area[seen].tolist()
            # A sample near the edge of the margin is drawn whole.
            panel.scatter(*dots, s=sizes, color=color, edgecolors=BACKGROUND, linewidths=0.6, zorder=4, clip_on=False)
    for panel in panels[L:]:
        panel.set_axis_off()


def _grid(panel: Any, level: Sequence[int], size: tuple[int, int]) -> None:
    """Mark the centres of the pixels of a level, if there are few."""
    (h, w), (H, W) = level, size
    if h * w > 400:
        return
    x, y = ((torch.arange(n) + 0.5) / n * extent - 0.5 for n, extent in ((w, W), (h, H)))
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    marks = columns.flatten().tolist(), rows.flatten().tolist()
    panel.scatter(*marks, s=5, marker="+", color="#000000", linewidths=0.4, alpha=0.45, zorder=3)
