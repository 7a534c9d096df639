"""How offsets grow while a network trains: a histogram at a time, and its picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pliant.nn import DeformConv2d, DeformPSRoIPool, DeformRoIPool
from pliant.show.canvas import INK, VERMILION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS = tuple(i / 4 for i in range(33))
EXTENTS = tuple(i / 50 for i in range(26))


class OffsetHistory:
    """Count how long the offsets of every deformable layer are, again and again while it trains.

    The first and then every `every`-th forward of a layer in training mode is counted, by a hook on its branch. Lengths
    are ``√(dy² + dx²)``, of convolutions in pixels of the map they sample, of RoI layers in extents of the RoI (of a
    position-sensitive one those of the maps that are pooled). :class:`pliant.nn.OffsetStatistics` is the cheap watch
    that warns; this is for pictures.

    Args:
        model: any module; layers added later are not watched.
        every: forwards from one histogram to the next, at least 1.
        edges: of the bins for convolutions, ascending; what is longer than the last edge falls into the last bin.
        roi_edges: the same for RoI layers.

    Raises:
        ValueError: `every` below 1, fewer than two edges or edges that do not ascend.

    Use it as a context manager, or call :meth:`remove` in the end.

    >>> layer = DeformConv2d(3, 8, 3, padding=1)
    >>> with OffsetHistory(layer) as history:
    ...     _ = layer(torch.zeros(1, 3, 10, 10))
    >>> [(r["layer"], r["step"], r["counts"][0]) for r in history.records]
    [('', 0, 900)]
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 100,
        edges: Sequence[float] = PIXELS,
        roi_edges: Sequence[float] = EXTENTS,
    ) -> None:
        if every < 1:
            raise ValueError(f"OffsetHistory: every must be at least 1, got {every}")
        for given in (edges, roi_edges):
            if len(given) < 2 or any(a >= b for a, b in pairwise(given)):
                raise ValueError(f"OffsetHistory: edges must be at least two ascending numbers, got {tuple(given)}")
        self.every = every
        self.records: list[dict[str, Any]] = []
        self._forwards: dict[str, int] = {}
        self._handles = []
        for name, layer in model.named_modules():
            if isinstance(layer, DeformConv2d):
                branch: nn.Module = layer.conv_offset
                K = layer.kernel_size[0] * layer.kernel_size[1]
                shape: tuple[int, ...] = (layer.offset_groups * K, 2)
                pair, limits, factor = 2, edges, 1.0
            elif isinstance(layer, DeformRoIPool):
                branch, K = layer.offset_fc, layer.output_size[0] * layer.output_size[1]
                shape, pair, limits, factor = (2, K), 1, roi_edges, layer.gamma
            elif isinstance(layer, DeformPSRoIPool):
                branch = layer.conv_offset
                shape = (layer.classes, 2, layer.part_size**2)
                pair, limits, factor = 2, roi_edges, layer.trans_std
            else:
                continue
            look = _counter(self, name, shape, pair, tuple(limits), factor)
            self._handles.append(branch.register_forward_hook(look))

    def remove(self) -> None:
        """Take the hooks off the model; the records stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> OffsetHistory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()


def _counter(
    history: OffsetHistory, name: str, shape: tuple[int, ...], pair: int, edges: tuple[float, ...], factor: float
) -> Any:
    """Return the hook of one branch, whose first channels are `shape`, with y and x along dimension `pair`."""

    @torch.no_grad()
    def look(branch: nn.Module, inputs: Any, output: Tensor) -> None:
        if torch.compiler.is_compiling() or not branch.training or output.is_meta or output.numel() == 0:
            return
        step = history._forwards.get(name, 0)
        history._forwards[name] = step + 1
        if step % history.every:
            return
        offset = output.detach()[:, : math.prod(shape)].double().unflatten(1, shape) * factor
        length = offset.norm(dim=pair).flatten().cpu()
        known = length[length.isfinite()]
        # The last bin is open: what is beyond counts there.
        place = torch.bucketize(known, torch.tensor(edges, dtype=torch.float64), right=True) - 1
        counts = torch.bincount(place.clamp(0, len(edges) - 2), minlength=len(edges) - 1)
        history.records.append(
            {
                "kind": "offsets",
                "layer": name,
                "step": step,
                "edges": list(edges),
                "counts": counts.tolist(),
                "mean": float(known.mean()) if len(known) else None,
                "nonfinite": len(length) - len(known),
            }
        )

    return look


def draw(figure: Figure, records: Sequence[dict[str, Any]]) -> None:
    """Draw histograms of offsets over training, one panel a layer: the darker, the more offsets; the line is the mean.

    Args:
        figure: an empty figure, about 2.5 inches high and 3 wide a layer.
        records: of :class:`OffsetHistory`, or the same lines read back from a metrics.jsonl; others are left out.

    Raises:
        ValueError: there is no histogram among them.
    """
    import numpy as np

    layers: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record.get("kind") == "offsets":
            layers.setdefault(record["layer"], []).append(record)
    if not layers:
        raise ValueError('draw: there are no records of kind "offsets"')
    panels = figure.subplots(1, len(layers), squeeze=False)[0]
    for axes, (name, found) in zip(panels, layers.items(), strict=True):
        steps = np.array([record["step"] for record in found], dtype=float)
        edges = np.array(found[0]["edges"])
        counts = np.array([record["counts"] for record in found], dtype=float)
        share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        width = np.diff(steps).mean() if len(steps) > 1 else 1.0
        bounds = np.append(steps, steps[-1] + width)
        image = axes.pcolormesh(bounds, edges, np.sqrt(share).T, cmap="Blues", vmin=0, vmax=10)
        middle = (bounds[:-1] + bounds[1:]) / 2
        means = [np.nan if record["mean"] is None else record["mean"] for record in found]
        axes.plot(middle, means, color=VERMILION, linewidth=1.6, marker="o", markersize=2.5)
        axes.set_title(name or "the model", fontsize=9, color=INK)
        axes.set_xlabel("forward", fontsize=9)
        axes.tick_params(labelsize=8)
    panels[0].set_ylabel("length of offset", fontsize=9)
    bar = figure.colorbar(image, ax=list(panels), fraction=0.03, pad=0.02, ticks=[0, 1, np.sqrt(10), 5, 10])
    bar.ax.set_yticklabels(["0", "1", "10", "25", "100"])
    bar.ax.set_title("%", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
