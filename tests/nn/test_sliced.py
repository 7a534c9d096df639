"""A strided 1×1 convolution of few channels: what oneDNN computes of it may end the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from pliant.nn import DeformConv2d, SlicedConv2d, undeformify
from pliant.testing import TOLERANCE, error

# Every layer trains on a channels_last batch, as every batch of our detectors is.
CHILD = """
import sys, torch
from torch import nn
from pliant.interop import dcnv2, mmcv
from pliant.models import FasterRCNN, ResNet
from pliant.nn import DeformConv2d, undeformify

torch.manual_seed(0)
torch.set_num_threads(1)
for C in (3, 7, 8, 12, 15):
    input = torch.randn(4, C, 64, 64).contiguous(memory_format=torch.channels_last)
    layers = [
        DeformConv2d(C, 16, 1, 2),
        DeformConv2d(C, 8, 1, 2, padding=1, version=1),
        undeformify(DeformConv2d(C, 16, 1, 2, version=1)),
        mmcv.ModulatedDeformConv2dPack(C, 16, 1, stride=2),
        dcnv2.DCN(C, 16, 1, 2, 0),
    ]
    for layer in layers:
        for _ in range(10):
            layer(input).square().sum().backward()
target = {"boxes": torch.tensor([[10.0, 20, 50, 60]]), "labels": torch.tensor([1])}
for backbone in (ResNet(10, width=8, stem="small"), ResNet(26, width=2, stem="small", stride_in="1x1")):
    net = FasterRCNN(backbone, classes=3, channels=16, hidden=16, levels=(1, 2, 3))
    for _ in range(3):
        sum(net([torch.rand(3, 128, 128)] * 4, [target] * 4).values()).backward()
print("done")
"""


@pytest.mark.parametrize("isa", ["", "AVX2"])
def test_narrow_networks_train(isa: str) -> None:
    """In a process of its own: where the workspace is overrun, no exception is raised."""
    env = {**os.environ, **({"ONEDNN_MAX_CPU_ISA": isa} if isa else {})}
    done = subprocess.run([sys.executable, "-c", CHILD], env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def _gradients(conv: nn.Conv2d, input: Tensor) -> list[Tensor]:
    input = input.detach().requires_grad_()
    output = conv(input)
    direction = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return [output.detach(), *torch.autograd.grad(output, [input, *conv.parameters()], direction)]


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"stride": (1, 3), "bias": False},
        {"stride": (2, 3), "padding": (1, 2), "groups": 2},
        {"stride": 2, "padding": 1, "padding_mode": "reflect"},
        {"stride": 3, "padding": "valid"},
    ],
)
def test_it_is_the_convolution(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    sliced = SlicedConv2d.if_needed(8, 6, 1, **options, dtype=torch.float64)
    plain = nn.Conv2d(8, 6, 1, **options, dtype=torch.float64)
    assert type(sliced) is SlicedConv2d and sliced.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(sliced.state_dict())
    input = torch.randn(2, 8, 7, 9, dtype=torch.float64)
    for batch in (input, input.contiguous(memory_format=torch.channels_last), input[0]):
        for actual, expected in zip(_gradients(sliced, batch), _gradients(plain, batch), strict=True):
            assert actual.shape == expected.shape and error(actual, expected) <= TOLERANCE[torch.float64]


def test_other_convolutions_are_torchs_own() -> None:
    for args in ((16, 8, 1, 2), (8, 8, 1, 1), (8, 8, 3, 2)):
        assert type(SlicedConv2d.if_needed(*args)) is nn.Conv2d
    assert type(DeformConv2d(8, 8, 3, 2).conv_offset) is nn.Conv2d
    layer = SlicedConv2d(4, 4, 3, 2, padding=1)
    torch.testing.assert_close(layer(torch.ones(1, 4, 5, 5)), nn.Conv2d.forward(layer, torch.ones(1, 4, 5, 5)))
    assert type(undeformify(DeformConv2d(16, 8, 1, 2))) is nn.Conv2d
