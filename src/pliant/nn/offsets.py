"""What training learned offsets needs: learning rates of their own, and a look at where they go."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from pliant.ops.conv.modules import DeformConv2d
from pliant.ops.roi.modules import DeformPSRoIPool, DeformRoIPool

# The children of a layer with `offset_lr_mult` that predict its offsets and masks.
BRANCHES = ("conv_offset", "offset_fc", "mask_fc")


def parameter_groups(
    model: nn.Module, lr: float, offset_lr_mult: float | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Group the parameters for an optimizer, so that offset branches learn at ``lr·offset_lr_mult``.

    Every parameter that requires a gradient is in exactly one group; frozen ones are left out. Groups of equal learning
    rate are one. A parameter shared by several branches takes the smallest of their rates.

    Args:
        model: any module; the offset branches of the deformable layers in it are found.
        lr: learning rate of everything that is not an offset branch.
        offset_lr_mult: None takes each layer's own (convolution 1.0 for version 1, 0.1 for version 2; RoI pooling 0.01
            for version 1, 1.0 for version 2 and position-sensitive, as in the papers), a number overrides all.
        **options: further settings of every group, such as ``weight_decay=1e-4``; None values are left out.

    Returns:
        Groups ``{"params": [...], "lr": ..., **options}``, the group of learning rate `lr` first where there is one.

    Raises:
        ValueError: a negative learning rate or multiplier.

    Source: Dai et al., ICCV 2017, section 3; Zhu et al., CVPR 2019, section 4.1.

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
        for branch in (getattr(layer, name, None) for name in BRANCHES):
            for parameter in branch.parameters() if isinstance(branch, nn.Module) else ():
                rates[parameter] = min(rate, rates.get(parameter, rate))
    set_options = {name: value for name, value in options.items() if value is not None}
    by_rate: dict[float, list[nn.Parameter]] = {lr: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            by_rate.setdefault(rates.get(parameter, lr), []).append(parameter)
    return [{"params": params, "lr": rate, **set_options} for rate, params in by_rate.items() if params]


@dataclass
class _Totals:
    """Sums over the measurements of one layer."""

    measured: int = 0
    finite: float = 0.0
    absolute: float = 0.0
    largest: float = 0.0
    samples: float = 0.0
    outside: float = 0.0
    broken: float = 0.0


# Of a branch, what went in and what came out: the measurement, the threshold of its mean, and in which unit they are.
_Watch = Callable[[Any, Tensor, Tensor], tuple[_Totals, float, str]]


class OffsetStatistics:
    """Watch the offsets of every deformable layer in a model while it trains, and warn once per layer if they explode.

    The first and then every `every`-th forward of a layer in training mode is measured, by a hook on its branch; it
    costs a few passes over the offsets and reads five numbers back (on a GPU that waits for it). In between, in
    evaluation mode and inside `torch.compile` nothing is measured. Only Python numbers are kept: no graph, no tensor,
    not the model.

    Args:
        model: any module; layers added later are not watched.
        threshold: mean |offset| in pixels above which a layer is warned about; None takes 50 (as EDVR does), or the
            larger side of the layer's input where that is smaller.
        roi_threshold: the same for RoI layers, in extents of the RoI.
        every: forwards from one measurement to the next, at least 1.

    Raises:
        ValueError: `every` below 1 or a threshold that is not positive.

    Warns:
        RuntimeWarning: once per layer, when the mean |offset| of one measurement passes the threshold or an offset is
            NaN or infinite.

    Use it as a context manager, or call :meth:`remove` in the end.

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
        for name, layer in model.named_modules():
            watch: _Watch
            if isinstance(layer, DeformConv2d):
                branch: nn.Module = layer.conv_offset
                watch = functools.partial(_pixels, threshold, layer.offset_groups, layer.extra, layer.boundary)
            elif isinstance(layer, DeformRoIPool):
                branch = layer.offset_fc
                watch = functools.partial(_extents, roi_threshold, 1, layer.output_size, layer.gamma)
            elif isinstance(layer, DeformPSRoIPool):
                branch, parts = layer.conv_offset, (layer.part_size, layer.part_size)
                watch = functools.partial(_extents, roi_threshold, layer.classes, parts, layer.trans_std)
            else:
                continue
            self._handles.append(branch.register_forward_hook(functools.partial(self._look, name, watch)))

    def report(self) -> dict[str, dict[str, float]]:
        """Return what was measured since the start or the last :meth:`reset`, per layer name.

        Each layer has ``mean`` and ``max`` of |offset| in pixels over its finite coordinates, ``outside``: the share of
        samples outside the map (the padding's own are among them: it is not 0 for offsets of zero), ``nonfinite``: the
        share of samples with a NaN or infinite coordinate, and ``measured``, the number of measurements. Layers that
        were not measured are absent.

        Of RoI layers, ``mean`` and ``max`` are how far bins move, in extents of their RoI, and ``outside`` is the share
        of bins whose centre has left it. Of a position-sensitive one they are those of the maps that are pooled.
        """
        return {
            name: {
                "mean": t.absolute / t.finite if t.finite else 0.0,
                "max": t.largest,
                "outside": t.outside / t.samples,
                "nonfinite": t.broken / t.samples,
                "measured": t.measured,
            }
            for name, t in self._totals.items()
        }

    def reset(self) -> None:
        """Forget what was measured, for example after every epoch. Layers warned about stay so."""
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

    def _look(self, name: str, watch: _Watch, branch: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if torch.compiler.is_compiling() or not branch.training or output.is_meta or output.numel() == 0:
            return
        forwards = self._forwards.get(name, 0)
        self._forwards[name] = forwards + 1
        if forwards % self.every:
            return
        now, threshold, unit = watch(branch, inputs[0], output.detach())
        total = self._totals.setdefault(name, _Totals())
        total.measured += 1
        total.largest = max(total.largest, now.largest)
        for field in ("finite", "absolute", "samples", "outside", "broken"):
            setattr(total, field, getattr(total, field) + getattr(now, field))
        self._warn(name, now, threshold, unit)

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


def _pixels(
    threshold: float | None,
    G: int,
    extra: tuple[int, int],
    boundary: str,
    branch: nn.Conv2d,
    input: Tensor,
    output: Tensor,
) -> tuple[_Totals, float, str]:
    """Measure the branch of a deformable convolution."""
    H, W = input.shape[-2] - extra[0], input.shape[-1] - extra[1]
    limit = min(50.0, float(max(H, W))) if threshold is None else threshold
    return _measure(output, branch, G, (H, W), boundary), limit, f"pixels on a {H}×{W} map"


@torch.no_grad()
def _extents(
    threshold: float,
    classes: int,
    bins: tuple[int, int],
    factor: float,
    branch: nn.Module,
    input: Tensor,
    output: Tensor,
) -> tuple[_Totals, float, str]:
    """Measure the branch of a RoI layer: of every class, the first 2·bins channels are the offsets, x first."""
    Ph, Pw = bins
    offset = output[:, : 2 * classes * Ph * Pw].reshape(len(output), classes, 2, Ph, Pw, -1)
    offset = factor * offset.to(torch.promote_types(offset.dtype, torch.float32))
    # Where the centre of a bin is, from 0 at one side of the RoI to 1 at the other.
    x, y = (((torch.arange(n, device=offset.device, dtype=offset.dtype) + 0.5) / n) for n in (Pw, Ph))
    x, y = offset[:, :, 0] + x.view(Pw, 1), offset[:, :, 1] + y.view(Ph, 1, 1)
    counts = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
    return _total(offset, 2, counts), threshold, "extents of the RoI"


@torch.no_grad()
def _measure(predicted: Tensor, branch: nn.Conv2d, G: int, size: tuple[int, int], boundary: str) -> _Totals:
    """Measure what an offset branch predicted for an input of `size`: its first 2·G·K channels are the offsets."""
    N, _, Ho, Wo = predicted.shape
    (Kh, Kw), (H, W) = branch.kernel_size, size
    offset = predicted[:, : 2 * G * Kh * Kw].reshape(N, G, Kh, Kw, 2, Ho, Wo)
    offset = offset.to(torch.promote_types(offset.dtype, torch.float32))

    def line(count: int, step: int, start: int = 0) -> Tensor:
        return torch.arange(count, device=offset.device, dtype=offset.dtype) * step + start

    pad = [int(p) for p in branch.padding]
    y = (
        offset[:, :, :, :, 0]
        + line(Kh, branch.dilation[0]).view(Kh, 1, 1, 1)
        + line(Ho, branch.stride[0], -pad[0])[:, None]
    )
    x = offset[:, :, :, :, 1] + line(Kw, branch.dilation[1]).view(Kw, 1, 1) + line(Wo, branch.stride[1], -pad[1])
    counts = (y < H) & (x < W) & ((y > -1) & (x > -1) if boundary == "zeros" else (y >= 0) & (x >= 0))
    return _total(offset, 4, counts)


def _total(offset: Tensor, pair: int, counts: Tensor) -> _Totals:
    """Add up offsets whose coordinates stand along dimension `pair`; `counts` says which samples are inside."""
    finite = offset.isfinite()
    broken = ~finite.all(pair)
    absolute = torch.where(finite, offset.abs(), 0)
    numbers = (finite.sum(), absolute.sum(), absolute.max(), (~counts & ~broken).sum(), broken.sum())
    sums = torch.stack([number.to(offset.dtype) for number in numbers]).tolist()
    return _Totals(1, sums[0], sums[1], sums[2], broken.numel(), sums[3], sums[4])
