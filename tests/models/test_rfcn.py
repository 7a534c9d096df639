"""R-FCN: score maps by part, offsets by class, training and detection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.models import RFCN, ResNet
from pliant.models.rfcn import PartScores
from pliant.ops import deform_psroi_pool

Make = Callable[..., Any]


@pytest.fixture
def rfcn(backbone: Make) -> Make:
    """Return a function that makes a tiny R-FCN for 64×64 pictures of 2 classes."""

    def make(**options: Any) -> RFCN:
        small: dict[str, Any] = {
            "width": 16,
            "bins": 3,
            "rpn_channels": 16,
            "rpn_samples": 64,
            "anchor_sizes": (16, 24),
        }
        small |= {"pre_nms": (64, 32), "post_nms": (32, 16), "hard": 16}
        return RFCN(**({"backbone": backbone(stride=16), "classes": 2} | small | options))

    return make


def _check(losses: dict[str, Tensor]) -> Tensor:
    assert set(losses) == {"rpn_objectness", "rpn_box", "classification", "box"}
    assert all(loss.shape == () and loss.isfinite() and loss >= 0 for loss in losses.values())
    total: Tensor = sum(losses.values())  # type: ignore[assignment]
    return total


@pytest.mark.parametrize("roi_pool", ["ps", "deform_ps"])
@pytest.mark.parametrize("hard", [None, 16])
def test_every_option_trains_and_detects(roi_pool: str, hard: int | None, rfcn: Make, scenes: Make) -> None:
    net = rfcn(roi_pool=roi_pool, hard=hard, rois=16)
    images, targets = scenes()
    _check(net(images, targets)).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    reached = ["backbone.conv1", "backbone.layer4.1.conv2", "rpn.conv", "neck", "classifier.conv.weight", "regressor"]
    for start in reached + ["classifier.deform", "regressor.deform"] * (roi_pool == "deform_ps"):
        grads = [p.grad.abs().max() for name, p in net.named_parameters() if name.startswith(start)]
        assert grads and max(grads) > 0, start
    for found in net.eval()(images):
        assert (found["scores"].diff() <= 0).all() and found["boxes"].isfinite().all()


def test_deformable_pooling_starts_as_the_plain_one(rfcn: Make, scenes: Make) -> None:
    plain, deform = rfcn().eval(), rfcn(roi_pool="deform_ps").eval()
    left = deform.load_state_dict(plain.state_dict(), strict=False)
    names = {f"{part}.deform.conv_offset.{kind}" for part in ("classifier", "regressor") for kind in ("weight", "bias")}
    assert set(left.missing_keys) == names and not left.unexpected_keys
    for a, b in zip(plain(scenes()[0]), deform(scenes()[0]), strict=True):
        assert torch.equal(a["boxes"], b["boxes"]) and torch.equal(a["scores"], b["scores"])


def test_maps_of_the_paper() -> None:
    with torch.device("meta"):
        net = RFCN(ResNet(101, stride=16, deform=(None, None, None, "v1"), offset_groups=4), 80, roi_pool="deform_ps")
    assert net.neck.out_channels == 1024 and net.rpn.anchors.count == 12 and net.rpn.post_nms == (300, 300)
    assert net.classifier.conv.out_channels == 49 * 81 and net.classifier.deform.conv_offset.out_channels == 2 * 49 * 81
    assert net.regressor.conv.out_channels == 4 * 49 and net.regressor.deform.conv_offset.out_channels == 2 * 49
    assert net.classifier.stride == 16 and net.hard == 128


def test_bins_look_at_maps_of_their_own() -> None:
    scores = PartScores(1, 2, 2, 1, None)
    # Maps: output c, bin (i, j) reads channel (c·2 + i)·2 + j, here the constant of that number.
    nn.init.zeros_(scores.conv.weight)
    with torch.no_grad():
        scores.conv.bias.copy_(torch.arange(8.0))
    found = scores(torch.zeros(1, 1, 12, 12), torch.tensor([[0.0, 2, 2, 9, 9]]))
    assert found.tolist() == [[(0 + 1 + 2 + 3) / 4, (4 + 5 + 6 + 7) / 4]]


def test_offsets_are_pooled_by_class_and_bin() -> None:
    torch.manual_seed(0)
    scores = PartScores(3, 4, 2, 4, classes=2)
    nn.init.normal_(scores.deform.conv_offset.weight)
    features = torch.randn(2, 3, 9, 8)
    rois = torch.tensor([[0.0, 3, 4, 25, 20], [1, 0, 10, 16, 31]])
    maps = scores.deform.conv_offset(features)
    assert maps.shape[1] == 2 * 2 * 4
    # By hand: each bin of each RoI is the mean of its offset map; the first two outputs follow class 0.
    offset = deform_psroi_pool(maps, rois, None, 2, 0.25, group_size=2)
    assert offset.shape == (2, 4, 2, 2)
    pooled = [
        deform_psroi_pool(
            scores.conv(features)[:, 8 * c : 8 * c + 8], rois, offset[:, 2 * c : 2 * c + 2], 2, 0.25, group_size=2
        )
        for c in (0, 1)
    ]
    torch.testing.assert_close(scores(features, rois), torch.cat(pooled, 1).mean((2, 3)))


def test_learns_two_pictures(rfcn: Make, learn: Make) -> None:
    learn(rfcn(roi_pool="deform_ps", width=32), 4e-3, 120)


def test_hard_pictures_stay_finite(rfcn: Make) -> None:
    net = rfcn(roi_pool="deform_ps")
    images = [torch.rand(3, 1, 1), torch.rand(3, 40, 70)]
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    outside = {"boxes": torch.tensor([[-50.0, -60, -10, -20], [-9, -9, 99, 99]]), "labels": torch.tensor([0, 1])}
    for targets in ([none, outside], [outside, none], [none, none]):
        net.train()
        _check(net(images, targets)).backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())
        assert all(found["boxes"].isfinite().all() for found in net.eval()(images))


def test_errors(backbone: Make) -> None:
    with pytest.raises(ValueError, match=r"^RFCN: roi_pool must be 'ps' or 'deform_ps', got 'align'$"):
        RFCN(backbone(), 2, roi_pool="align")
    with pytest.raises(ValueError, match=r"^RFCN: width and bins must be at least 1, got 8 and 0$"):
        RFCN(backbone(), 2, width=8, bins=0)
    with pytest.raises(ValueError, match=r"^RFCN: classes must be at least 1, got 0$"):
        RFCN(backbone(), 0)
