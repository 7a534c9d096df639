from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pliant.models import RFCN, DeformableDETR, FasterRCNN, ResNet
from pliant.nn import DCNv3, DCNv4, DeformConv2d, DeformPSRoIPool, DeformRoIPool, LocalResponseNorm, MSDeformAttn
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


def _detectors() -> tuple[FasterRCNN, RFCN]:
    torch.manual_seed(0)
    options = {"rpn_channels": 8, "post_nms": (10, 7)}
    body = ResNet(18, width=4, stem="small", stride=16)
    faster = FasterRCNN(body, 2, channels=4, hidden=8, pooled=3, sampling_ratio=2, levels=(2, 3), **options)
    return faster, RFCN(body, 2, width=6, bins=3, roi_pool="deform_ps", **options)


def test_detectors_by_hand() -> None:
    faster, rfcn = _detectors()
    body = multiply_adds(faster.backbone, 1, 3, 64, 64)  # conv4 and conv5 are 16 and 32 channels of 8×8
    neck = 64 * 4 * (16 + 32) + 2 * 64 * 4 * 4 * 9
    rpn = (64 + 64 + 16) * (4 * 8 * 9 + 8 * 15)
    head = 7 * (4 * 9 * 8 + 8 * 8 + 8 * 3 + 8 * 8)
    assert multiply_adds(faster, 3, 64, 64) == body + neck + rpn + head + 7 * 4 * 9 * 4 * 4
    # As many samples as pixels: the picture is 8 cells at stride 8, three bins of 2⅔, 3 × 3 samples each.
    faster.pool.sampling_ratio = 0
    assert multiply_adds(faster, 3, 64, 64) == body + neck + rpn + head + 7 * 4 * 9 * 9 * 4
    rpn = 64 * (16 * 8 * 9 + 8 * 5 * 12)
    maps = 9 * (3 + 4) + 2 * 9 * (3 + 1)
    # All maps are convolved; a RoI takes 16 samples of every one of them.
    expected = body + 64 * 32 * 6 + rpn + 64 * 6 * maps + 7 * maps * 16 * 4
    assert multiply_adds(rfcn, 3, 64, 64) == expected
    assert faster.training and "proposals" not in vars(faster.rpn)


def test_attention_by_hand() -> None:
    layer = MSDeformAttn(8, levels=2, heads=2, points=(3, 1))

    class Asked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x[:, :5], torch.rand(1, 5, 2, 2), x, [(3, 4), (2, 2)])

    # 16 pixels are projected; 5 queries ask for 2·4·2 coordinates and 2·4 weights; 4 samples of each channel.
    assert multiply_adds(Asked(), 1, 16, 8) == 16 * 64 + 5 * 8 * (16 + 8) + 5 * 8 * 4 * 5 + 5 * 64
    among = nn.MultiheadAttention(8, 2, batch_first=True)

    class Each(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = among

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, x, x, need_weights=False)[0]

    assert multiply_adds(Each(), 2, 6, 8) == 2 * (4 * 6 * 64 + 2 * 36 * 8)


def test_aggregation_by_hand() -> None:
    branch, projections = 20 * (8 * 9 + 8 + 8 * 2 * 9 * 3), 2 * 20 * 64
    assert multiply_adds(DCNv3(8, groups=2), 1, 4, 5, 8) == branch + projections + 20 * 8 * 9 * 5
    fourth, packed = DCNv4(8, groups=2, remove_center=True), 2 * 8 * 3
    assert multiply_adds(fourth, 1, 25, 8) == 25 * 8 * packed + 2 * 25 * 64 + 25 * 8 * 8 * 5


def test_a_transformer_detector_by_hand() -> None:
    net = DeformableDETR(
        ResNet(18, width=4, stem="small"), 3, levels=(3,), extra=0, channels=8, heads=2, points=1, encoder_layers=1,
        decoder_layers=2, hidden=16, queries=5, dropout=0.0,
    )  # fmt: skip
    S, Q, C = 16, 5, 8
    body = multiply_adds(net.backbone, 1, 3, 64, 64) + S * C * 32 + S * C
    feed = 2 * C * 16 + C
    attention = 2 * C * C + C * 2 * 2 + C * 2 + C * 5
    encoder = S * (attention + C + feed)
    propose = S * (C * C + C + C * 3 + 2 * C * C + C * 4)
    position = 2 * C * C + C * C
    layer = Q * C * (4 * C + 2 * Q) + Q * (attention - C * C + 2 * C + feed) + S * C * C
    decoder = 2 * (Q * position + layer + Q * (C * 3 + 2 * C * C + C * 4))
    assert multiply_adds(net, 3, 64, 64) == body + encoder + propose + decoder


