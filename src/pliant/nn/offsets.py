"""What training learned offsets needs: learning rates for the offset branches, and statistics of the offsets."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn

from pliant.nn.deformable import BranchHook, DeformableLayer, deformable_layers, offset_branch

# Layers that networks with attention name alike, in any library, and their learning rate relative to the rest.
NAMED = {"sampling_offsets": 0.1, "reference_points": 0.1}


def parameter_groups(
    model: nn.Module, lr: float, offset_lr_mult: float | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Group the parameters for an optimizer, so that offset branches learn at ``lr·offset_lr_mult``.

    Layers named `sampling_offsets` or `reference_points`, as in Deformable DETR and its relatives, learn at 0.1 of the
    rate wherever they are, in networks of other libraries too.

    Every parameter that requires a gradient is in exactly one group; frozen ones are left out. Parameters of equal
    learning rate share one group. A parameter that several branches share takes the smallest of their rates.

    Args:
        model: any module. Offset branches are the children that a layer with `offset_lr_mult` names in `branches`.
        lr: learning rate of everything that is not an offset branch.
        offset_lr_mult: None takes each layer's own, as in the papers (convolution 1.0 for version 1, 0.1 for version 2;
            RoI pooling 0.01 for version 1, 1.0 for version 2 and position-sensitive pooling; attention's offsets and
            points of reference 0.1); a number overrides all.
        **options: further settings of every group, such as ``weight_decay=1e-4``; None values are left out.

    Returns:
        Groups ``{"params": [...], "lr": ..., **options}``, the group of learning rate `lr` first where there is one.

    Raises:
        ValueError: a negative learning rate or multiplier.

    Source: Dai et al., ICCV 2017, section 3; Zhu et al., CVPR 2019, section 4.1; Zhu et al., ICLR 2021, section 5.

    >>> from pliant.nn import DeformConv2d
    >>> model = nn.Sequential(DeformConv2d(3, 8, 3), nn.Conv2d(8, 8, 1))
    >>> [(group["lr"], len(group["params"])) for group in parameter_groups(model, 0.5)]
    [(0.5, 4), (0.05, 2)]
    """
    if lr < 0 or (offset_lr_mult is not None and offset_lr_mult < 0):
        raise ValueError(f"parameter_groups: lr and offset_lr_mult must not be negative, got {lr} and {offset_lr_mult}")
    rates: dict[nn.Parameter, float] = {}
    for layer in model.modules():
        own = getattr(layer, "offset_lr_mult", None)
        if own is None:
            continue
        rate = lr * (own if offset_lr_mult is None else offset_lr_mult)
        for branch in (getattr(layer, name) for name in cast("DeformableLayer", layer).branches):
            for parameter in () if branch is None else branch.parameters():
                rates[parameter] = min(rate, rates.get(parameter, rate))
    for name, layer in model.named_modules():
        last = name.rpartition(".")[2]
        for parameter in layer.parameters() if last in NAMED else ():
            rates.setdefault(parameter, lr * (NAMED[last] if offset_lr_mult is None else offset_lr_mult))
    set_options = {name: value for name, value in options.items() if value is not None}
    by_rate: dict[float, list[nn.Parameter]] = {lr: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            by_rate.setdefault(rates.get(parameter, lr), []).append(parameter)
    return [{"params": params, "lr": rate, **set_options} for rate, params in by_rate.items() if params]


@dataclass
class _Totals:
    """Sums over the measurements of one layer; `outside` is None where the layer cannot say what lies outside."""

    measured: int = 0
    finite: float = 0.0
    absolute: float = 0.0
    largest: float = 0.0
    samples: float = 0.0
    outside: float | None = 0.0
    broken: float = 0.0

    def add(self, other: _Totals) -> None:
        self.measured += other.measured
        self.finite += other.finite
        self.absolute += other.absolute
        self.largest = max(self.largest, other.largest)
        self.samples += other.samples
        self.outside = None if self.outside is None or other.outside is None else self.outside + other.outside
        self.broken += other.broken


class OffsetStatistics:
    """Measure the offsets of every deformable layer in a model while it trains; warn once per layer if they explode.

    The first and then every `every`-th forward of a layer in training mode is measured, by a hook on its branch. A
    measurement takes a few passes over the offsets and reads five numbers back, for which a GPU is waited for. Between
    measurements, in evaluation mode and inside `torch.compile` nothing is measured. Only Python numbers are kept: no
    graph, no tensor, not the model.

    Args:
        model: any module; its deformable layers are those of :class:`pliant.nn.deformable.DeformableLayer`. Layers
            added later are not measured.
        threshold: mean |offset| in pixels above which a warning is given; None takes 50 (as EDVR does), or the larger
            side of the layer's input where that is smaller.
        roi_threshold: the same for RoI layers, in extents of the RoI.
        every: forwards from one measurement to the next, at least 1.

    Raises:
        ValueError: `every` below 1 or a threshold that is not positive.

    Warns:
        RuntimeWarning: once per layer, when the mean |offset| of one measurement exceeds the threshold or an offset is
            NaN or infinite.

    Use it as a context manager, or call :meth:`remove` at the end.

    >>> from pliant.nn import DeformConv2d
    >>> layer = DeformConv2d(3, 8, 3, padding=1)
    >>> with OffsetStatistics(layer) as statistics:
    ...     _ = layer(torch.zeros(1, 3, 10, 10))
    >>> statistics.report()[""]["mean"]
    0.0
    """

    def __init__(
        self, model: nn.Module, *, threshold: float | None = None, roi_threshold: float = 1.0, every: int = 10
    ) -> None:
        if every < 1:
            raise ValueError(f"OffsetStatistics: every must be at least 1, got {every}")
        if threshold is not None and not threshold > 0:
            raise ValueError(f"OffsetStatistics: threshold must be positive, got {threshold}")
        if not roi_threshold > 0:
            raise ValueError(f"OffsetStatistics: roi_threshold must be positive, got {roi_threshold}")
        self.threshold, self.roi_threshold, self.every = threshold, roi_threshold, every
        self._totals: dict[str, _Totals] = {}
        self._forwards: dict[str, int] = {}
        self._warned: set[str] = set()
        self._handles = []
        for name, layer in deformable_layers(model):
            hook = BranchHook(functools.partial(self._look, name, layer))
            self._handles.append(offset_branch(layer).register_forward_hook(hook))

    def __str__(self) -> str:
        """Return what was measured as a table.

        >>> from pliant.nn import DeformConv2d
        >>> layer = nn.Sequential(DeformConv2d(3, 8, 3, padding=1))
        >>> with OffsetStatistics(layer) as statistics:
        ...     _ = layer(torch.zeros(1, 3, 10, 10))
        >>> print(statistics)
        layer  mean |offset|  max |offset|  outside  not finite  measured
        0                  0             0    12.9%        0.0%         1
        """
        columns = ("layer", "mean |offset|", "max |offset|", "outside", "not finite", "measured")
        rows = [columns]
        for name, found in self.report().items():
            outside = f"{found['outside']:.1%}" if "outside" in found else "–"
            numbers = (f"{found['mean']:.3g}", f"{found['max']:.3g}", outside, f"{found['nonfinite']:.1%}")
            rows.append((name or "the model", *numbers, f"{found['measured']:.0f}"))
        if len(rows) == 1:
            return "nothing measured yet: layers are measured in training mode"
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        )

    def report(self) -> dict[str, dict[str, float]]:
        """Return what was measured since the start or the last :meth:`reset`, per layer name.

        Each layer has ``mean`` and ``max`` of |offset| in pixels over its finite coordinates; ``outside``, the share of
        samples out of bounds (samples in the padding are among them, so that it is not 0 for offsets of zero);
        ``nonfinite``, the share of samples with a NaN or infinite coordinate; and ``measured``, the number of
        measurements. Layers that were not measured are absent, and so is ``outside`` of a layer whose offsets alone do
        not say where it samples (attention around reference points).

        For RoI layers, ``mean`` and ``max`` are how far bins move, in extents of their RoI, and ``outside`` is the
        share of bins whose centre has left it. For position-sensitive ones the maps of offsets are measured, before
        they are pooled.
        """
        return {
            name: {
                "mean": t.absolute / t.finite if t.finite else 0.0,
                "max": t.largest,
                **({} if t.outside is None else {"outside": t.outside / t.samples}),
                "nonfinite": t.broken / t.samples,
                "measured": t.measured,
            }
            for name, t in self._totals.items()
        }

    def reset(self) -> None:
        """Forget what was measured, for example after every epoch. Nobody is warned about a layer a second time."""
        self._totals.clear()

    def remove(self) -> None:
        """Take the hooks off the model; the report stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> OffsetStatistics:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()

    @torch.no_grad()
    def _look(
        self, name: str, layer: DeformableLayer, branch: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        if torch.compiler.is_compiling() or not branch.training or output.is_meta or output.numel() == 0:
            return
        forwards = self._forwards.get(name, 0)
        self._forwards[name] = forwards + 1
        if forwards % self.every:
            return
        size = layer.map_size(inputs[0])
        now = _measured(layer, output.detach(), size)
        self._totals.setdefault(name, _Totals()).add(now)
        if layer.unit == "extents":
            self._warn(name, now, self.roi_threshold, "extents of the RoI")
            return
        threshold = min(50.0, float(max(size, default=50))) if self.threshold is None else self.threshold
        self._warn(name, now, threshold, f"pixels on a map of {'×'.join(map(str, size))}" if size else "pixels")

    def _warn(self, name: str, now: _Totals, threshold: float, unit: str) -> None:
        mean = now.absolute / now.finite if now.finite else 0.0
        if name in self._warned or (mean <= threshold and not now.broken):
            return
        self._warned.add(name)
        what = f"mean |offset| is {mean:.1f} {unit} (threshold {threshold:g})"
        if now.broken:
            what = f"{now.broken / now.samples:.1%} of the offsets are NaN or infinite, " + what
        warnings.warn(
            f"offsets of layer {name or '(the model itself)'!r} explode: {what}. Lower offset_lr_mult, clip gradients, "
            "or normalise what goes into the layer",
            RuntimeWarning,
            stacklevel=2,
        )


def _measured(layer: DeformableLayer, predicted: Tensor, size: tuple[int, ...]) -> _Totals:
    """Measure what the offset branch of a layer predicted for a map of `size`."""
    predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
    moves = layer.offset_scale * layer.offsets(predicted)
    finite, inside = moves.isfinite(), layer.inside(moves, size)
    broken = ~finite.all(-1)
    absolute = torch.where(finite, moves.abs(), 0)
    numbers = [finite.sum(), absolute.sum(), absolute.max(), broken.sum()]
    if inside is not None:
        numbers.append((~inside & ~broken).sum())
    # One tensor, so that a GPU is waited for once.
    count, total, largest, invalid, *outside = torch.stack([number.to(moves.dtype) for number in numbers]).tolist()
    return _Totals(1, count, total, largest, broken.numel(), outside[0] if outside else None, invalid)
