from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pliant.models import ResNet
from pliant.nn import DeformConv2d, LocalResponseNorm
from pliant.train import multiply_adds, parameters


def test_convolutions_by_hand() -> None:
    # 8 channels out of 4, 5×5 positions (stride 2 on 9×9, padding 1), 3×3 taps, 2 groups of 2 input channels each.
    assert multiply_adds(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), 1, 4, 9, 9) == 5 * 5 * 8 * 2 * 9
    assert multiply_adds(nn.Linear(7, 3), 5, 7) == 5 * 7 * 3


def test_deformable_convolution_by_hand() -> None:
    main, taps = 6 * 4 * 9, 9 * 4  # O·C·K multiply-adds and C·K samples at each position
    first = DeformConv2d(4, 6, 3, padding=1, version=1)
    assert multiply_adds(first, 2, 4, 5, 7) == 2 * 5 * 7 * (main + 18 * 4 * 9 + 4 * taps)
    second = DeformConv2d(4, 6, 3, padding=1, version=2)
    assert multiply_adds(second, 2, 4, 5, 7) == 2 * 5 * 7 * (main + 27 * 4 * 9 + 5 * taps)


def test_a_chain_is_the_sum() -> None:
    chain = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), LocalResponseNorm(5), nn.MaxPool2d(2))
    assert multiply_adds(chain, 1, 1, 4, 4) == 16 * (2 + 2 + 2 * 7)


def test_frozen_normalization_costs_what_live_does() -> None:
    live, frozen = (ResNet(18, width=4, stem="small", frozen_bn=frozen) for frozen in (False, True))
    assert multiply_adds(live, 1, 3, 32, 32) == multiply_adds(frozen, 1, 3, 32, 32)


def test_counting_changes_nothing() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    mean = net[1].running_mean.clone()
    multiply_adds(net, 3, 1, 4, 4)
    assert net.training and torch.equal(net[1].running_mean, mean)
    assert not any(layer._forward_hooks for layer in net.modules())


def test_unknown_layers_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight

    with pytest.raises(TypeError, match="does not know what a Odd costs"):
        multiply_adds(Odd(), 1, 2)


def test_parameters() -> None:
    assert parameters(nn.Linear(7, 3)) == 24
