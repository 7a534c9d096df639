"""RoI pooling: the limit is a copy of the output, the peer of the deformable form is grid_sample in plain PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import peers as others
from measuring import Call, Problem, Setting, call, gradient, inputs
from pliant import ops
from pliant.testing import RoICase

GAMMA = 0.1  # the default of deform_roi_pool


def problem(op: str, case: RoICase, setting: Setting) -> Problem:
    """Return a problem of one operator: pliant in both layouts, a copy of the output, grid_sample, torchvision."""
    nhwc = inputs(case, setting, op)
    nchw = {name: x.contiguous() for name, x in nhwc.items()}
    grad = gradient((case.rois, case.input[1], *case.output_size), setting)
    trained = [name for name in nhwc if name not in ("boxes", "rois")]
    timed = functools.partial(call, backward=setting.backward, trained=trained)

    def own(implementation: str) -> Callable[..., Tensor]:
        return functools.partial(getattr(ops, op), **case.arguments(op), implementation=implementation)

    def exact() -> tuple[Tensor, ...]:
        # The gradient of the map is a sum over all RoIs; of everything else the first RoI is compared.
        wide = {name: x.double() for name, x in nchw.items()}
        return tuple(x[:1] for x in timed(own("reference"), wide, grad.double())())

    contestants = [
        Call("copy of the output", grad.clone, checked=False),
        Call("pliant nchw", timed(own(setting.implementation), nchw, grad)),
        Call("pliant channels_last", timed(own(setting.implementation), nhwc, grad)),
    ]
    if op == "deform_roi_pool" and setting.device == "cpu" and setting.peers != "none":
        contestants.append(Call("grid_sample", timed(functools.partial(grid_sample, case), nchw, grad)))
    if setting.peers == "all":
        # torchvision has no deformable form: beside that one stands its RoIAlign, which moves no bins.
        plain = "roi_align" if op == "deform_roi_pool" else op
        for name, function in others.available({"torchvision": lambda: others.torchvision_roi(plain, case)}):
            boxed = {"input": nchw["input"], "boxes": nchw["rois" if "rois" in nchw else "boxes"]}
            run = call(function, boxed, grad, setting.backward, ("input",))
            # It rounds boxes to the dtype of the map: in a lower precision the result is another one.
            contestants.append(Call(f"{name} {plain}", run, checked=op == plain and setting.precision == "float32"))
    bins = "×".join(map(str, case.output_size))
    samples = f"{case.sampling_ratio}×{case.sampling_ratio}"
    shape = f"{case.input}, {case.rois} RoIs, {bins} bins" + ("" if op == "roi_pool" else f", {samples} samples")
    return Problem(case.name, shape, contestants, {"copy of the output": 1.0}, exact)


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
