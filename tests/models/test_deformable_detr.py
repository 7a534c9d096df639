"""Deformable DETR: where it looks, its queries and groups, training and detection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pliant.models import DeformableDETR, ResNet
from pliant.models.set_loss import set_loss
from pliant.nn import MSDeformAttn, parameter_groups

Make = Callable[..., Any]
LOSSES = {"classification", "box", "giou"}
PROPOSED = {f"proposal_{name}" for name in LOSSES}


@pytest.fixture
def detr(backbone: Make) -> Make:
    """Return a function that makes a tiny Deformable DETR for 64×64 pictures of 2 classes."""

    def make(**options: Any) -> DeformableDETR:
        small: dict[str, Any] = {"levels": (1, 2, 3), "extra": 0, "channels": 32, "heads": 4, "points": 2}
        small |= {"encoder_layers": 1, "decoder_layers": 2, "hidden": 64, "queries": 10, "dropout": 0.0}
        net = DeformableDETR(**({"backbone": backbone(), "classes": 2} | small | options))
        return net

    return make


def _check(losses: dict[str, Tensor], two_stage: bool = True) -> Tensor:
    assert set(losses) == LOSSES | (PROPOSED if two_stage else set())
    assert all(loss.shape == () and loss.isfinite() and loss >= 0 for loss in losses.values())
    total: Tensor = sum(losses.values())  # type: ignore[assignment]
    return total


@pytest.mark.parametrize("two_stage", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("extra", [0, 2])
def test_every_option_trains_and_detects(two_stage: bool, groups: int, extra: int, detr: Make, scenes: Make) -> None:
    net = detr(two_stage=two_stage, groups=groups, extra=extra)
    images, targets = scenes()
    images[1] = images[1][:, :50, :40]
    targets[1]["boxes"] = targets[1]["boxes"] / 2
    _check(net(images, targets), two_stage).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    reached = [
        "backbone.conv1",
        "projections.0",
        "encoder.0.attention.value_proj",
        "encoder.0.attention.sampling_offsets",
    ]
    reached += ["decoder.1.attention.sampling_offsets", "decoder.1.among", "predictions.1.classifier"]
    reached += ["describe", "propose.classifier"] if two_stage else ["query"]
    for start in reached:
        grads = [p.grad.abs().max() for name, p in net.named_parameters() if name.startswith(start)]
        assert grads and max(grads) > 0, start
    for found, image in zip(net.eval()(images), images, strict=True):
        assert (found["scores"].diff() <= 0).all() and found["boxes"].isfinite().all()
        assert (found["boxes"] >= 0).all() and (found["boxes"][:, 2:] <= torch.tensor(image.shape[:0:-1])).all()


def test_the_papers_network() -> None:
    with torch.device("meta"):
        net = DeformableDETR(ResNet(50), 80)
    layers = [m for m in net.modules() if isinstance(m, MSDeformAttn)]
    assert len(layers) == 12 and all((m.levels, m.heads, m.points) == (4, 8, (4,) * 4) for m in layers)
    assert net.strides == [8, 16, 32, 64] and [p[0].kernel_size for p in net.projections] == [(1, 1)] * 3 + [(3, 3)]
    assert [p[0].in_channels for p in net.projections] == [512, 1024, 2048, 2048]
    assert (net.queries, net.encoder[0].feed.linear1.out_features) == (300, 1024)


def test_boxes_start_where_pixels_are(detr: Make, scenes: Make) -> None:
    """Before training nothing moves: proposals are boxes of four cells around the pixels, and stay in the decoder."""
    net = detr(score_threshold=0.0, max_detections=1000, queries=10**6).eval()
    (found,) = net([scenes()[0][0]])
    assert len(found["boxes"]) == 2 * (16**2 + 8**2 + 4**2)  # both classes of all pixels of strides 4, 8 and 16
    centres = (found["boxes"][:, :2] + found["boxes"][:, 2:]) / 2
    sides = found["boxes"][:, 2:] - found["boxes"][:, :2]
    inner = (found["boxes"] > 0).all(1) & (found["boxes"] < 64).all(1)
    for stride in (4, 8):
        mine = inner & ((sides - 4 * stride).abs() < 0.01).all(1)
        cells = centres[mine] / stride - 0.5
        assert mine.sum() == 2 * (64 // stride - 4 + 1 - 1) ** 2 and (cells - cells.round()).abs().max() < 0.01


def test_an_image_alone_and_in_a_padded_batch(detr: Make) -> None:
    """Padding is not looked at, but for the map of the backbone, whose padding is there too."""
    torch.manual_seed(0)
    net = detr(score_threshold=0.0, queries=30).eval()
    for layer in net.modules():
        if isinstance(layer, MSDeformAttn):
            torch.nn.init.normal_(layer.sampling_offsets.weight, std=0.3)
            torch.nn.init.normal_(layer.attention_weights.weight, std=0.3)
    small, large = torch.rand(3, 64, 64), torch.rand(3, 96, 128)
    # Instead of a backbone: maps of the images, so that padding changes nothing before the transformer.
    net.projections = torch.nn.ModuleList(_Plain() for _ in range(3))

    def maps(images: Tensor) -> list[Tensor]:
        return [torch.nn.functional.avg_pool2d(images, s).repeat(1, 11, 1, 1)[:, :32] for s in (2, 4, 8, 16)]

    net.backbone.forward = maps  # type: ignore[method-assign]
    (alone,), (together, _) = net([small]), net([small, large])
    assert len(alone["boxes"]) == 60
    torch.testing.assert_close(together["scores"], alone["scores"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together["boxes"], alone["boxes"], rtol=1e-3, atol=1e-2)


class _Plain(torch.nn.Module):
    def forward(self, map: Tensor) -> Tensor:
        return map


def test_groups_do_not_see_each_other(detr: Make, scenes: Make) -> None:
    """A group's queries answer as they would without the other groups."""
    net = detr(two_stage=False, groups=3)
    images = scenes()[0]
    padded, sizes = net.batch(images)
    levels = net.pyramid(net.backbone.eval()(padded), sizes)
    _, queries = net.chosen(levels.value, levels)
    assert queries.groups == 3 and queries.content.shape == (2, 30, 32)
    every = net.decode(levels.value, levels, queries)
    parts = (x[:, 10:20] for x in queries[:3])
    for whole, alone in zip(every, net.decode(levels.value, levels, type(queries)(*parts, 1)), strict=True):
        torch.testing.assert_close(whole[0][:, 10:20], alone[0])
        torch.testing.assert_close(whole[1][:, 10:20], alone[1])


