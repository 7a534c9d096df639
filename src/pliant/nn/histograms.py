"""Histograms of the lengths of offsets while a network trains."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from pliant.nn.deformable import BranchHook, DeformableLayer, deformable_layers, offset_branch

PIXELS = tuple(i / 4 for i in range(33))
EXTENTS = tuple(i / 50 for i in range(26))


class OffsetHistory:
    """Count the lengths of every deformable layer's offsets at regular intervals while a model trains.

    The first and then every `every`-th forward of a layer in training mode is counted, by a hook on its branch. Lengths
    are ``√(dy² + dx²)``: in pixels of the map that is sampled, or in extents of the RoI for RoI layers (for
    position-sensitive ones, of the maps of offsets before they are pooled). :class:`OffsetStatistics` costs less and
    warns; the histograms are for figures: :func:`pliant.show.history.draw`.

    Each of `records` is ready for JSON: ``kind`` ("offsets"), ``layer``, ``step`` (how many forwards came before),
    ``edges``, ``counts``, ``unit`` of the edges, ``mean`` length (None if no length is finite) and ``nonfinite``, the
    number of offsets that are NaN or infinite.

    Args:
        model: any module; its deformable layers are those of :class:`pliant.nn.deformable.DeformableLayer`. Layers
            added later are not counted.
        every: forwards from one histogram to the next, at least 1.
        edges: of the bins, in pixels, ascending; longer offsets are counted in the last bin.
        roi_edges: the same for RoI layers, in extents of the RoI.
        training: False counts in evaluation mode instead.
        most: histograms per layer after which counting ends; None: never.

    Raises:
        ValueError: `every` or `most` below 1, fewer than two edges or edges that do not ascend.

    Use it as a context manager, or call :meth:`remove` at the end.

    >>> from pliant.nn import DeformConv2d
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
        training: bool = True,
        most: int | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"OffsetHistory: every must be at least 1, got {every}")
        if most is not None and most < 1:
            raise ValueError(f"OffsetHistory: most must be at least 1, got {most}")
        for given in (edges, roi_edges):
            if len(given) < 2 or any(a >= b for a, b in pairwise(given)):
                raise ValueError(f"OffsetHistory: edges must be at least two ascending numbers, got {tuple(given)}")
        self.every, self.training, self.most = every, training, most
        self.records: list[dict[str, Any]] = []
        self._forwards: dict[str, int] = {}
        self._handles = []
        for name, layer in deformable_layers(model):
            limits, unit = (roi_edges, "extents of the RoI") if layer.unit == "extents" else (edges, "map pixels")
            hook = BranchHook(functools.partial(self._look, name, layer, tuple(limits), unit))
            self._handles.append(offset_branch(layer).register_forward_hook(hook))

    def remove(self) -> None:
        """Take the hooks off the model; the records stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> OffsetHistory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()

    @torch.no_grad()
    def _look(
        self,
        name: str,
        layer: DeformableLayer,
        edges: tuple[float, ...],
        unit: str,
        branch: nn.Module,
        inputs: Any,
        output: Tensor,
    ) -> None:
        idle = branch.training is not self.training or output.is_meta or output.numel() == 0
        if torch.compiler.is_compiling() or idle:
            return
        step = self._forwards.get(name, 0)
        self._forwards[name] = step + 1
        if step % self.every or (self.most is not None and step >= self.every * self.most):
            return
        moves = layer.offset_scale * layer.offsets(output.detach().double())
        length = moves.norm(dim=-1).flatten().cpu()
        known = length[length.isfinite()]
        # The last bin is open: longer offsets are counted there.
        place = torch.bucketize(known, torch.tensor(edges, dtype=torch.float64), right=True) - 1
        counts = torch.bincount(place.clamp(0, len(edges) - 2), minlength=len(edges) - 1)
        self.records.append(
            {
                "kind": "offsets",
                "layer": name,
                "step": step,
                "edges": list(edges),
                "counts": counts.tolist(),
                "unit": unit,
                "mean": float(known.mean()) if len(known) else None,
                "nonfinite": len(length) - len(known),
            }
        )


def summed(records: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Add up the histograms of each layer: layer → ``edges``, ``counts``, ``unit``, ``mean``, ``nonfinite``.

    Args:
        records: of :class:`OffsetHistory`, all with the same edges.

    >>> from pliant.nn import DeformConv2d
    >>> layer = DeformConv2d(3, 8, 3, padding=1).eval()
    >>> with OffsetHistory(layer, every=1, training=False) as history:
    ...     _ = layer(torch.zeros(1, 3, 10, 10)), layer(torch.zeros(1, 3, 2, 5))
    >>> summed(history.records)[""]["counts"][0]
    990
    """
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        kept = {key: record[key] for key in ("edges", "counts", "unit", "mean", "nonfinite")}
        if record["layer"] in found:
            before = found[record["layer"]]
            numbers = sum(before["counts"]), sum(kept["counts"])
            total = numbers[0] * (before["mean"] or 0.0) + numbers[1] * (kept["mean"] or 0.0)
            kept["counts"] = [a + b for a, b in zip(before["counts"], kept["counts"], strict=True)]
            kept["mean"] = total / sum(numbers) if sum(numbers) else None
            kept["nonfinite"] += before["nonfinite"]
        found[record["layer"]] = kept
    return found
