"""Feature mimicking: its losses reach the shared layers, fall in training, and are gone at inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.models import FasterRCNN, FeatureMimic, strip_training_only
from pliant.models.mimic import statistics_kept

Make = Callable[..., Any]
MIMIC = ("mimic_cosine", "mimic_classification")


def _small(**options: Any) -> FeatureMimic:
    return FeatureMimic(**({"count": 4, "size": 32} | options))


def _pieces(net: FasterRCNN, scenes: Make) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what the detector hands over: pictures, RoIs, labels (class 2 is background) and features."""
    pictures, _ = net.batch(scenes()[0])
    rois = torch.tensor(
        [[0.0, 6, 8, 26, 30], [0, 34, 30, 58, 52], [0, 0, 40, 20, 60], [1, 8, 10, 28, 32], [1, 1, 1, 9, 60]]
    )
    labels = torch.tensor([0, 1, 2, 1, 2])
    return pictures, rois, labels, net.describe(net.maps(pictures)[1], rois)


@pytest.mark.parametrize("neck", ["fpn", "c4"])
@pytest.mark.parametrize("name", MIMIC)
def test_each_loss_reaches_the_shared_layers(
    name: str, neck: str, detector: Make, backbone: Make, scenes: Make
) -> None:
    body = backbone(deform=(None, None, None, "v2"), stride=16 if neck == "c4" else 32)
    net = detector(neck, mimic=_small(), backbone=body, roi_pool="modulated", roi_hidden=(8,))
    nn.init.normal_(net.pool.deform.offset_fc[-1].weight, std=0.05)
    losses = net(*scenes())
    assert losses[name] > 0
    losses[name].backward()
    shared = ["backbone.conv1", "backbone.layer4.1.conv2.weight", "backbone.layer4.1.conv2.conv_offset", "neck", "fc1"]
    for start in [*shared, "fc2", "pool.deform.offset_fc"]:
        grads = [p.grad.abs().max() for n, p in net.named_parameters() if n.startswith(start) and p.grad is not None]
        assert grads and max(grads) > 0, start
    # Classifiers are not shared.
    for parameter in (*net.classifier.parameters(), *net.regressor.parameters(), *net.rpn.parameters()):
        assert parameter.grad is None or not parameter.grad.any()
    own = net.mimic.classifier.weight.grad
    assert (own is not None and own.abs().max() > 0) == (name == "mimic_classification")


def test_losses_by_hand(detector: Make, scenes: Make) -> None:
    net = detector(mimic=_small(weight=0.1))
    pictures, rois, labels, features = _pieces(net, scenes)
    found = net.mimic(net, pictures, rois, labels, features)
    # The three positives, in the order of their pictures, each on its own.
    chosen = [0, 1, 3]
    patches = net.mimic.cut(pictures, rois[chosen])
    cut_out = net.mimic.describe(net, patches)
    cosine = torch.stack([1 - F.cosine_similarity(a, features[i], 0) for a, i in zip(cut_out, chosen, strict=True)])
    torch.testing.assert_close(found["mimic_cosine"], 0.1 * (cosine[:2].mean() + cosine[2]) / 2, rtol=1e-4, atol=1e-6)
    entropy = F.cross_entropy(net.mimic.classifier(cut_out), labels[chosen], reduction="none")
    torch.testing.assert_close(found["mimic_classification"], 0.1 * (entropy[:2].mean() + entropy[2]) / 2)
    net.mimic.reduction = "sum"
    found = net.mimic(net, pictures, rois, labels, features)
    torch.testing.assert_close(found["mimic_cosine"], 0.1 * cosine.sum() / 2, rtol=1e-4, atol=1e-6)


def test_patches_are_cut_out_and_resized(detector: Make) -> None:
    mimic = _small(size=4)
    ramp = torch.arange(20.0).expand(1, 1, 20, 20)  # value x at pixel x, whose middle is x + ½
    both = torch.cat([ramp, ramp.mT], 1)
    patch = mimic.cut(both, torch.tensor([[0.0, 4, 6, 12, 10]]))
    # 8 pixels wide into 4: middles at 5, 7, 9, 11. 4 high into 4: middles at 6.5 and so on.
    assert patch[0, 0, 0].tolist() == [4.5, 6.5, 8.5, 10.5] and patch[0, 1, :, 0].tolist() == [6, 7, 8, 9]
    same = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(mimic.cut(same, torch.tensor([[0.0, 0, 0, 4, 4]])), same)


