"""Deformable RoI pooling: the yardstick is a copy of the output, the peer is grid_sample in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from measuring import Call, Problem
from pliant.ops import deform_roi_pool
from pliant.testing import ROI_SPEED as CASES
from pliant.testing import RoICase

__all__ = ["CASES", "problem"]

GAMMA = 0.1


def problem(case: RoICase, backward: bool, peers: str) -> Problem:
    """Return the contestants for one case: `pliant` in both layouts, a copy of the output, grid_sample."""
    nchw = case.tensors("deform_roi_pool")
    nhwc = case.tensors("deform_roi_pool", channels_last=True)
    R, C = case.rois, case.input[1]
    copied = torch.randn(R, C, *case.output_size)
    grad = torch.randn(copied.shape, generator=torch.Generator().manual_seed(1))
    arguments = case.arguments("deform_roi_pool")

    def own(implementation: str) -> Callable[..., Tensor]:
        def run(input: Tensor, rois: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
            return deform_roi_pool(
                input, rois, offset, gamma=GAMMA, mask=mask, **arguments, implementation=implementation
            )

        return run

    def sampled(*tensors: Tensor) -> Tensor:
        return grid_sample(case, *tensors)

    def exact() -> tuple[Tensor, ...]:
        # Gradients of the map are sums over all RoIs; of the rest the first RoI is compared.
        wide = {name: t.double() for name, t in nchw.items()}
        return tuple(t[:1] for t in call(own("reference"), wide, grad.double(), backward)())

    contestants = [
        Call("copy of the output", lambda: copied.clone(), checked=False),
        Call("pliant nchw", call(own("native"), nchw, grad, backward)),
        Call("pliant channels_last", call(own("native"), nhwc, grad, backward)),
    ]
    if peers != "none":
        contestants.append(Call("grid_sample", call(sampled, nchw, grad, backward)))
    bins = "×".join(map(str, case.output_size))
    shape = f"{case.input}, {R} RoIs, {bins} bins, {case.sampling_ratio}×{case.sampling_ratio} samples"
    return Problem(case.name, shape, contestants, {"copy of the output": 1.0}, exact)


def call(
    function: Callable[..., Tensor], t: dict[str, Tensor], grad: Tensor, backward: bool
) -> Callable[[], tuple[Tensor, ...]]:
    """Return the call to time: the output, and with `backward` the gradients of map, offset and mask."""
    tensors = {name: x.detach().requires_grad_(backward and name != "rois") for name, x in t.items()}
    inputs = [tensors[name] for name in ("input", "rois", "offset", "mask")]

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (function(*inputs),)

    def both() -> tuple[Tensor, ...]:
        y = function(*inputs)
        return (y.detach(), *torch.autograd.grad(y, [x for x in inputs if x.requires_grad], grad))

    return both if backward else forward


def grid_sample(case: RoICase, input: Tensor, rois: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
    """Deformable RoI pooling of one image as PyTorch users write it: one grid_sample, one mean over samples."""
    _, C, H, W = input.shape
    (Ph, Pw), n, R = case.output_size, case.sampling_ratio, len(rois)
    start = rois[:, 1:3] * case.spatial_scale - 0.5
    extent = (rois[:, 3:] - rois[:, 1:3]) * case.spatial_scale
    within = (torch.arange(n) + 0.5) / n
    shift = GAMMA * extent[:, :, None, None] * offset

    def positions(axis: int, bins: int) -> Tensor:
        """Return x (axis 0) or y (axis 1) without offsets: (R, bins·n)."""
        steps = (torch.arange(bins)[:, None] + within).flatten() / bins
        return start[:, axis, None] + steps * extent[:, axis, None]

    x = positions(0, Pw).view(R, 1, 1, Pw, n) + shift[:, 0, :, None, :, None]
    y = positions(1, Ph).view(R, Ph, n, 1, 1) + shift[:, 1, :, None, :, None]
    x, y = torch.broadcast_tensors(x, y)
    # RoIAlign's border: 0 beyond one pixel outside, else the nearest position inside, which is padding_mode="border".
    counts = (x >= -1) & (x <= W) & (y >= -1) & (y <= H)
    grid = torch.stack(((2 * x + 1) / W - 1, (2 * y + 1) / H - 1), -1).view(1, R * Ph * n, Pw * n, 2)
    samples = F.grid_sample(input, grid, padding_mode="border", align_corners=False)
    samples = samples.view(C, R, Ph, n, Pw, n) * counts
    return samples.mean((3, 5)).transpose(0, 1) * mask