def test_groups_take_turns_and_few_pixels_are_enough(detr: Make, scenes: Make) -> None:
    net = detr(groups=2, queries=3)
    images = scenes()[0][:1]
    padded, sizes = net.batch(images)
    levels = net.pyramid(net.backbone.eval()(padded), sizes)
    torch.nn.init.normal_(net.propose.classifier.weight)
    proposed, queries = net.chosen(levels.value, levels)
    score = proposed[0].amax(2)[0]
    order = score.argsort(descending=True)[:6]
    chosen = proposed[1][0, order[[0, 2, 4, 1, 3, 5]]]
    assert torch.equal(queries.reference[0], chosen)
    # The first group, with the same queries as in training, answers in evaluation.
    answering = net.eval().chosen(levels.value, levels)[1]
    assert answering.groups == 1 and torch.equal(answering.reference[0], chosen[:3])
    few = detr(levels=(3,), groups=7, queries=9)
    _, queries = few.chosen(torch.zeros(1, 16, 32), few.pyramid(few.backbone(padded), sizes))
    assert queries.groups == 7 and queries.content.shape == (1, 14, 32)


def test_losses_are_those_of_every_layer_and_group(detr: Make, scenes: Make) -> None:
    net = detr(groups=2)
    images, targets = scenes()
    truth = net.truth(targets, 2)
    truth = truth._replace(boxes=truth.boxes / 64)
    random = torch.Generator().manual_seed(5)
    predicted = [(torch.randn(2, 8, 2, generator=random), torch.rand(2, 8, 4, generator=random)) for _ in range(2)]
    by_hand = sum(
        set_loss(logits[:, part], found[:, part], truth, net.weights) / 2
        for logits, found in predicted
        for part in (slice(0, 4), slice(4, 8))
    )
    losses = net.losses(predicted, truth, 2)
    torch.testing.assert_close(torch.stack([losses[name] for name in ("classification", "box", "giou")]), by_hand)
    assert images[0].shape == (3, 64, 64)