def test_patches_know_nothing_of_their_surroundings() -> None:
    mimic = _small(size=16)
    rois = torch.tensor([[0.0, 3, 5, 9, 8], [0, 12, 12, 13, 20], [0, 0, 0, 20, 20]])
    picture = torch.rand(1, 3, 20, 20)
    outside = torch.ones(20, 20, dtype=torch.bool)
    outside[5:8, 3:9] = False
    outside[12:, 12] = False
    patches, others = mimic.cut(picture, rois), mimic.cut(torch.where(outside, 1 - picture, picture), rois)
    torch.testing.assert_close(patches[:2], others[:2], rtol=0, atol=1e-5)
    # Half a pixel from the border is the middle of the first pixel: what lies nearer repeats it.
    torch.testing.assert_close(patches[0, :, 0, 0], picture[0, :, 5, 3], rtol=0, atol=1e-5)
    torch.testing.assert_close(patches[0, :, -1, -1], picture[0, :, 7, 8], rtol=0, atol=1e-5)
    assert not torch.allclose(patches[2], others[2])


def test_a_whole_picture_mimics_itself(detector: Make) -> None:
    # A proposal that is all of a 32×32 picture, cut out at 32×32, is that picture.
    net = detector(mimic=_small()).eval()
    picture, _ = net.batch([torch.rand(3, 32, 32)])
    roi, label = torch.tensor([[0.0, 0, 0, 32, 32]]), torch.tensor([1])
    features = net.describe(net.maps(picture)[1], roi)
    assert net.mimic(net, picture, roi, label, features)["mimic_cosine"].abs() < 1e-6


def test_the_paper_pools_patches_from_a_14_by_14_map(backbone: Make) -> None:
    seen = []
    for neck, options in (("c4", {"stem": "imagenet", "stride": 16}), ("fpn", {"stem": "imagenet"})):
        from pliant.models import ResNet

        torch.manual_seed(0)
        net = FasterRCNN(ResNet(18, width=4, **options), 2, neck=neck, channels=4, hidden=8, mimic=FeatureMimic())
        net.pool.pool = lambda x, rois, stride: seen.append((stride, x.shape[-1])) or torch.zeros(len(rois), 4, 7, 7)
        net.mimic.describe(net, torch.zeros(1, 3, 224, 224))
    assert seen == [(16, 14), (16, 14)]


def test_draws_up_to_count_of_each_picture() -> None:
    torch.manual_seed(0)
    picture = torch.tensor([0] * 10 + [1] * 10 + [3] * 10)
    labels = torch.tensor([0, 5, 1, 5, 2, 5, 3, 5, 4, 5] * 3)  # 5 is background
    labels[10:20] = 5
    foreground, background, both = (
        FeatureMimic(count=3, size=32, foreground=f, background=b)
        for f, b in ((True, False), (False, True), (True, True))
    )
    drawn = foreground.draw(picture, labels, 4, 5)
    assert picture[drawn].tolist() == [0] * 3 + [3] * 3 and (labels[drawn] < 5).all() and len(set(drawn.tolist())) == 6
    drawn = background.draw(picture, labels, 4, 5)
    assert picture[drawn].tolist() == [0] * 3 + [1] * 3 + [3] * 3 and (labels[drawn] == 5).all()
    seen = torch.cat([both.draw(picture, labels, 4, 5) for _ in range(200)])
    counts = torch.bincount(seen, minlength=30)
    assert counts.min() > 30 and counts.max() < 90  # 200 · 3/10 each, ± 6.5
    everything = FeatureMimic(count=99, size=32).draw(picture, labels, 4, 5)
    assert len(everything) == 10


