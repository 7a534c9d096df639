"""The kernel against the reference on geometries nobody would think of."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from pliant.ops import deform_conv2d
from pliant.testing import TOLERANCE, error

NOWHERE = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 2.0**31, -(2.0**33), 1e-45, -1.0, -0.999999)


def _strided(tensor: Tensor, draw: random.Random) -> Tensor:
    """Return the same values in some other memory layout."""
    layout = draw.choice(["dense", "channels_last", "slice"])
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    return torch.stack([tensor, tensor], -1)[..., 0] if layout == "slice" else tensor


@pytest.mark.parametrize("seed", range(60))
def test_random_geometry(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    N, groups, offset_groups = draw.randint(0, 3), draw.choice([1, 1, 2, 3]), draw.choice([1, 2, 3])
    C, O = groups * offset_groups * draw.choice([1, 2, 3, 4, 5]), groups * draw.choice([1, 2, 7])
    if draw.random() < 0.2:
        groups = O = C
    sizes = [(draw.randint(1, 12), draw.randint(1, 5), draw.randint(1, 3), draw.randint(1, 2)) for _ in "yx"]
    # Just enough padding for one output row and column, and sometimes more.
    padding = tuple(max(0, (d * (k - 1) + 2 - n) // 2) + draw.randint(0, 2) for n, k, _, d in sizes)
    (H, Kh, sh, dh), (W, Kw, sw, dw) = sizes
    K, Ho, Wo = (
        Kh * Kw,
        (H + 2 * padding[0] - dh * (Kh - 1) - 1) // sh + 1,
        (W + 2 * padding[1] - dw * (Kw - 1) - 1) // sw + 1,
    )
    dtype = draw.choice(list(TOLERANCE))
    offset = torch.randn(N, 2 * offset_groups * K, Ho, Wo) * draw.choice([0.0, 1.0, 5.0, 100.0])
    wild = torch.rand(offset.shape) < draw.choice([0.0, 0.3])
    offset[wild] = torch.tensor([draw.choice(NOWHERE) for _ in range(int(wild.sum()))])
    tensors = {
        "input": torch.randn(N, C, H, W).to(dtype),
        "offset": offset.to(dtype),
        "weight": torch.randn(O, C // groups, Kh, Kw).to(dtype),
        "mask": torch.rand(N, offset_groups * K, Ho, Wo).to(dtype),
    }
    geometry = {"stride": (sh, sw), "padding": padding, "dilation": (dh, dw)}
    grad = _strided(torch.randn(N, O, Ho, Wo).to(dtype), draw)

    def run(implementation: str, boundary: str) -> list[Tensor]:
        leaves = {name: _strided(t, draw).detach().requires_grad_() for name, t in tensors.items()}
        output = deform_conv2d(**leaves, **geometry, boundary=boundary, implementation=implementation)
        output.backward(grad)
        return [output, *(leaf.grad for leaf in leaves.values())]

    # In the same dtype: in float64 a position right at a pixel's edge may lie on its other side.
    for boundary in ("zeros", "clamp"):
        for actual, expected in zip(run("native", boundary), run("reference", boundary), strict=True):
            assert torch.isfinite(actual).all()
            assert error(actual, expected) <= TOLERANCE[dtype]
