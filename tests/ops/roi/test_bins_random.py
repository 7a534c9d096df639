"""Random shapes, layouts and boxes, wild ones among them: the kernels agree with the references."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from pliant import ops
from pliant.testing import TOLERANCE, error

WILD = (math.nan, math.inf, -math.inf, 3e38, -3e38, 1e9, -1e9, 0.0, -0.5, 0.5)


def _strided(t: Tensor, draw: random.Random) -> Tensor:
    """Return the same values in a layout that is drawn."""
    order = draw.sample(range(t.dim()), t.dim())
    t = t.permute(order).contiguous().permute([order.index(d) for d in range(t.dim())])
    return torch.stack([t, t], -1)[..., 0] if draw.random() < 0.3 else t


@pytest.mark.parametrize("name", ["roi_pool", "ps_roi_pool"])
@pytest.mark.parametrize("seed", range(30))
def test_kernels_agree_with_references(seed: int, name: str) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(draw.choice([1, 2, 3]))
    dtype = draw.choice(list(TOLERANCE))
    work = torch.float64 if dtype == torch.float64 else torch.float32
    N, H, W = draw.randint(1, 3), draw.randint(1, 20), draw.randint(1, 20)
    size = (draw.randint(1, 7), draw.randint(1, 7))
    C = draw.choice([1, 2, 5, 33]) * (size[0] * size[1] if name == "ps_roi_pool" else draw.choice([1, 7]))
    scale = draw.choice([1.0, 0.5, 0.0625, 0.3])

    R = draw.choice([0, 1, 4, 23])
    corner = torch.rand(R, 4) * torch.tensor([W, H, W, H]) / scale * 1.4 - 0.2 * torch.tensor([W, H, W, H]) / scale
    wild = torch.tensor(WILD)[torch.randint(len(WILD), (R, 4))]
    corner = torch.where(torch.rand(R, 4) < 0.05, wild, corner)
    if draw.random() < 0.7:
        # The rest stays inverted now and then.
        corner = torch.cat(
            [torch.minimum(corner[:, :2], corner[:, 2:]), torch.maximum(corner[:, :2], corner[:, 2:])], 1
        )
    boxes = torch.cat([torch.randint(N, (R, 1)).float(), corner], 1).to(work)
    x = torch.randn(N, C, H, W).to(dtype)
    if draw.random() < 0.5:
        x = x.round()
    if draw.random() < 0.3:
        x = torch.where(torch.rand(x.shape) < 0.02, torch.tensor(math.nan if name == "roi_pool" else 7.0).to(dtype), x)
    above = _strided(torch.randn(R, C if name == "roi_pool" else C // (size[0] * size[1]), *size).to(dtype), draw)
    strided, listed = _strided(x, draw), _strided(boxes, draw)

    def run(input: Tensor, grad: Tensor, implementation: str) -> tuple[Tensor, Tensor]:
        leaf = input.detach().requires_grad_()
        y = getattr(ops, name)(leaf, listed, size, scale, implementation=implementation)
        (gradient,) = torch.autograd.grad(y, leaf, grad)
        return y.detach(), gradient

    y, gradient = run(strided, above, "native")
    expected, expected_gradient = run(x.to(work), above.to(work), "reference")
    assert y.dtype == gradient.dtype == dtype
    assert error(y, expected) <= (0 if name == "roi_pool" else TOLERANCE[dtype])
    assert error(gradient, expected_gradient) <= TOLERANCE[dtype]
