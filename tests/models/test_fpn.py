"""The pyramid: what flows from where to where."""

from __future__ import annotations

import torch
from torch import nn

from pliant.models.fpn import FPN


def _plain(in_channels: tuple[int, ...], **options: int) -> FPN:
    """Return a pyramid of one channel that only adds: lateral weights 1, the output keeps what is there."""
    fpn = FPN(in_channels, 1, **options)
    for lateral, output in zip(fpn.lateral, fpn.output, strict=True):
        nn.init.ones_(lateral.weight)
        nn.init.dirac_(output.weight)
    return fpn


def test_each_level_adds_the_coarser_one() -> None:
    fine, coarse = torch.arange(16.0).reshape(1, 1, 4, 4), torch.tensor([[10.0, 20], [30, 40]]).reshape(1, 1, 2, 2)
    first, second, third = _plain((1, 1))([fine, coarse])
    up = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(first, fine + up) and torch.equal(second, coarse)
    # One more level: every second pixel.
    assert third.tolist() == [[[[10]]]]


def test_lateral_connections_sum_channels() -> None:
    maps = [torch.ones(2, 3, 4, 4), torch.ones(2, 5, 2, 2)]
    first, second = _plain((3, 5), extra=0)(maps)
    assert (first == 8).all() and (second == 5).all()


def test_odd_and_equal_sizes() -> None:
    torch.manual_seed(0)
    fpn = FPN((4, 4, 4), 6, extra=2)
    sizes = [(7, 5), (4, 3), (4, 3)]
    levels = fpn([torch.randn(1, 4, *size, requires_grad=True) for size in sizes])
    assert [tuple(x.shape[1:]) for x in levels] == [(6, 7, 5), (6, 4, 3), (6, 4, 3), (6, 2, 2), (6, 1, 1)]
    levels[0].sum().backward()
    # The finest level knows of all the others.
    assert all(layer.weight.grad.abs().max() > 0 for layer in fpn.lateral)
