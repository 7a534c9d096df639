"""How long offsets are while a network trains: a histogram of every deformable layer, again and again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from pliant.ops.conv.modules import DeformConv2d
from pliant.ops.roi.modules import DeformPSRoIPool, DeformRoIPool

PIXELS = tuple(i / 4 for i in range(33))
EXTENTS = tuple(i / 50 for i in range(26))


class OffsetHistory:
    """Count how long the offsets of every deformable layer are, again and again while it trains.

    The first and then every `every`-th forward of a layer in training mode is counted, by a hook on its branch. Lengths
    are ``√(dy² + dx²)``, of convolutions in pixels of the map they sample, of RoI layers in extents of the RoI (of a
    position-sensitive one those of the maps that are pooled). :class:`OffsetStatistics` is the cheap watch that warns;
    this is for pictures: :func:`pliant.show.history.draw`.

    Each of `records` is ready for JSON: ``kind`` ("offsets"), ``layer``, ``step`` (how many forwards came before),
    ``edges``, ``counts``, ``unit`` of the edges, ``mean`` length (None without a finite one) and ``nonfinite``, the
    number of offsets that are NaN or infinite.

    Args:
        model: any module; layers added later are not watched.
        every: forwards from one histogram to the next, at least 1.
        edges: of the bins for convolutions, ascending; what is longer than the last edge falls into the last bin.
        roi_edges: the same for RoI layers.
        training: False counts in evaluation mode instead.
        most: histograms of a layer after which no more are counted; None: there is no end.

    Raises:
        ValueError: `every` or `most` below 1, fewer than two edges or edges that do not ascend.

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
            unit = "map pixels" if isinstance(layer, DeformConv2d) else "extents of the RoI"
            look = _counter(self, name, shape, pair, tuple(limits), factor, unit)
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


def summed(records: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Add the histograms of each layer up: layer → ``edges``, ``counts``, ``unit``, ``mean``, ``nonfinite``.

    Args:
        records: of :class:`OffsetHistory`, all with the same edges.

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


def _counter(
    history: OffsetHistory,
    name: str,
    shape: tuple[int, ...],
    pair: int,
    edges: tuple[float, ...],
    factor: float,
    unit: str,
) -> Callable[[nn.Module, Any, Tensor], None]:
    """Return the hook of one branch, whose first channels are `shape`, with y and x along dimension `pair`."""

    @torch.no_grad()
    def look(branch: nn.Module, inputs: Any, output: Tensor) -> None:
        idle = branch.training is not history.training or output.is_meta or output.numel() == 0
        if torch.compiler.is_compiling() or idle:
            return
        step = history._forwards.get(name, 0)
        history._forwards[name] = step + 1
        if step % history.every or (history.most is not None and step >= history.every * history.most):
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
                "unit": unit,
                "mean": float(known.mean()) if len(known) else None,
                "nonfinite": len(length) - len(known),
            }
        )

    return look