class _Pooled(nn.Module):
    """Give a RoI layer RoIs: one of 8×12 pixels, one without area."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        rois = torch.tensor([[0.0, 0, 0, 8, 12], [0, 5, 5, 5, 5]])
        if isinstance(self.layer, DeformPSRoIPool):
            return self.layer(x, x, rois)
        return self.layer(x, rois)


def test_roi_layers_by_hand() -> None:
    # 2 RoIs of 3 × 2 bins and 4 channels; 2 × 2 samples a bin, pooled twice; a branch of 24 → 12 or 24 → 5 → 18.
    first = DeformRoIPool((3, 2), 4, sampling_ratio=2)
    assert multiply_adds(_Pooled(first), 1, 4, 16, 16) == 2 * (2 * 4 * 6 * 4 * 4 + 24 * 12)
    second = DeformRoIPool((3, 2), 4, sampling_ratio=2, version=2, hidden=(5,))
    assert multiply_adds(_Pooled(second), 1, 4, 16, 16) == 2 * (2 * 4 * 6 * 4 * 4 + 24 * 5 + 5 * 18 + 4 * 6)
    # As many samples as pixels, at half the scale: bins of 2 × 2 pixels, and none without area.
    second = DeformRoIPool((3, 2), 4, 0.5, version=2, hidden=(5,))
    assert multiply_adds(_Pooled(second), 1, 4, 16, 16) == 2 * 4 * 6 * 4 * 4 + 2 * (24 * 5 + 5 * 18 + 4 * 6)
    # 8 maps are 2 scores of 2 × 2 bins; offsets 2 · 2 of 3 × 3 parts from a 1×1 convolution; 16 samples of everything.
    parts = DeformPSRoIPool(2, 8, classes=2, part_size=3)
    assert multiply_adds(_Pooled(parts), 1, 8, 6, 5) == 30 * 8 * 36 + 2 * 16 * 4 * (2 * 4 + 4 * 9)


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


def test_a_detector_needs_a_picture() -> None:
    with pytest.raises(
        ValueError, match=r"^multiply_adds: a detector needs the shape \(channels, H, W\), got \(1, 3, 8"
    ):
        multiply_adds(_detectors()[0], 1, 3, 8, 8)


def test_parameters() -> None:
    assert parameters(nn.Linear(7, 3)) == 24


def test_deformable_layers_are_counted_by_what_they_answer() -> None:
    class Line(nn.Module):
        """Three taps on a line, two channels to five, with a mask."""

        branches, axes, unit, offset_scale, offset_lr_mult, modulated = ("where",), "x", "pixels", 1.0, 1.0, True
        in_channels, out_channels, groups, offset_groups, boundary, transposed = 2, 5, 1, 1, "zeros", False
        kernel_size, stride, padding, dilation = (3,), (1,), (1,), (1,)

        def __init__(self) -> None:
            super().__init__()
            self.where = nn.Conv1d(2, 6, 3, padding=1)

        def predict(self, input: Tensor) -> Tensor:
            return self.where(input)

        def forward(self, input: Tensor) -> Tensor:
            self.predict(input)
            return input.new_zeros(input.shape[0], 5, input.shape[2])

        def offsets(self, predicted: Tensor) -> Tensor:
            return predicted[:, :3, :, None]

        def map_size(self, input: Tensor) -> tuple[int, ...]:
            return (input.shape[2],)

        def inside(self, moves: Tensor, size: tuple[int, ...]) -> None:
            return None

    # At each of 4·7 positions: the branch, the products, and 6 samples of two neighbours and a mask.
    assert multiply_adds(Line(), 4, 2, 7) == 4 * 7 * (2 * 6 * 3 + 2 * 5 * 3 + 6 * 3)
    line = Line()
    line.transposed = True
    with pytest.raises(TypeError, match="does not know what a Line costs"):
        multiply_adds(line, 4, 2, 7)