def test_detections_by_hand(detr: Make) -> None:
    net = detr(score_threshold=0.5, max_detections=3)
    logits = torch.tensor([[[0.0, 2.0], [1.0, -1.0], [3.0, -9.0]]])
    found = torch.tensor([[[0.5, 0.5, 0.5, 0.25], [0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.1, 0.1]]])
    (one,) = net.detections(logits, found, torch.tensor([[64.0, 32.0]]))
    torch.testing.assert_close(one["scores"], torch.tensor([3.0, 2.0, 1.0]).sigmoid())
    assert one["labels"].tolist() == [0, 1, 0]
    wanted = [[12.8, 6.4, 19.2, 9.6], [16, 12, 48, 20], [0, 0, 16, 8]]
    torch.testing.assert_close(one["boxes"], torch.tensor(wanted))
    broken = net.detections(logits, found * torch.nan, torch.tensor([[64.0, 32.0]]))
    assert len(broken[0]["boxes"]) == 0


def test_offsets_and_points_of_reference_learn_slower(detr: Make) -> None:
    net = detr(two_stage=False)
    rates = {id(p): group["lr"] for group in parameter_groups(net, 1.0) for p in group["params"]}
    slow = {name.rsplit(".", 2)[-2] for name, p in net.named_parameters() if rates[id(p)] == 0.1}
    assert slow == {"sampling_offsets", "reference_points"} and len(rates) == len(list(net.parameters()))


@pytest.mark.parametrize("two_stage", [True, False])
def test_learns_two_pictures(two_stage: bool, detr: Make, learn: Make) -> None:
    learn(detr(two_stage=two_stage, groups=2), 2e-3, 150)


def test_hard_pictures_stay_finite(detr: Make) -> None:
    net = detr()
    images = [torch.rand(3, 1, 1), torch.rand(3, 40, 70)]
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    outside = {"boxes": torch.tensor([[-50.0, -60, -10, -20], [-9, -9, 99, 99]]), "labels": torch.tensor([0, 1])}
    for targets in ([none, outside], [outside, none], [none, none]):
        net.train()
        _check(net(images, targets)).backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())
        assert all(found["boxes"].isfinite().all() for found in net.eval()(images))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"levels": (2, 1)}, "levels must be some of 0, 1, 2 and 3, in this order, got (2, 1)"),
        ({"levels": ()}, "levels must be some of 0, 1, 2 and 3, in this order, got ()"),
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"encoder_layers": 0}, "encoder_layers must be at least 1, got 0"),
        ({"extra": -1}, "extra must be at least 0, and dropout also less than 1, got -1 and 0.0"),
        ({"dropout": 1.0}, "extra must be at least 0, and dropout also less than 1, got 0 and 1.0"),
        ({"channels": 30}, "channels must be a multiple of 4 and of heads=4, got 30"),
        ({"heads": 5}, "channels must be a multiple of 4 and of heads=5, got 32"),
        ({"weights": (1, 2)}, "weights must be three numbers of at least 0, got (1, 2)"),
        ({"classes": 0}, "classes must be at least 1, got 0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], sentence: str, detr: Make) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        detr(**settings)
    assert str(error.value) == f"DeformableDETR: {sentence}"


def test_bad_images_and_targets(detr: Make) -> None:
    net = detr()
    with pytest.raises(TypeError, match=r"^DeformableDETR: images\[0\] must be a floating-point tensor"):
        net([torch.zeros(3, 8, 8, dtype=torch.uint8)], None)
    with pytest.raises(ValueError, match=r"^DeformableDETR: in training every image needs a target, got none for 1"):
        net([torch.rand(3, 64, 64)])