@pytest.mark.parametrize(
    ("foreground", "background", "labels"), [(True, False, {0, 1}), (False, True, {2}), (True, True, {0, 1, 2})]
)
def test_foreground_and_background(
    foreground: bool, background: bool, labels: set[int], detector: Make, scenes: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = detector(mimic=_small(foreground=foreground, background=background))
    seen: list[int] = []
    entropy = F.cross_entropy
    pieces = _pieces(net, scenes)
    monkeypatch.setattr(F, "cross_entropy", lambda x, y, **rest: seen.extend(y.tolist()) or entropy(x, y, **rest))
    losses = net.mimic(net, *pieces)
    assert set(seen) == labels
    sum(losses.values()).backward()
    assert all(loss > 0 and loss.isfinite() for loss in losses.values())


def test_detached_target_stops_one_of_two_ways(detector: Make, scenes: Make) -> None:
    grads = []
    for detach in (False, True):
        net = detector(mimic=_small(detach_target=detach))
        pieces = _pieces(net, scenes)
        features = pieces[3].detach()  # the detector's own side is held
        loss = net.mimic(net, *pieces[:3], features)["mimic_cosine"]
        grads.append(loss.requires_grad)
        features = pieces[3]
        net.mimic(net, *pieces[:3], features)["mimic_cosine"].backward()
        assert net.fc1.weight.grad.abs().max() > 0
    assert grads == [True, False]


def test_falls_in_training(detector: Make, scenes: Make) -> None:
    net = detector(mimic=_small())
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    history = []
    for _ in range(25):
        losses = net(*scenes())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append([losses[name].item() for name in MIMIC])
    classification = [entropy for _, entropy in history]
    assert sum(classification[-3:]) < 0.7 * sum(classification[:3])
    # Features part from each other while the classes are learned; then, on its own, the cosine falls.
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    cosine = []
    for _ in range(10):
        torch.manual_seed(0)
        loss = net(*scenes())["mimic_cosine"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosine.append(loss.item())
    assert sum(cosine[-3:]) < 0.5 * sum(cosine[:3])


@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_vanishes_from_inference(neck: str, detector: Make, scenes: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = scenes()
    net, plain = detector(neck, mimic=_small()), detector(neck)
    assert {name for name in net.state_dict() if name not in plain.state_dict()} == {
        "mimic.classifier.weight",
        "mimic.classifier.bias",
    }

    def never(*arguments: Any) -> None:
        raise AssertionError("mimicking ran")

    monkeypatch.setattr(FeatureMimic, "forward", never)
    with_it = net.eval()(images)
    assert strip_training_only(net) is net and net.mimic is None
    plain.load_state_dict(net.state_dict())
    for a, b, c in zip(with_it, net(images), plain.eval()(images), strict=True):
        for key in ("boxes", "scores", "labels"):
            assert torch.equal(a[key], b[key]) and torch.equal(a[key], c[key])
    # And from training.
    assert not set(MIMIC) & set(net.train()(*scenes()))
    # Inside something else, too.
    wrapped = nn.Sequential(detector(neck, mimic=_small()))
    assert not any("mimic" in name for name in strip_training_only(wrapped).state_dict())


def test_zero_positives_is_zero_and_differentiable(detector: Make, scenes: Make) -> None:
    images, _ = scenes()
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    net = detector(mimic=_small())
    losses = net(images, [none, none])
    assert losses["mimic_cosine"] == losses["mimic_classification"] == 0
    (losses["mimic_cosine"] + losses["mimic_classification"]).backward()
    for parameter in (*net.mimic.parameters(), net.fc1.weight, net.backbone.conv1.weight):
        assert parameter.grad is not None and not parameter.grad.any()
    # Nothing at all.
    pictures, rois, labels, features = _pieces(net, scenes)
    losses = net.mimic(net, pictures, rois[:0], labels[:0], features[:0])
    assert losses["mimic_cosine"] == losses["mimic_classification"] == 0 and losses["mimic_cosine"].requires_grad
    # Silent features (all rectified away) have no direction: nothing breaks.
    losses = net.mimic(net, pictures, rois, labels, 0 * features)
    losses["mimic_cosine"].backward()
    assert losses["mimic_cosine"].item() == pytest.approx(0.1)
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_running_statistics_are_those_of_pictures(detector: Make, scenes: Make) -> None:
    statistics = []
    for mimic in (None, _small()):
        net = detector(mimic=mimic)
        net(*scenes())
        statistics.append({k: v for k, v in net.backbone.state_dict().items() if "running" in k or "tracked" in k})
    assert all(torch.equal(statistics[0][name], statistics[1][name]) for name in statistics[0])
    with pytest.raises(RuntimeError), statistics_kept(net):
        raise RuntimeError
    assert all(layer.track_running_stats for layer in net.modules() if isinstance(layer, nn.BatchNorm2d))


def test_the_same_seed_draws_the_same(detector: Make, scenes: Make) -> None:
    values = []
    for _ in range(2):
        net = detector(mimic=_small(count=1))
        torch.manual_seed(3)
        values.append([loss.item() for loss in net(*scenes()).values()])
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"foreground": False}, "foreground or background must be True, or there is nothing to draw"),
        ({"reduction": "max"}, "reduction must be 'mean' or 'sum', got 'max'"),
        ({"count": 0}, "count and size must be at least 1, got 0 and 224"),
    ],
)
def test_errors(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^FeatureMimic: {sentence}$"):
        FeatureMimic(**options)


def test_error_of_a_second_detector(detector: Make) -> None:
    mimic = _small()
    detector(mimic=mimic)
    with pytest.raises(ValueError, match=r"^FeatureMimic: it belongs to a detector already; make one for each$"):
        detector(mimic=mimic)


def test_error_of_a_size_too_small(detector: Make) -> None:
    with pytest.raises(ValueError, match=r"^FeatureMimic: size must be at least two cells of stride 16, got 31$"):
        detector(mimic=_small(size=31))
