"""Where queries look: what is recorded, which query is chosen, and what is drawn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pliant.nn import DeformConv2d, MSDeformAttn
from pliant.ops import ms_deform_attn
from pliant.show import canvas, figures
from pliant.show.attention import Attention, attention, draw
from pliant.show.view import view

LEVELS = ((8, 12), (4, 6))


class Encoder(nn.Module):
    """A stem with a deformable convolution, and two layers in which every pixel of two levels is a query."""

    def __init__(self, points: int | list[int] = 3) -> None:
        super().__init__()
        self.stem = DeformConv2d(3, 16, 3, padding=1)
        self.layers = nn.ModuleList(MSDeformAttn(16, levels=2, heads=4, points=points) for _ in range(2))

    def forward(self, image: Tensor) -> Tensor:
        map = self.stem(image)
        x = torch.cat([map.flatten(2), nn.functional.avg_pool2d(map, 2).flatten(2)], 2).transpose(1, 2)
        centres = [
            torch.stack(torch.meshgrid((torch.arange(W) + 0.5) / W, (torch.arange(H) + 0.5) / H, indexing="xy"), 2)
            for H, W in LEVELS
        ]
        references = torch.cat([c.reshape(-1, 2) for c in centres])[None, :, None].expand(1, -1, 2, -1)
        for layer in self.layers:
            x = x + layer(x, references, x, LEVELS)
        return map + x.mean()


def test_samples_are_those_of_the_layer() -> None:
    torch.manual_seed(0)
    net = Encoder().eval()
    found = attention(net, torch.randn(3, *LEVELS[0]))
    assert list(found) == ["layers.0", "layers.1"]
    one = found["layers.1"]
    assert one.levels == LEVELS and one.points == (3, 3)
    assert one.locations.shape == (120, 4, 6, 2) and one.weights.shape == (120, 4, 6)
    # Fresh layers weight all samples alike; the first head looks to the right, in steps of one pixel.
    torch.testing.assert_close(one.weights, torch.full_like(one.weights, 1 / 6))
    steps = torch.tensor([1.5, 2.5, 3.5]).double()
    torch.testing.assert_close(one.locations[0, 0, :3, 0] * 12, steps, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one.locations[0, 0, 3:, 0] * 6, steps - 0.25, rtol=1e-6, atol=1e-6)
    # Hooks are gone.
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())


def test_the_nearest_query() -> None:
    torch.manual_seed(0)
    one = attention(Encoder().eval(), torch.randn(3, *LEVELS[0]))["layers.0"]
    # Heads look in opposite directions, so that a query's samples lie around its own pixel.
    assert one.nearest((5.5 / 12, 3.5 / 8)) == 3 * 12 + 5
    locations = one.locations.clone()
    locations[41] = torch.nan
    assert Attention(locations, one.weights, one.levels, one.points).nearest((0.0, 0.0)) in (0, 41, 96)


class Ragged(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        value = image.flatten(2).transpose(1, 2).unsqueeze(2)
        return ms_deform_attn(value, [(4, 6)], None, torch.rand(1, 2, 1, 5, 2), torch.rand(1, 2, 1, 5), points=[5])


def test_calls_outside_a_layer_and_ragged_points() -> None:
    found = attention(Ragged(), torch.randn(3, 4, 6))
    assert list(found) == [""] and found[""].points == (5,)
    assert attention(nn.Conv2d(3, 4, 3), torch.randn(3, 4, 6)) == {}


def test_areas_are_weights() -> None:
    pytest.importorskip("matplotlib")
    weights = torch.tensor([[[0.1, 0.4, 0.2], [0.3, 0.0, 0.0]]]).double()
    locations = torch.tensor([0.5, 0.25]).double().expand(1, 2, 3, 2)
    figure = canvas.sheet(6, 3)
    draw(figure, Attention(locations, weights, ((30, 30), (2, 3)), (2, 1)), 0, torch.rand(8, 12, 3).numpy())
    first, second = figure.axes
    dots = [c for c in first.collections if c.get_zorder() == 4]
    assert [len(c.get_offsets()) for c in dots] == [2, 2]
    areas = torch.tensor(dots[0].get_sizes())
    torch.testing.assert_close(areas[1] / areas[0], torch.tensor(4.0).double(), rtol=1e-6, atol=1e-6)
    assert dots[0].get_offsets()[0].tolist() == [0.5 * 12 - 0.5, 0.25 * 8 - 0.5]
    # Pixels are marked where there are few.
    assert [len(c.get_offsets()) for c in second.collections if c.get_zorder() == 3] == [6]
    assert not [c for c in first.collections if c.get_zorder() == 3]


def test_a_figure_for_each_layer() -> None:
    pytest.importorskip("matplotlib")
    torch.manual_seed(0)
    look = view(Encoder().eval(), torch.randn(3, *LEVELS[0]), layer="stem", point=(5.0, 3.0))
    made = list(figures._attention(look))
    assert [figure.name for figure in made] == ["attention-1", "attention-2"]
    assert made[0].title == "Where a query of layers.1 looks" and made[0].data.startswith(b"\x89PNG")
    plain = view(DeformConv2d(3, 4, 3, padding=1).eval(), torch.randn(3, 8, 12))
    with pytest.raises(LookupError, match=r"^The model has no multi-scale deformable attention"):
        next(figures._attention(plain))
