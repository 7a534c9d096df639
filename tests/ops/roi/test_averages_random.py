"""The kernels against the references on boxes and geometries nobody would think of."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from pliant import ops
from pliant.testing import TOLERANCE, error

NOWHERE = (float("nan"), float("inf"), -float("inf"), 1e38, -3e38, 1e19, -1e12, 2.0**31, -(2.0**33), 1e6, -3e4, 1e-45)


def _strided(tensor: Tensor, draw: random.Random) -> Tensor:
    """Return the same values in some other memory layout."""
    layout = draw.choice(["dense", "channels_last", "slice"])
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return torch.stack([tensor, tensor], -1)[..., 0] if layout == "slice" else tensor


def _some_wild(tensor: Tensor, share: float, draw: random.Random) -> Tensor:
    wild = torch.rand(tensor.shape) < share
    tensor[wild] = torch.tensor([draw.choice(NOWHERE) for _ in range(int(wild.sum()))])
    return tensor


@pytest.mark.parametrize("seed", range(80))
def test_random_geometry(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    op = draw.choice(["deform_roi_pool", "roi_align", "deform_psroi_pool", "ps_roi_align"])
    N, R, H, W = draw.randint(1, 3), draw.choice([0, 1, 3, 8]), draw.randint(1, 12), draw.randint(1, 12)
    Ph, Pw, part, group, classes = (draw.randint(1, 5) for _ in range(5))
    scale = draw.choice([1.0, 0.25, 1 / 16, 1 / 3])
    each = draw.choice([1, 2, 9, 40])
    options = {"output_size": (Ph, Pw), "spatial_scale": scale, "sampling_ratio": draw.choice([-1, 0, 0, 1, 2, 5])}
    C = each
    if op == "ps_roi_align":
        C = each * Ph * Pw
    elif op == "deform_psroi_pool":
        C = each * classes * group**2
        Pw = Ph
        options = {"output_size": Ph, "spatial_scale": scale, "group_size": group, "part_size": part}
        options["sample_per_part"] = draw.randint(1, 5)

    # Boxes at most a few times as large as the map, some of them inverted; then some that are nowhere.
    span = torch.tensor([W, H, W, H]) / scale
    corners = (torch.rand(R, 4) * draw.choice([1.0, 4.0]) - draw.choice([0.0, 0.5])) * span
    if draw.random() < 0.7:
        corners = torch.cat(
            [torch.minimum(corners[:, :2], corners[:, 2:]), torch.maximum(corners[:, :2], corners[:, 2:])], 1
        )
    # A box that is there and as large as the map, so that what is compared is not all 0.
    corners = torch.cat([_some_wild(corners, draw.choice([0.0, 0.3]), draw), torch.tensor([[0, 0, W, H]]) / scale])
    rois = torch.cat([torch.randint(N, (R + 1, 1)).float(), corners], 1)

    dtype = draw.choice(list(TOLERANCE))
    tensors = {"input": torch.randn(N, C, H, W)}
    if op.startswith("deform"):
        shape = (2, Ph, Pw) if op == "deform_roi_pool" else (2 * classes, part, part)
        offset = torch.randn(R + 1, *shape) * draw.choice([0.0, 1.0, 10.0])
        offset[:-1] = _some_wild(offset[:-1], draw.choice([0.0, 0.2]), draw)
        tensors |= {"offset": offset, "mask": torch.rand(R + 1, 1, Ph, Pw)}
    tensors = {name: t.to(dtype) for name, t in tensors.items()}
    aligned = {"aligned": draw.random() < 0.5} if op == "roi_align" else {}
    boxes = {"rois" if op.startswith("deform") else "boxes": _strided(rois, draw)}

    def run(implementation: str) -> list[Tensor]:
        leaves = {name: _strided(t, draw).detach().requires_grad_() for name, t in tensors.items()}
        output = getattr(ops, op)(**leaves, **boxes, **options, **aligned, implementation=implementation)
        torch.manual_seed(seed)
        output.backward(_strided(torch.randn(output.shape).to(dtype), draw))
        return [output, *(leaf.grad for leaf in leaves.values())]

    # In the same dtype: in float64 a position right at a pixel's edge may lie on its other side.
    for actual, expected in zip(run("native"), run("reference"), strict=True):
        assert torch.isfinite(actual).all()
        assert error(actual, expected) <= TOLERANCE[dtype]
