"""AlexNet: the paper's sizes, constants and initialisation."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pliant.models
from pliant.models.alexnet import AlexNet


def _size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.fixture(scope="module")
def large() -> AlexNet:
    torch.manual_seed(0)
    return AlexNet().eval()


def test_has_the_papers_sixty_million_parameters(large: AlexNet) -> None:
    # Weights a layer: outputs × inputs of one group × taps; then one bias an output.
    convolutions = (
        96 * 3 * 121 + 96,
        256 * 48 * 25 + 256,
        384 * 256 * 9 + 384,
        384 * 192 * 9 + 384,
        256 * 192 * 9 + 256,
    )
    connected = (256 * 36 * 4096 + 4096, 4096 * 4096 + 4096, 4096 * 1000 + 1000)
    assert _size(large) == sum(convolutions) + sum(connected) == 60_965_224


def test_maps_have_the_papers_sizes(large: AlexNet) -> None:
    x = torch.zeros(1, 3, 224, 224)
    sizes = {}
    with torch.no_grad():
        for name, layer in large.features.named_children():
            x = layer(x)
            sizes[name] = tuple(x.shape[1:])
    assert sizes["conv1"] == (96, 55, 55)
    assert sizes["conv2"] == (256, 27, 27)
    assert sizes["conv3"] == sizes["conv4"] == (384, 13, 13)
    assert sizes["conv5"] == (256, 13, 13)
    assert sizes["pool5"] == (256, 6, 6)
    with torch.no_grad():
        assert large(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
        assert large(torch.zeros(1, 3, 227, 227)).shape == (1, 1000)


def test_initialisation_is_the_papers(large: AlexNet) -> None:
    ones = {"conv2", "conv4", "conv5", "fc6", "fc7"}
    for part in (large.features, large.classifier):
        for name, layer in part.named_children():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02), name
                assert torch.equal(layer.bias, torch.full_like(layer.bias, name in ones)), name


@pytest.mark.parametrize("small", [False, True])
def test_normalizes_with_the_papers_constants_after_the_relus(small: bool) -> None:
    with torch.device("meta"):
        net = AlexNet(small=small)
    names = [name for name, _ in net.features.named_children()]
    assert names[:4] == ["conv1", "relu1", "norm1", "pool1"]
    assert names[4:8] == ["conv2", "relu2", "norm2", "pool2"]
    x = torch.rand(1, 8, 3, 3, dtype=torch.float64) * 50
    for norm in (net.features.norm1, net.features.norm2):
        # The paper: α multiplies the sum over 5 neighbours, k = 2.
        sums = sum(F.pad(x * x, (0, 0, 0, 0, 2, 2))[:, i : i + 8] for i in range(5))
        torch.testing.assert_close(norm(x), x / (2 + 1e-4 * sums) ** 0.75, rtol=1e-12, atol=0)


def test_small_learns() -> None:
    torch.manual_seed(0)
    net = AlexNet(2, small=True)
    assert _size(AlexNet(10, small=True)) == 368_842
    # Two classes: bright on the left, bright on the right.
    x = torch.randn(16, 3, 64, 64)
    labels = torch.arange(16) % 2
    x[labels == 0, :, :, :32] += 1
    x[labels == 1, :, :, 32:] += 1
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    net.eval()
    assert (net(x).argmax(1) == labels).all()


def test_other_channels_and_dropout() -> None:
    net = AlexNet(10, channels=1, small=True, dropout=0.0)
    x = torch.randn(2, 1, 64, 64)
    assert torch.equal(net.train()(x), net.eval()(x))


def test_errors() -> None:
    net = AlexNet(10, small=True)
    with pytest.raises(ValueError, match=r"^AlexNet: images must be 64×64, got 80×64; resize them$"):
        net(torch.zeros(1, 3, 80, 64))
    with pytest.raises(ValueError, match=r"^AlexNet: images must be 64×64, got 8×9; resize them$"):
        net(torch.zeros(1, 3, 8, 9))
    with pytest.raises(ValueError, match=r"^AlexNet: input must have shape \(N, C, H, W\), got \(3, 64, 64\)$"):
        net(torch.zeros(3, 64, 64))
    with pytest.raises(ValueError, match=r"^AlexNet: classes and channels must be at least 1, got 0 and 3$"):
        AlexNet(0)


def test_both_ways_to_import_it_and_none_by_accident() -> None:
    assert pliant.models.AlexNet is AlexNet
    code = "import sys, pliant; sys.exit('pliant.models' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
