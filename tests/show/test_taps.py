"""Taps of sequences and volumes: where they lie, and what is drawn of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pliant.nn import DeformConv1d, DeformConv2d, DeformConv3d
from pliant.show import canvas
from pliant.show.taps import Taps, draw, figures, taps


def _moved(layer: nn.Module) -> nn.Module:
    """Return a layer whose offsets depend on what it reads."""
    torch.manual_seed(0)
    nn.init.normal_(layer.conv_offset.weight, std=0.3)
    nn.init.normal_(layer.conv_offset.bias)
    return layer.double()


def test_samples_are_what_the_layer_reads() -> None:
    """With one tap's weight 1 and all others 0, a layer returns that sample times its mask."""
    one = _moved(DeformConv1d(2, 1, 3, stride=2, padding=2, dilation=2, bias=False, offset_groups=2))
    three = _moved(DeformConv3d(1, 1, (1, 2, 3), stride=(1, 2, 1), padding=1, dilation=(1, 1, 2), bias=False))
    for layer, size in ((one, (15,)), (three, (4, 7, 6))):
        D, K = len(size), layer.weight[0, 0].numel()
        # Values that rise linearly are their own position; inside, linear sampling is exact.
        slopes = torch.tensor([1.0, 10.0, 100.0][:D]).double()
        places = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"), -1).double()
        input = (places @ slopes).expand(layer.in_channels, *size)
        found = taps(layer, input)[""]
        assert found.size == size and found.moved.shape == found.regular.shape == (*found.mask.shape, D)
        last = torch.tensor(size) - 1
        inside = ((found.moved >= 0) & (found.moved <= last)).all(-1)
        assert inside.sum() > 20
        for tap in range(len(found.mask)):
            with torch.no_grad():
                layer.weight.zero_().view(layer.in_channels, K)[tap // K, tap % K] = 1
                output = layer(input[None])[0, 0]
            expected = (found.moved[tap] @ slopes) * found.mask[tap]
            torch.testing.assert_close(output[inside[tap]], expected[inside[tap]], rtol=1e-10, atol=1e-10)
            # What does not count reads nothing, but for samples of 0.
            assert not output[~found.counts[tap]].any()


class Aligned(nn.Module):
    """Two layers, the second called twice with a guide by name, and a layer of images that is not drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.first = DeformConv1d(1, 16, 3, 2, padding=1)
        self.second = DeformConv1d(16, 16, 3, padding=1, guide_channels=16, version=1)
        self.image = DeformConv2d(1, 1, 3, padding=1)
        self.dropout = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.second(input=x, guide=x)
        return self.second(x, guide=self.dropout(x) + self.image(x[:, None])[:, 0])


def test_the_last_call_of_every_layer_is_kept() -> None:
    torch.manual_seed(0)
    net = Aligned()
    nn.init.normal_(net.second.conv_offset.bias, std=2.0)
    found = taps(net, torch.randn(1, 20))
    assert list(found) == ["first", "second"]
    assert found["second"].size == (10,) and bool((found["second"].mask == 1).all())
    torch.testing.assert_close(
        found["second"].moved - found["second"].regular,
        net.second.conv_offset.bias.detach().double().view(3, 1, 1).expand(3, 10, 1),
        rtol=1e-6, atol=1e-6,
    )  # fmt: skip
    assert net.training and not any(module._forward_hooks for module in net.modules())


def _taps(moved: Tensor, mask: Tensor | None = None, size: tuple[int, ...] = (20,)) -> Taps:
    """Return taps of a kernel of three, or 3×1×1, with padding 1."""
    shape = moved.shape[1:-1]
    grid = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"), -1).double()
    step = torch.tensor([1.0, 0.0, 0.0][: len(shape)]).double()
    regular = torch.stack([grid - step, grid, grid + step])
    return Taps(torch.rand(2, *size).double(), regular, moved, torch.ones(3, *shape) if mask is None else mask)


def test_outputs_are_chosen_by_their_offsets_and_by_their_place() -> None:
    regular = _taps(torch.zeros(3, 20, 1).double()).regular
    moved = regular.clone()
    moved[:, 0], moved[:, 12], moved[:, 13], moved[1, 4] = 9.0, 30.0, torch.nan, 5.0
    found = _taps(moved)
    assert found.farthest(2) == [(12,), (4,)]  # 0 has taps outside, 13 reads nothing
    assert found.nearest((6.4,)) == (6,) and found.nearest((99.0,)) == (19,)
    assert [bool(read) for read in found.counts[1, [4, 12, 13]]] == [True, False, False]
    torch.testing.assert_close(found.over((40,)).regular[1, :, 0], 2 * torch.arange(20).double() + 0.5)


def test_a_curve_carries_its_samples() -> None:
    pytest.importorskip("matplotlib")
    regular = _taps(torch.zeros(3, 20, 1).double()).regular
    moved, mask = regular.clone(), torch.ones(3, 20).double()
    moved[:, 8, 0] = torch.tensor([4.5, 8.0, 25.0])
    mask[:, 8] = torch.tensor([0.5, 0.25, 1.0])
    figure, curve = canvas.sheet(6, 4), torch.arange(20).double() ** 2
    assert draw(figure, _taps(moved, mask), curve[None], (8,)) == [(8,)]
    over, under = figure.axes
    np.testing.assert_allclose(over.lines[0].get_ydata(), curve)
    rings, dots, cross = (np.asarray(drawn.get_offsets()) for drawn in over.collections[:3])
    np.testing.assert_allclose(rings, [[7, 49], [8, 64], [9, 81]])
    np.testing.assert_allclose(dots, [[4.5, 20.5], [8, 64]])  # the third lies beyond the end
    np.testing.assert_allclose(cross, [[8, 64]])
    areas = over.collections[1].get_sizes()
    assert areas[0] == pytest.approx(2 * areas[1])
    away = np.asarray(under.collections[0].get_offsets())
    assert len(under.collections) == 3 and away[7].tolist() == [8, -3.5]  # the first output's first tap reads nothing
    np.testing.assert_allclose(under.lines[1].get_ydata(), -1.0)


def test_a_tap_between_two_slices_lies_in_both() -> None:
    pytest.importorskip("matplotlib")
    size = (6, 20, 24)
    moved = _taps(torch.zeros(3, *size, 3).double(), size=size).regular.clone()
    moved[:, 2, 10, 12] = torch.tensor([[1.0, 10.0, 12.0], [2.25, 8.5, 13.0], [40.0, 10.0, 12.0]]).double()
    figure = canvas.sheet(6, 4)
    assert draw(figure, _taps(moved, size=size), position=(2, 10, 12)) == [(2, 10, 12)]
    titles = {axes.get_title(): axes for axes in figure.axes}
    assert list(titles) == ["slice 1", "slice 2", "slice 3"]
    dots = {
        name: [(*map(float, at), float(area)) for at, area in zip(drawn.get_offsets(), drawn.get_sizes(), strict=True)]
        for name, axes in titles.items()
        for drawn in axes.collections
        if drawn.get_zorder() == 5
    }
    (x, y, whole), (_, _, some), (_, _, rest) = (dots[name][0] for name in titles)
    assert (x, y) == (12.0, 10.0) and dots["slice 2"][0][:2] == dots["slice 3"][0][:2] == (13.0, 8.5)
    assert some == pytest.approx(0.75 * whole) and rest == pytest.approx(0.25 * whole)
    rings = [[c for c in axes.collections if c.get_zorder() == 4] for axes in titles.values()]
    assert [len(found[0].get_offsets()) for found in rings] == [1, 1, 1]


def test_figures_say_what_is_wrong() -> None:
    pytest.importorskip("matplotlib")
    net = Aligned().eval()
    input = torch.randn(1, 20)
    made = figures(net, input, point=(7.2,))
    assert [figure.name for figure in made] == ["taps-1", "taps-2"]
    assert made[0].title == "Where the taps of second go" and made[0].data.startswith(b"\x89PNG")
    assert "of the output 4 (crosses)" in made[1].caption and "of the output 3 (crosses)" in made[0].caption
    assert "size 10" in made[0].caption and "laid over" not in figures(net, input, layer="first")[0].caption
    with pytest.raises(
        ValueError, match=r"^'image' is no deformable layer that the model called; there are: 'first', "
    ):
        figures(net, input, layer="image")
    with pytest.raises(ValueError, match=r"^the model called no deformable layer of sequences"):
        figures(nn.Conv1d(1, 4, 3), input)
    with pytest.raises(ValueError, match=r"^the point 20 is not on the input of 20 "):
        figures(net, input, point=(20.0,))
    with pytest.raises(ValueError, match=r"^input must have shape \(C, L\) or \(C, D, H, W\), got \(1, 8, 8\)"):
        figures(net, torch.randn(1, 8, 8))
