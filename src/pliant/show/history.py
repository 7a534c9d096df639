"""Histograms of offset lengths over training, as a figure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pliant.show.canvas import INK, VERMILION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4


def by_layer(records: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the histograms in some records, by layer, each with its `step`.

    Args:
        records: of :class:`pliant.nn.OffsetHistory`, or of a training run, whose evaluations hold a histogram of every
            deformable layer under "offsets"; other records are ignored.

    >>> histogram = {"edges": [0.0, 1.0], "counts": [9], "unit": "map pixels", "mean": 0.0, "nonfinite": 0}
    >>> list(by_layer([{"kind": "evaluation", "step": 40, "offsets": {"layer4.0.conv1": histogram}}]))
    ['layer4.0.conv1']
    """
    layers: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record.get("kind") == "offsets":
            layers.setdefault(record["layer"], []).append(record)
        for name, histogram in (record.get("offsets") or {}).items():
            layers.setdefault(name, []).append({**histogram, "step": record["step"]})
    return layers


def draw(figure: Figure, records: Iterable[dict[str, Any]], *, step: str = "forward") -> None:
    """Draw histograms of offset lengths over training, one panel per layer: dark for many offsets, a line for the mean.

    Args:
        figure: an empty figure, about 2.5 inches high per row of `COLUMNS` layers.
        records: see :func:`by_layer`; such as ``pliant.train.log.read(folder / "metrics.jsonl")`` of a run.
        step: what the horizontal axis counts.

    Raises:
        ValueError: the records hold no histogram.
    """
    import numpy as np

    layers = by_layer(records)
    if not layers:
        raise ValueError("draw: the records hold no histograms of offsets")
    columns = min(len(layers), COLUMNS)
    rows = math.ceil(len(layers) / columns)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    units: list[str] = []
    for axes, (name, found) in zip(cells, layers.items(), strict=False):
        steps = np.array([record["step"] for record in found], dtype=float)
        edges = np.array(found[0]["edges"])
        counts = np.array([record["counts"] for record in found], dtype=float)
        share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        # A column reaches halfway to its neighbours.
        between = (steps[:-1] + steps[1:]) / 2
        first, last = (steps[1] - steps[0], steps[-1] - steps[-2]) if len(steps) > 1 else (1.0, 1.0)
        bounds = np.concatenate(([steps[0] - first / 2], between, [steps[-1] + last / 2]))
        image = axes.pcolormesh(bounds, edges, np.sqrt(share).T, cmap="Blues", vmin=0, vmax=10)
        means = [np.nan if record["mean"] is None else record["mean"] for record in found]
        axes.plot(steps, means, color=VERMILION, linewidth=1.6, marker="o", markersize=2.5, label="mean")
        if not units:
            axes.legend(frameon=False, fontsize=8, loc="upper left")
        axes.set_title(name or "the model", fontsize=9, color=INK)
        axes.tick_params(labelsize=8)
        if len(steps) == 1:
            axes.set_xticks(steps)
        units.append(found[0]["unit"])
        if len(units) % columns == 1 % columns or units[-1] != units[-2]:
            axes.set_ylabel(f"length of offsets, {units[-1]}", fontsize=9)
        if len(units) > len(layers) - columns:
            axes.set_xlabel(step, fontsize=9)
    for axes in cells[len(layers) :]:
        axes.set_axis_off()
    bar = figure.colorbar(image, ax=cells.tolist(), fraction=0.03, pad=0.02, ticks=[0, 1, np.sqrt(10), 5, 10])
    bar.ax.set_yticklabels(["0", "1", "10", "25", "100"])
    bar.set_label("% of the offsets", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
