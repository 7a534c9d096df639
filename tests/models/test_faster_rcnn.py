"""Faster R-CNN: every option forward and backward, the head's losses by hand, two pictures learned, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.models import FasterRCNN, FeatureMimic, ResNet, load_imagenet
from pliant.models.boxes import Truth
from pliant.models.faster_rcnn import RoIPooling
from pliant.ops import roi_align

Make = Callable[..., Any]
LOSSES = {"rpn_objectness", "rpn_box", "classification", "box"}


def _check(losses: dict[str, Tensor], names: set[str] = LOSSES) -> Tensor:
    assert set(losses) == names
    for name, loss in losses.items():
        assert loss.shape == () and loss.isfinite() and loss >= 0 and loss.dtype == torch.float32, name
    total: Tensor = sum(losses.values())  # type: ignore[assignment]
    return total


def _check_detections(found: list[dict[str, Tensor]], images: list[Tensor], most: int = 100) -> None:
    assert len(found) == len(images)
    for each, image in zip(found, images, strict=True):
        n = len(each["scores"])
        assert each["boxes"].shape == (n, 4) and each["labels"].shape == (n,) and n <= most
        assert each["labels"].dtype == torch.long
        assert (each["scores"].diff() <= 0).all()
        if n:
            H, W = image.shape[1:]
            assert each["boxes"].min() >= 0 and (each["boxes"].amax(0) <= torch.tensor([W, H, W, H])).all()


OPTIONS = [
    {"neck": "fpn"},
    {"neck": "c4"},
    {"neck": "fpn", "roi_pool": "deform"},
    {"neck": "c4", "roi_pool": "deform"},
    {"neck": "fpn", "roi_pool": "modulated", "roi_hidden": (24,)},
    {"neck": "c4", "roi_pool": "modulated", "roi_hidden": (24, 24)},
    {"class_agnostic": True, "hard": 30},
    {"levels": (3,), "sampling_ratio": 0, "anchor_ratios": (1.0,)},
    {"levels": (2, 3), "box_std": (1.0, 1.0, 1.0, 1.0), "positive_iou": 0.6, "rpn_nms": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items()))
def test_every_option_trains_and_detects(options: dict[str, Any], detector: Make, scenes: Make) -> None:
    net = detector(**options)
    images, targets = scenes()
    # Offsets of 0 lie on kinks and their branches' first layers get no gradient: move them a little.
    for name, parameter in net.named_parameters():
        if "offset_fc" in name:
            nn.init.normal_(parameter, std=0.05)
    _check(net(images, targets)).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    reached = ["backbone.conv1.weight", "backbone.layer4.1.conv2.weight", "rpn.conv.weight", "fc1.weight", "neck"]
    reached += ["classifier.weight", "regressor.weight"] + ["pool.deform.offset_fc"] * ("roi_pool" in options)
    for start in reached:
        grads = [p.grad.abs().max() for name, p in net.named_parameters() if name.startswith(start)]
        # A level of the pyramid may go without a RoI and an anchor.
        assert grads and max(grads) > 0, start
    _check_detections(net.eval()(images), images)


def test_deformable_backbone_and_frozen_normalization_train(detector: Make, backbone: Make, scenes: Make) -> None:
    net = detector(backbone=backbone(deform=(None, "v1", "v2", "v2"), frozen_bn=True))
    _check(net(*scenes())).backward()
    branches = [p for name, p in net.named_parameters() if "conv_offset" in name]
    assert len(branches) == 3 * 4 * 2
    for parameter in branches:
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0


@pytest.mark.parametrize("roi_pool", ["deform", "modulated"])
@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_deformable_pooling_starts_as_aligned_pooling(neck: str, roi_pool: str, detector: Make, scenes: Make) -> None:
    plain, deform = detector(neck), detector(neck, roi_pool=roi_pool, roi_hidden=())
    left = deform.load_state_dict(plain.state_dict(), strict=False)
    assert not left.unexpected_keys and all(name.startswith("pool.deform") for name in left.missing_keys)
    images, _ = scenes()
    maps = plain.eval().maps(plain.batch(images)[0])[1]
    rois = torch.tensor([[0.0, 3, 4, 40, 50], [1, 0, 0, 9, 7], [0, 20, 20, 60, 60], [1, 2, 3, 62, 63]])
    # The modulated pooling of the paper starts with a mask of one half.
    scale = 0.5 if roi_pool == "modulated" else 1.0
    torch.testing.assert_close(deform.pool(maps, rois), scale * plain.pool(maps, rois), rtol=1e-4, atol=1e-5)


def test_pooling_takes_the_level_of_the_rois_size() -> None:
    pooling = RoIPooling("align", 1, (4, 8, 16, 32))
    sides = torch.tensor([1.0, 55, 56, 111, 112, 223, 224, 447, 448, 2000])
    rois = torch.stack([0 * sides, 0 * sides, 0 * sides, sides / 2, sides * 2], 1)
    assert pooling.levels(rois).tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    by_paper = (4 + (sides / 224).log2()).floor().clamp(2, 5).long() - 2
    assert pooling.levels(rois).tolist() == by_paper.tolist()
    assert RoIPooling("align", 1, (4, 8), canonical=56).levels(rois).tolist() == [0, *[1] * 9]
    rois[0, 3:] = torch.tensor([-3.0, -3])  # inverted
    assert pooling.levels(rois)[0] == 0


def test_pooling_from_many_maps_is_pooling_from_each() -> None:
    torch.manual_seed(0)
    pooling = RoIPooling("align", 5, (4, 8), size=3, canonical=112)
    maps = [torch.randn(2, 5, 16, 16), torch.randn(2, 5, 8, 8)]
    rois = torch.tensor([[1.0, 0, 0, 60, 60], [0, 5, 5, 20, 25], [1, 8, 3, 20, 30], [0, 1, 1, 64, 64]])
    expected = torch.cat(
        [roi_align(maps[level], rois[i : i + 1], 3, 1 / (4, 8)[level], 2, True) for i, level in enumerate((1, 0, 0, 1))]
    )
    torch.testing.assert_close(pooling(maps, rois), expected)
    assert pooling(maps, rois[:0]).shape == (0, 5, 3, 3)


def test_head_losses_by_hand(detector: Make) -> None:
    net = detector(class_agnostic=False)
    # A positive of class 1, a negative, a positive of class 0 that needs no moving.
    rois = torch.tensor([[0.0, 0, 0, 20, 20], [0, 30, 30, 50, 50], [0, 10, 10, 30, 40]])
    labels = torch.tensor([1, 2, 0])
    goals = torch.tensor([[2.0, 0, 22, 20], [0, 0, 1, 1], [10, 10, 30, 40]])
    logits = torch.tensor([[1.0, 2, 0], [0, 0, 3], [0, 0, 0]])
    deltas = torch.zeros(3, 2, 4)
    deltas[0, 1, 1] = 0.5
    found = net.losses(rois, labels, goals, logits, deltas, 1)
    entropy = -sum(logits.log_softmax(1)[i, label] for i, label in enumerate((1, 2, 0))) / 3
    torch.testing.assert_close(found["classification"], entropy)
    # 2 pixels of 20 over 0.1 is 1: smooth L1 ½; 0.5 too much: ⅛.
    assert found["box"].item() == pytest.approx((0.5 + 0.125) / 3, rel=1e-6)
    # The two worst of three, by both losses.
    net.hard = 2
    found = net.losses(rois, labels, goals, logits, deltas, 1)
    each = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(found["classification"], (each[0] + each[2]) / 2)
    assert found["box"].item() == pytest.approx((0.5 + 0.125) / 2, rel=1e-6)
    # A mean over pictures: the second has one RoI, a third none.
    rois[2, 0] = 1
    for net.hard in (None, 9):
        found = net.losses(rois, labels, goals, logits, deltas, 3)
        torch.testing.assert_close(found["classification"], ((each[0] + each[1]) / 2 + each[2]) / 3)
        assert found["box"].item() == pytest.approx(0.625 / 2 / 3, rel=1e-6)


def test_sampling_of_proposals(detector: Make) -> None:
    torch.manual_seed(0)
    net = detector(rois=8)
    truth = Truth.pad(
        [
            {"boxes": torch.tensor([[0.0, 0, 20, 20]]), "labels": torch.tensor([1])},
            {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
        ],
        torch.device("cpu"),
    )
    proposals = torch.tensor([[0.0, 0, 20, 18], [2, 0, 22, 20], [30, 30, 50, 50]]).repeat(2, 4, 1)
    present = torch.ones(2, 12, dtype=torch.bool)
    present[:, 9:] = False
    rois, labels, goals = net.sample(proposals, present, truth)
    # Of 8 at most a quarter is positive; the true box is among the candidates; the absent ones are not.
    assert rois[:, 0].tolist() == [0] * 5 + [1] * 8 and (labels[:5] < 2).sum() == 2
    assert (goals[labels < 2] == torch.tensor([0.0, 0, 20, 20])).all()
    assert set(labels[:2].tolist()) == {1} and set(labels[2:].tolist()) == {2}
    seen = set()
    for _ in range(20):
        rois, labels, _ = net.sample(proposals, present, truth)
        seen |= {tuple(box) for box in rois[labels < 2, 1:].tolist()}
    assert seen == {(0.0, 0.0, 20.0, 18.0), (2.0, 0.0, 22.0, 20.0), (0.0, 0.0, 20.0, 20.0)}


def test_detections_by_hand(detector: Make) -> None:
    net = detector(score_threshold=0.2, nms_threshold=0.5, max_detections=3)
    box = [10.0, 10, 30, 30]
    rois = torch.tensor([[0.0, *box], [0, *box], [1, *box], [0, 40, 40, 90, 60], [0, 0, 0, 5, 5], [0, 50, 0, 60, 9]])
    probability = torch.tensor(
        [[0.6, 0.3, 0.1], [0.7, 0.1, 0.2], [0.05, 0.5, 0.45], [0.1, 0.8, 0.1], [0.1, 0.19, 0.71], [0.25, 0.1, 0.65]]
    )
    deltas = torch.zeros(6, 2, 4)
    deltas[1, 0] = torch.tensor([1.0, 0, 0, 0])  # a tenth of the width
    found = net.detections(rois, probability.log(), deltas, torch.tensor([[64.0, 64], [64, 64]]))
    # Picture 0: class 1 cut off at the border, class 0 moved (which suppresses the other), class 1; then no room.
    assert found[0]["labels"].tolist() == [1, 0, 1]
    torch.testing.assert_close(found[0]["scores"], torch.tensor([0.8, 0.7, 0.3]))
    assert found[0]["boxes"].tolist() == [[40, 40, 64, 60], [12, 10, 32, 30], box]
    assert found[1]["labels"].tolist() == [1] and found[1]["boxes"].tolist() == [box]


def test_learns_two_pictures(detector: Make, backbone: Make, learn: Make) -> None:
    learn(detector(backbone=backbone(deform=(None, None, None, "v2")), roi_pool="deform"), 2e-3, 90)


@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_hard_pictures_stay_finite(neck: str, detector: Make) -> None:
    net = detector(neck, roi_pool="modulated", roi_hidden=(8,))
    images = [torch.rand(3, 1, 1), torch.rand(3, 70, 33), torch.rand(3, 64, 64), torch.rand(3, 5, 90)]
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    outside = torch.tensor([[-50.0, -60, -10, -20], [200, 200, 300, 300], [-100, -100, 500, 500]])
    empty = torch.tensor([[5.0, 5, 5, 20], [30, 30, 20, 20]])
    ignored = {"boxes": torch.tensor([[0.0, 0, 80, 5]]), "labels": torch.tensor([0]), "ignore": torch.tensor([True])}
    targets = [
        none,
        {"boxes": outside, "labels": torch.tensor([0, 1, 1])},
        {"boxes": empty, "labels": torch.tensor([1, 0])},
        ignored,
    ]
    _check(net(images, targets)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    _check_detections(net.eval()(images), images)
    # Alone, and with nothing in it.
    net.train()
    for image, target in zip(images, targets, strict=True):
        net.zero_grad()
        _check(net([image], [target])).backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())
        _check_detections(net.eval()([image]), [image])
        net.train()


def test_no_proposals_at_all(detector: Make, scenes: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    net = detector(roi_pool="modulated", roi_hidden=(8,))
    images, _ = scenes()
    rpn = net.rpn.forward

    def nothing(*arguments: Any) -> Any:
        proposals, present, losses = rpn(*arguments)
        return proposals, torch.zeros_like(present), losses

    monkeypatch.setattr(net.rpn, "forward", nothing)
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    losses = net(images, [none, none])
    _check(losses).backward()
    assert losses["classification"] == losses["box"] == 0
    # Every parameter has a gradient: processes that train together wait for it.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    found = net.eval()(images)
    assert [len(each["scores"]) for each in found] == [0, 0] and found[0]["boxes"].shape == (0, 4)


def test_ignored_boxes_change_what_is_rejected(detector: Make) -> None:
    net = detector(rois=64, positive_share=0.5)
    truth = {"boxes": torch.tensor([[0.0, 0, 20, 20], [20, 20, 64, 64]]), "labels": torch.tensor([0, 1])}
    truth["ignore"] = torch.tensor([False, True])
    proposals = torch.tensor([[[0.0, 0, 20, 19], [30, 30, 40, 40], [0, 40, 10, 60]]])
    padded = Truth.pad([truth], torch.device("cpu"))
    rois, labels, _ = net.sample(proposals, torch.ones(1, 3, dtype=torch.bool), padded)
    by_box = dict(zip(map(tuple, rois[:, 1:].tolist()), labels.tolist(), strict=True))
    assert by_box == {(0.0, 0.0, 20.0, 20.0): 0, (0.0, 0.0, 20.0, 19.0): 0, (0.0, 40.0, 10.0, 60.0): 2}


def test_a_picture_of_a_batch_gives_what_it_gives_alone(detector: Make, scenes: Make) -> None:
    torch.manual_seed(1)
    net = detector().eval()
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
    together, alone = net(images), [net([image])[0] for image in images]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a["boxes"], b["boxes"], rtol=1e-4, atol=1e-3)
        assert torch.equal(a["labels"], b["labels"])


def test_pictures_are_padded_to_the_largest(detector: Make) -> None:
    net = detector()
    pictures, sizes = net.batch([torch.rand(3, 40, 50), torch.rand(3, 33, 65)])
    assert pictures.shape == (2, 3, 48, 80) and sizes.tolist() == [[50, 40], [65, 33]]
    assert not pictures[0, :, 40:].any() and not pictures[0, :, :, 50:].any() and pictures[0, :, :40, :50].all()


@pytest.mark.parametrize("hard", [None, 9])
def test_a_batch_has_the_mean_loss_of_its_pictures(
    hard: int | None, detector: Make, backbone: Make, scenes: Make
) -> None:
    # Nothing is left to chance: all anchors and proposals are drawn.
    net = detector(backbone=backbone(frozen_bn=True), rpn_samples=9999, rois=9999, hard=hard)
    images, targets = scenes()
    targets[1] = {key: value[:1] for key, value in targets[1].items()}
    together = net(images, targets)
    alone = [net([image], [target]) for image, target in zip(images, targets, strict=True)]
    for name, loss in together.items():
        torch.testing.assert_close(loss, (alone[0][name] + alone[1][name]) / 2, rtol=1e-4, atol=1e-6)


def test_normalisation() -> None:
    net = FasterRCNN(ResNet(18, width=16, stem="small", in_channels=1), 2, mean=(0.5,), std=(0.25,), hidden=8)
    image = torch.rand(1, 32, 32, requires_grad=True)
    pictures, _ = net.batch([image])
    torch.testing.assert_close(pictures[0], (image - 0.5) / 0.25)
    pictures.sum().backward()
    assert (image.grad == 4).all()
    assert not {"mean", "std"} & set(net.state_dict())


def test_the_same_seed_gives_the_same_training(detector: Make, scenes: Make) -> None:
    def run() -> list[Tensor]:
        net = detector(roi_pool="deform")
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        torch.manual_seed(5)
        for _ in range(3):
            optimizer.zero_grad()
            _check(net(*scenes())).backward()
            optimizer.step()
        return [p.detach() for p in net.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_autocast_trains_and_detects_in_float32(detector: Make, scenes: Make) -> None:
    images, targets = scenes()
    for neck in ("fpn", "c4"):
        net = detector(neck, roi_pool="modulated", roi_hidden=(8,))
        with torch.autocast("cpu", torch.bfloat16):
            loss = _check(net(images, targets))
            found = net.eval()(images)
        loss.backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())
        assert found[0]["boxes"].dtype == found[0]["scores"].dtype == torch.float32


def test_defaults_are_the_papers() -> None:
    with torch.device("meta"):
        net = FasterRCNN(ResNet(50, stride=16, deform=(None, "v2", "v2", "v2")), 80, neck="c4", roi_pool="modulated")
        fpn = FasterRCNN(ResNet(50), 80)
    assert net.fc1.in_features == 256 * 49 and net.fc2.out_features == 1024
    assert net.rpn.anchors.count == 15 and net.rpn.samples == 256 and net.rpn.post_nms == (2000, 1000)
    assert (net.rois, net.positive_share, net.box_std) == (512, 0.25, (0.1, 0.1, 0.2, 0.2))
    # RoI branch of DCNv2: fc 1024, fc 1024, 3·49, each with its biases.
    branch = 256 * 49 * 1024 + 1024 + 1024**2 + 1024 + 1024 * 147 + 147
    assert sum(p.numel() for p in net.pool.parameters()) == branch
    assert fpn.rpn.anchors.strides == (4, 8, 16, 32, 64) and fpn.rpn.anchors.count == 3


@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_trains_in_double_precision(neck: str, detector: Make, scenes: Make) -> None:
    images, targets = scenes()
    for given in (targets, [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}] * 2):
        mimic = FeatureMimic(count=2, size=32)
        net = detector(neck, roi_pool="modulated", roi_hidden=(8,), mimic=mimic).double()
        losses = net([image.double() for image in images], given)
        assert {loss.dtype for loss in losses.values()} == {torch.float64}
        sum(losses.values()).backward()
        assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    assert net.eval()(images)[0]["scores"].dtype == torch.float64


def test_backbone_loads_imagenet(detector: Make, backbone: Make, tmp_path: Any) -> None:
    torch.manual_seed(7)
    source = ResNet(18, width=16, stem="small")
    torch.save(source.state_dict(), tmp_path / "resnet.pth")
    net = detector()
    load_imagenet(net, tmp_path / "resnet.pth")
    assert torch.equal(net.backbone.conv1.weight, source.conv1.weight)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"neck": "c5"}, "neck must be 'fpn' or 'c4', got 'c5'"),
        ({"roi_pool": "max"}, "roi_pool must be one of 'align', 'deform', 'modulated', got 'max'"),
        ({"classes": 0}, "classes must be at least 1, got 0"),
        ({"rois": 0}, "rois must be at least 1, got 0"),
        ({"hard": 0}, "hard must be at least 1, got 0"),
        ({"pooled": 0}, "channels, hidden and pooled must be at least 1, got 256, 8 and 0"),
        ({"levels": (3, 2)}, r"levels must be some of 0, 1, 2 and 3, in this order, got \(3, 2\)"),
        ({"levels": (0, 1)}, r"levels must be some of 0, 1, 2 and 3, in this order, got \(0, 1\)"),
        ({"mean": (0.5,)}, "mean and std must have a value for each of the 3 channels of images"),
        ({"nms_threshold": 2.0}, r"nms_threshold must be from 0 to 1, got 2\.0"),
        ({"positive_share": -0.1}, r"positive_share must be from 0 to 1, got -0\.1"),
        ({"positive_iou": float("nan")}, "positive_iou must be from 0 to 1, got nan"),
        ({"box_std": (1.0, 1.0)}, r"box_std must be four positive numbers, got \(1\.0, 1\.0\)"),
        ({"box_std": (1, 1, 0, 1)}, r"box_std must be four positive numbers, got \(1, 1, 0, 1\)"),
        ({"roi_canonical": 0.0}, r"roi_canonical must be positive, got 0\.0"),
        (
            {"anchor_sizes": [[8.0]]},
            "anchor_sizes must have an equal number of sizes for each of the 5 maps of the RPN",
        ),
    ],
)
def test_errors(options: dict[str, Any], sentence: str, backbone: Make) -> None:
    with pytest.raises(ValueError, match=f"^FasterRCNN: {sentence}"):
        FasterRCNN(**({"backbone": backbone(), "classes": 2, "hidden": 8} | options))


def test_errors_of_backbone_pictures_and_targets(detector: Make, scenes: Make) -> None:
    with pytest.raises(TypeError, match=r"^FasterRCNN: mimic must be a pliant.models.FeatureMimic, got bool$"):
        detector(mimic=True)
    with pytest.raises(TypeError, match=r"^FasterRCNN: backbone must be a pliant.models.ResNet, got Linear$"):
        FasterRCNN(nn.Linear(1, 1), 2)
    net, (images, targets) = detector(), scenes()
    with pytest.raises(ValueError, match=r"^FasterRCNN: images must hold at least one image$"):
        net([], [])
    with pytest.raises(
        TypeError, match=r"images\[1\] must be a floating-point tensor with values in 0 to 1, got torch"
    ):
        net([images[0], images[1].byte()], targets)
    with pytest.raises(ValueError, match=r"images\[0\] must have shape \(3, H, W\), got \(64, 64\)$"):
        net([images[0][0], images[1]], targets)
    with pytest.raises(ValueError, match=r"in training every image needs a target, got none for 2; or call eval"):
        net(images)
    with pytest.raises(ValueError, match=r"in training every image needs a target, got 1 for 2"):
        net(images, targets[:1])
    with pytest.raises(TypeError, match=r"targets\[1\] must be a dictionary of tensors, got NoneType$"):
        net(images, [targets[0], None])
    misnamed, lists = {"box": targets[0]["boxes"]}, {"boxes": [], "labels": []}
    for wrong, kinds in ((misnamed, "box Tensor"), (lists, "boxes list, labels list")):
        with pytest.raises(TypeError, match=f"must have tensors boxes, labels and optionally ignore, got {kinds}$"):
            net(images, [wrong, targets[1]])
    wrong = targets[0] | {"labels": targets[0]["labels"].float()}
    with pytest.raises(TypeError, match=r"targets\[0\] must have integer labels, got torch.float32$"):
        net(images, [wrong, targets[1]])
    wrong = {"boxes": targets[0]["boxes"], "labels": torch.tensor([0])}
    with pytest.raises(
        ValueError, match=r"targets\[1\] must have boxes \(n, 4\), .* got boxes \(2, 4\), labels \(1,\)"
    ):
        net(images, [targets[0], wrong])
    wrong = {"boxes": targets[0]["boxes"], "labels": torch.tensor([0, 2])}
    with pytest.raises(ValueError, match=r"targets\[0\] has labels 0 to 2; they must be 0 to 1$"):
        net(images, [wrong, targets[1]])
    wrong = {"boxes": targets[0]["boxes"] / 0, "labels": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=r"targets\[0\] has boxes with NaN or infinite coordinates$"):
        net(images, [wrong, targets[1]])
