from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from pliant.nn import DeformConv2d
from pliant.studies import measures
from pliant.studies.geometry import build
from pliant.studies.geometry import measures as geometry


def _grid(layer: DeformConv2d, move: Tensor) -> Tensor:
    """Return offsets that put every tap k, a vector from the middle of the kernel, at move @ k."""
    Kh, Kw = layer.kernel_size
    middle = ((torch.arange(k) - (k - 1) / 2) for k in (Kh, Kw))
    at = torch.stack(torch.meshgrid(*middle, indexing="ij"), -1)
    regular = at * torch.tensor(layer.dilation, dtype=torch.float32)
    return (regular @ move.mT - regular).reshape(1, -1, 1, 1)


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_zero_offsets_give_the_dilation(dilation: int) -> None:
    layer = DeformConv2d(2, 3, 3, padding=dilation, dilation=dilation, offset_groups=2)
    offset, _ = layer.predict(torch.randn(2, 2, 6, 5))
    distance = measures.effective_dilation(layer, offset)
    assert torch.equal(distance, torch.full((2, 6, 5), float(dilation)))


@pytest.mark.parametrize("kernel", [3, (2, 5)])
def test_scaled_and_rotated_grids(kernel: int | tuple[int, int]) -> None:
    layer = DeformConv2d(1, 1, kernel, dilation=2)
    double = measures.effective_dilation(layer, _grid(layer, 2.5 * torch.eye(2)))
    torch.testing.assert_close(double, torch.full((1, 1, 1), 5.0))
    c, s = math.cos(0.7), math.sin(0.7)
    turned = measures.effective_dilation(layer, _grid(layer, torch.tensor([[c, -s], [s, c]])))
    torch.testing.assert_close(turned, torch.full((1, 1, 1), 2.0))


def test_outside() -> None:
    layer = DeformConv2d(1, 1, 3, padding=1)
    zero = torch.zeros(1, 18, 4, 4)
    # Taps at −1 read nothing at all: of 9·16 samples those of the border taps on the four sides.
    assert measures.outside(layer, zero, 4, 4).sum() == 4 * 3 * 4 - 4
    zero[0, 0, 2, 2] = -2.5  # the corner tap of row 2 moves from row 1 to −1.5
    assert measures.outside(layer, zero, 4, 4).sum() == 4 * 3 * 4 - 4 + 1


def test_offset_statistics() -> None:
    net = build("deform-v1-3")
    with torch.no_grad():
        net.features.conv4.conv_offset.bias.fill_(0.25)
    found = geometry.offsets(net, [torch.rand(2, 1, 64, 64), torch.rand(1, 1, 64, 64)])
    assert list(found) == ["conv3", "conv4", "conv5"]
    assert found["conv4"]["mean_abs"] == 0.25
    assert found["conv3"] == {"mean_abs": 0.0, "outside": pytest.approx((4 * 3 * 16 - 4) / (9 * 256))}


def test_dilation_is_taken_on_the_object() -> None:
    net = build("deform-v1-1")
    canvas = torch.zeros(2, 1, 64, 64)
    canvas[0, :, 16:40, 20:44] = 1
    found = geometry.dilation_of_objects(net, canvas)
    assert list(found) == ["conv5"]
    assert found["conv5"][0] == 1
    assert found["conv5"][1].isnan()


def test_adaptation_of_a_net_that_does_not_adapt() -> None:
    net = build("deform-v1-1")
    tests = []
    for side in (8, 16, 32):
        canvas = torch.zeros(6, 1, 64, 64)
        canvas[:, :, :side, :side] = 1
        tests.append([canvas[:4], canvas[4:]])
    rows, spearman = geometry.adaptation(net, tests)
    assert sum(row["n"] for row in rows) == 18
    assert {row["dilation"] for row in rows} == {1.0}
    assert {row["scale"] for row in rows} == {8.0, 16.0, 32.0}
    assert spearman == {"conv5": {"rho": 0.0, "low": 0.0, "high": 0.0}}


def test_correlation() -> None:
    random = np.random.default_rng(0)
    size = random.random((3, 200))
    value = size + random.normal(0, 0.3, size.shape)
    found = measures.correlation(size, value)
    assert found["rho"] == pytest.approx(spearmanr(size.ravel(), value.ravel()).statistic, abs=1e-12)
    assert found["low"] < found["rho"] < found["high"]
    assert found == measures.correlation(size, value)
    assert measures.correlation(size, size)["low"] == pytest.approx(1)
    value[0, :50] = np.nan
    known = np.isfinite(value)
    assert measures.correlation(size, value)["rho"] == pytest.approx(spearmanr(size[known], value[known]).statistic)


def test_bootstrap_keeps_drawings_of_an_image_together() -> None:
    """Four identical drawings of every image tell no more than one: the interval is as wide."""
    random = np.random.default_rng(0)
    size = random.random((1, 60))
    value = size + random.normal(0, 0.5, size.shape)
    once, fourfold = (measures.correlation(np.repeat(size, n, 0), np.repeat(value, n, 0)) for n in (1, 4))
    width = once["high"] - once["low"]
    assert fourfold["high"] - fourfold["low"] == pytest.approx(width, rel=0.02)
