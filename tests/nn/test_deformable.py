"""Statistics, learning rates and histograms of layers that follow the protocol and that nobody has heard of."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.nn import DeformConv2d, DeformPSRoIPool, DeformRoIPool, OffsetHistory, OffsetStatistics, parameter_groups
from pliant.nn.deformable import (
    DeformableConvolution,
    DeformableLayer,
    DeformablePool,
    deformable_layers,
    offset_branch,
    rows_first,
)
from pliant.nn.modes import evaluation


class Line(nn.Module):
    """A deformable convolution over one dimension, three taps, whose offsets are halved."""

    branches, axes, unit, offset_scale, offset_lr_mult = ("where",), "x", "pixels", 0.5, 0.25
    modulated = False

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Conv1d(1, 3, 3, padding=1)
        for parameter in self.where.parameters():
            nn.init.zeros_(parameter)

    def predict(self, input: Tensor) -> Tensor:
        return self.where(input)

    def forward(self, input: Tensor) -> Tensor:
        N, _, W = input.shape
        moves = self.offset_scale * self.offsets(self.predict(input))[..., 0]
        at = moves + torch.arange(-1, 2)[:, None] + torch.arange(W)
        left = at.floor()
        padded = F.pad(input[:, 0], (20, 20))
        read = [padded.gather(1, (left.long() + i + 20).clamp(0, W + 39).reshape(N, -1)) for i in (0, 1)]
        share = (at - left).reshape(N, -1)
        return ((1 - share) * read[0] + share * read[1]).view(N, 3, W).sum(1, keepdim=True)

    def offsets(self, predicted: Tensor) -> Tensor:
        return predicted.unsqueeze(-1)

    def map_size(self, input: Tensor) -> tuple[int, ...]:
        return (input.shape[2],)

    def inside(self, moves: Tensor, size: tuple[int, ...]) -> Tensor:
        at = moves[..., 0] + torch.arange(-1, 2)[:, None] + torch.arange(size[0])
        return (at > -1) & (at < size[0])


class Attention(nn.Module):
    """Two points for each query, x first, around places that only the forward knows, with weights of their own."""

    branches, axes, unit, offset_scale, offset_lr_mult = ("points", "weights"), "xy", "pixels", 1.0, 0.1
    modulated = True

    def __init__(self) -> None:
        super().__init__()
        self.points, self.weights = nn.Linear(4, 4), nn.Linear(4, 2)
        nn.init.zeros_(self.points.weight)

    def predict(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        return self.points(queries), self.weights(queries).softmax(-1)

    def forward(self, queries: Tensor) -> Tensor:
        offset, mask = self.predict(queries)
        return (self.offsets(offset).sum(-1) * mask).sum(-1)

    def offsets(self, predicted: Tensor) -> Tensor:
        return predicted.unflatten(-1, (2, 2))

    def map_size(self, input: Tensor) -> tuple[int, ...]:
        return ()

    def inside(self, moves: Tensor, size: tuple[int, ...]) -> None:
        return None


@pytest.fixture
def net() -> nn.ModuleDict:
    return nn.ModuleDict({"line": Line(), "attention": Attention(), "plain": nn.Conv2d(1, 1, 3)})


def test_layers_are_known_by_what_they_answer(net: nn.ModuleDict) -> None:
    assert [name for name, _ in deformable_layers(net)] == ["line", "attention"]
    assert offset_branch(net["attention"]) is net["attention"].points
    for layer in net.values():
        assert not isinstance(layer, DeformableConvolution | DeformablePool)
    ours = (DeformConv2d(2, 2, 3), DeformRoIPool(2, 4), DeformPSRoIPool(2, 4))
    assert [isinstance(layer, DeformableLayer) for layer in ours] == [True] * 3
    assert [isinstance(layer, DeformableConvolution) for layer in ours] == [True, False, False]
    assert [isinstance(layer, DeformablePool) for layer in ours] == [False, True, True]


def test_statistics_of_a_layer_over_one_dimension(net: nn.ModuleDict) -> None:
    line = net["line"]
    with torch.no_grad():
        line.where.bias.copy_(torch.tensor([-4.0, 0.0, 8.0]))  # moves of −2, 0 and 4 pixels
    with OffsetStatistics(net) as statistics:
        out = line(torch.ones(2, 1, 10))
    report = statistics.report()["line"]
    assert report["mean"] == 2.0
    assert report["max"] == 4.0
    assert report["measured"] == 1
    # Of 10 outputs three lack the first tap (−3 and less), five the last (+5), none the middle one.
    assert report["outside"] == pytest.approx(8 / 30)
    assert report["outside"] == pytest.approx(1 - out.sum().item() / 60)
    nn.init.constant_(line.where.bias, 14.0)
    with (
        OffsetStatistics(net),
        pytest.warns(RuntimeWarning, match=r"'line' explode: .* 7\.0 pixels on a map of 6 \("),
    ):
        line(torch.ones(1, 1, 6))


def test_statistics_of_a_layer_that_does_not_know_its_places(net: nn.ModuleDict) -> None:
    attention = net["attention"]
    with torch.no_grad():
        attention.points.bias.copy_(torch.tensor([3.0, 4.0, 0.0, torch.nan]))
    with OffsetStatistics(net, every=1) as statistics:
        with pytest.warns(RuntimeWarning, match=r"50\.0% .* 2\.3 pixels \("):
            attention(torch.rand(2, 5, 4))
        attention(torch.rand(2, 5, 4))
    assert statistics.report() == {
        "attention": {"mean": pytest.approx(7 / 3), "max": 4.0, "nonfinite": 0.5, "measured": 2}
    }


def test_histograms_and_learning_rates(net: nn.ModuleDict) -> None:
    with torch.no_grad():
        net["line"].where.bias.copy_(torch.tensor([-4.0, 0.0, 8.0]))
        net["attention"].points.bias.copy_(torch.tensor([3.0, 4.0, 0.0, 0.0]))
    with OffsetHistory(net, edges=(0.0, 1.0, 3.0, 5.5)) as history:
        net["line"](torch.ones(2, 1, 10))
        net["attention"](torch.rand(2, 5, 4))
    assert [(r["layer"], r["counts"], r["mean"], r["unit"]) for r in history.records] == [
        ("line", [20, 20, 20], 2.0, "map pixels"),
        ("attention", [10, 0, 10], 2.5, "map pixels"),
    ]
    groups = parameter_groups(net, 1.0)
    assert [(group["lr"], len(group["params"])) for group in groups] == [(1.0, 2), (0.25, 2), (0.1, 4)]


def test_coordinates_are_brought_into_one_order() -> None:
    values = torch.tensor([[1.0, 2.0]])
    assert rows_first(DeformRoIPool(2, 4), values).tolist() == [[2.0, 1.0]]
    assert rows_first(DeformConv2d(2, 2, 3), values).tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("N", [0, 2])
def test_offsets_have_one_shape_from_the_branch_and_from_predict(N: int) -> None:
    torch.manual_seed(0)
    x, rois = torch.rand(max(N, 1), 4, 7, 6), torch.tensor([[0.0, 1, 1, 5, 4]]).repeat(N, 1)
    conv = DeformConv2d(4, 2, (3, 2), offset_groups=2)
    pool, parts = DeformRoIPool((3, 2), 4, version=2, hidden=()), DeformPSRoIPool(2, 4, 3, part_size=1)
    for branch in (conv.conv_offset, pool.offset_fc, parts.conv_offset):
        for parameter in branch.parameters():
            nn.init.normal_(parameter)
    raw = conv.offsets(conv.conv_offset(x[:N]))
    assert raw.shape == (N, 2, 3, 2, 5, 5, 2)
    torch.testing.assert_close(conv.offsets(conv.predict(x[:N])[0]), raw)
    if N:  # dy of group 1 at tap (2, 1)
        assert torch.equal(raw[:, 1, 2, 1, :, :, 0], conv.conv_offset(x)[:, 2 * 11])
    offset, mask = pool.predict(x, rois)
    assert pool.offsets(offset).shape == (N, 1, 3, 2, 1, 2) and mask is not None
    assert torch.equal(pool.offsets(offset)[:, 0, :, :, 0, 0], offset[:, 0])
    assert pool.offsets(torch.zeros(N, 18)).shape == (N, 1, 3, 2, 1, 2)
    assert parts.offsets(parts.conv_offset(x)).shape == (max(N, 1), 3, 1, 1, 42, 2)
    assert torch.equal(parts.offsets(parts.predict(x, rois))[:, 2, 0, 0, 0], parts.predict(x, rois)[:, 4:, 0, 0])


def test_evaluation_mode_ends_where_it_began_even_after_an_error() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(1).eval())

    def fail() -> None:
        with evaluation(net):
            assert not any(module.training for module in net.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in net.modules()] == [True, True, False]
