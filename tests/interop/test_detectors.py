"""Whole detectors in the layouts of other libraries detect the same after `pliant convert`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pliant import app
from pliant.interop import checkpoints
from pliant.models import FasterRCNN, Predictor, ResNet, checkpoint
from pliant.models.boxes import decode
from pliant.models.rpn import Anchors
from pliant.nn import DeformConv2d

State = dict[str, Tensor]
# What the three libraries have in common and we have not by default.
SETTINGS: dict[str, dict[str, Any]] = {
    "torchvision": {"anchor_rule": "torchvision", "roi_aligned": False, "smallest": 0.01},
    "mmdet": {
        "anchor_rule": "corner", "sampling_ratio": 0, "limit_shrinking": True, "rpn_smallest": 0.0, "smallest": -1.0
    },
    "detectron2": {"anchor_rule": "corner", "sampling_ratio": 0, "rpn_smallest": 0.0},
}  # fmt: skip
INTERPOLATION = {"torchvision": "torchvision", "mmdet": "opencv", "detectron2": "pillow"}


def _detector(classes: int = 5, deform: str | None = None, **options: Any) -> FasterRCNN:
    """Return a narrow detector whose weights and statistics are all random, with tens of detections."""
    torch.manual_seed(0)
    caffe = options.pop("caffe", False)
    backbone = ResNet(
        26, width=16, deform=(None, None, None, deform), mask_scale=1.0, frozen_bn=True,
        stride_in="1x1" if caffe else "3x3",
    )  # fmt: skip
    if caffe:
        options["std"] = (1 / 255,) * 3
    net = FasterRCNN(backbone, classes, channels=16, hidden=32, in_padding=True, post_nms=(100, 1000), **options)
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.dim() > 1:
            tensor.normal_()
        elif name.endswith("bias"):
            tensor.normal_(std=0.2)
    # What a layer computes of an image gets this spread, else 1; scores that saturate would tie.
    spreads = {net.rpn.predict: 0.3, net.regressor: 0.3, net.classifier: 2.0}

    def scale(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        factor = spreads.get(layer, 1.0) / output.std()
        for parameter in layer.parameters(recurse=False):
            parameter.mul_(factor)
        return output * factor

    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear | DeformConv2d)]
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    with torch.no_grad():
        net.eval()([torch.rand(3, 120, 160)])
    for hook in hooks:
        hook.remove()
    return net


def _write(net: FasterRCNN, library: str) -> State:
    """Return the weights of `net` as the library writes them, by hand and not by inverting the converter."""
    state = net.state_dict()
    logits = {kind: state[f"rpn.predict.{kind}"][0::5] for kind in ("weight", "bias")}
    rows = [i for i in range(len(state["rpn.predict.bias"])) if i % 5]
    deltas = {kind: state[f"rpn.predict.{kind}"][rows] for kind in ("weight", "bias")}
    scores = {kind: state[f"classifier.{kind}"] for kind in ("weight", "bias")}
    moves = {kind: state[f"regressor.{kind}"] for kind in ("weight", "bias")}
    written: State = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part not in ("backbone", "neck", "pool"):
            continue
        if library == "mmdet":
            name = name.replace("neck.lateral.", "neck.lateral_convs.").replace("neck.output.", "neck.fpn_convs.")
            name = name.replace("pool.deform.", "roi_head.bbox_roi_extractor.roi_layers.")
            level, _, kind = name.rpartition(".")
            name = f"{level}.conv.{kind}" if part == "neck" else name
        elif library == "torchvision":
            name = f"backbone.body.{rest}" if part == "backbone" else name
            name = name.replace("neck.lateral.", "backbone.fpn.inner_blocks.")
            name = name.replace("neck.output.", "backbone.fpn.layer_blocks.")
            level, _, kind = name.rpartition(".")
            name = f"{level}.0.{kind}" if part == "neck" else name
        else:
            name = name.replace("backbone.", "backbone.bottom_up.")
            if part == "neck":
                _, kind, level, what = name.split(".")
                name = f"backbone.fpn_{kind}{int(level) + 2}.{what}"
            for stem in ("conv1", "bn1"):
                name = name.replace(f"bottom_up.{stem}.", f"bottom_up.stem.{stem}.").replace(
                    "stem.bn1", "stem.conv1.norm"
                )
            for i in (1, 2, 3, 4):
                name = name.replace(f"layer{i}.", f"res{i + 1}.")
            for i in (1, 2, 3):
                name = name.replace(f".bn{i}.", f".conv{i}.norm.")
            name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
            name = name.replace("conv2.conv_offset.", "conv2_offset.")
            tensor = tensor.flip(1) if name.endswith("stem.conv1.weight") else tensor  # BGR
        written[name] = tensor
    names = {
        "torchvision": ("rpn.head.conv.0.0", "rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.box_head.fc6",
                        "roi_heads.box_head.fc7", "roi_heads.box_predictor.cls_score",
                        "roi_heads.box_predictor.bbox_pred"),
        "mmdet": ("rpn_head.rpn_conv", "rpn_head.rpn_cls", "rpn_head.rpn_reg", "roi_head.bbox_head.shared_fcs.0",
                  "roi_head.bbox_head.shared_fcs.1", "roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg"),
        "detectron2": ("proposal_generator.rpn_head.conv", "proposal_generator.rpn_head.objectness_logits",
                       "proposal_generator.rpn_head.anchor_deltas", "roi_heads.box_head.fc1",
                       "roi_heads.box_head.fc2", "roi_heads.box_predictor.cls_score",
                       "roi_heads.box_predictor.bbox_pred"),
    }[library]  # fmt: skip
    for kind in ("weight", "bias"):
        if library == "torchvision":  # the background comes first, and has deltas
            scores[kind] = torch.cat([scores[kind][-1:], scores[kind][:-1]])
            moves[kind] = torch.cat([torch.full_like(moves[kind][:4], 9.0), moves[kind]])
        parts = (
            state[f"rpn.conv.{kind}"], logits[kind], deltas[kind], state[f"fc1.{kind}"], state[f"fc2.{kind}"],
            scores[kind], moves[kind],
        )  # fmt: skip
        written |= {f"{name}.{kind}": tensor for name, tensor in zip(names, parts, strict=True)}
    return {name: tensor.clone() for name, tensor in written.items()}


def _photograph(path: Path) -> Tensor:
    random = np.random.default_rng(0)
    pixels = np.kron(random.integers(0, 256, (11, 15, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return torch.from_numpy(pixels).permute(2, 0, 1)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("torchvision", {}),
    ("mmdet", {}),
    ("mmdet", {"deform": "v2"}),
    ("mmdet", {"roi_pool": "deform", "roi_hidden": (24, 24), "roi_per_map": True}),
    ("mmdet", {"roi_pool": "modulated", "roi_hidden": (24, 24), "roi_per_map": True, "roi_mask_trunk": True}),
    ("mmdet", {"class_agnostic": True}),
    ("detectron2", {"deform": "v1", "caffe": True}),
]


@pytest.mark.parametrize(("library", "options"), CASES, ids=lambda value: str(value))
def test_a_converted_detector_detects_the_same(library: str, options: dict[str, Any], tmp_path: Path) -> None:
    net = _detector(**SETTINGS[library], **options)
    torch.save(_write(net, library), tmp_path / "theirs.pth")
    converted = tmp_path / "ours.pt"
    assert app.main(["convert", str(tmp_path / "theirs.pth"), str(converted), "--from", library]) == 0
    state = checkpoint.read(converted)
    data = state["recipe"]["data"]
    assert data == {"short_side": 800, "long_side": 1333, "interpolation": INTERPOLATION[library]}
    data |= {"short_side": 120, "long_side": 200}  # less to compute
    predictor = Predictor.of(state)
    assert {name: tensor.shape for name, tensor in predictor.model.state_dict().items()} == {
        name: tensor.shape for name, tensor in net.state_dict().items()
    }
    image = _photograph(tmp_path / "photograph.png")
    W, H = 164, 120
    if library == "torchvision":
        factor = 120 / 44  # both sides are rounded down, 119.99… too
        small = nn.functional.interpolate(
            image[None].float() / 255, scale_factor=factor, mode="bilinear", recompute_scale_factor=True
        )[0]
        H, W = small.shape[1:]
        assert (H, W) in ((119, 163), (120, 163))
    elif library == "mmdet":
        import cv2

        small = cv2.resize(image.permute(1, 2, 0).contiguous().numpy(), (W, H), interpolation=cv2.INTER_LINEAR)
        small = torch.from_numpy(small).permute(2, 0, 1).float() / 255
    else:
        picture = Image.open(tmp_path / "photograph.png").resize((W, H), Image.Resampling.BILINEAR)
        small = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    (wanted,) = net([small])
    (found,) = predictor([tmp_path / "photograph.png"])
    assert len(found["scores"]) > 20 and torch.equal(found["labels"], wanted["labels"])
    torch.testing.assert_close(found["scores"], wanted["scores"], rtol=0, atol=1e-5)
    back = torch.tensor([60 / W, 44 / H, 60 / W, 44 / H])
    torch.testing.assert_close(found["boxes"], wanted["boxes"] * back, rtol=0, atol=1e-3)


def test_anchors_of_torchvision() -> None:
    # torchvision's AnchorGenerator for an image of 160×96 pixels: the last map has 2 rows and 3 columns.
    maps = [torch.zeros(1, 1, -(-96 // s), -(-160 // s)) for s in (4, 8, 16, 32, 64)]
    ratios = (0.5, 1.0, 2.0)
    anchors, _ = Anchors((4, 8, 16, 32, 64), [[8 * s] for s in (4, 8, 16, 32, 64)], ratios, "torchvision")(maps)
    first = torch.tensor([[-23.0, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]])
    assert torch.equal(anchors[:3], first) and torch.equal(anchors[3:6], first + torch.tensor([4.0, 0, 4, 0]))
    last = torch.tensor([[-362.0, -181, 362, 181], [-256, -256, 256, 256], [-181, -362, 181, 362]])
    for cell, (x, y) in enumerate([(0, 0), (53, 0), (106, 0), (0, 48), (53, 48), (106, 48)]):
        at = len(anchors) - 18 + 3 * cell
        assert torch.equal(anchors[at : at + 3], last + torch.tensor([x, y, x, y]))


def test_anchors_at_corners_and_in_the_middle_of_cells() -> None:
    middle, corner = (
        Anchors((8,), [[32]], (0.5, 2.0), rule)([torch.zeros(1, 1, 2, 3)])[0] for rule in ("middle", "corner")
    )
    torch.testing.assert_close(middle, corner + 4)
    torch.testing.assert_close(corner[0], torch.tensor([-1.0, -0.5, 1, 0.5]) * 32 / 2**0.5)
    with pytest.raises(
        ValueError, match=r"^RPN: anchor_rule must be one of 'middle', 'corner', 'torchvision', got 'x'"
    ):
        Anchors((8,), [[32]], (1.0,), "x")


def test_sides_shrink_without_a_limit_unless_told() -> None:
    anchor, deltas = torch.tensor([[0.0, 0, 1000, 1000]]), torch.tensor([[0.0, 0, -9, 9]])
    sides = {limited: decode(deltas, anchor, limit_shrinking=limited)[0] for limited in (False, True)}
    assert float(sides[True][2] - sides[True][0]) == pytest.approx(16, abs=1e-3)
    assert float(sides[False][2] - sides[False][0]) == pytest.approx(1000 * math.exp(-9), abs=1e-3)
    assert torch.equal(sides[True][1::2], sides[False][1::2])


@pytest.mark.parametrize("smallest", [0.0, -1.0])
def test_boxes_without_area_are_kept_where_the_library_keeps_them(smallest: float) -> None:
    net = _detector(smallest=smallest, max_detections=5)
    rois = torch.tensor([[0.0, 0, 0, 16, 16]])
    logits = torch.tensor([[9.0, 0, 0, 0, 0, 0]])
    deltas = torch.zeros(1, 5, 4)
    deltas[..., 0] = -100.0  # to the left of the image
    (found,) = net.detections(rois, logits, deltas, torch.tensor([[64.0, 64]]))
    assert found["boxes"].tolist() == ([] if smallest == 0 else [[0.0, 0, 0, 16]])


def test_cells_in_the_padding_propose_where_the_library_lets_them() -> None:
    net = _detector()
    maps, _ = net.maps(net.batch([torch.rand(3, 64, 64), torch.rand(3, 64, 256)])[0])
    sizes = torch.tensor([[64.0, 64], [256, 64]])
    net.rpn.pre_nms = net.rpn.post_nms = (10**6, 10**6)
    net.rpn.nms_threshold = 1.0
    counts = []
    for net.rpn.in_padding in (False, True):
        _, present, _ = net.rpn(maps, sizes, None)
        counts.append(present.sum(1).tolist())
    assert counts[0][0] < counts[1][0] and counts[0][1] == counts[1][1]


def test_what_is_not_a_faster_rcnn_on_a_pyramid_says_so(tmp_path: Path) -> None:
    state = _write(_detector(**SETTINGS["mmdet"]), "mmdet")
    whole = checkpoints.convert(state, "mmdet")
    assert whole.detector and not whole.note
    mask = {**state, "roi_head.mask_head.conv_logits.weight": torch.zeros(5, 8, 1, 1)}
    assert "1 tensors of other heads are left over" in checkpoints.convert(mask, "mmdet").note
    wide = {**state, "backbone.layer1.0.conv2.weight": torch.zeros(16, 4, 3, 3)}
    more = {name: torch.cat([t] * 2) if "rpn_cls" in name or "rpn_reg" in name else t for name, t in state.items()}
    for other in (wide, more):
        parts = checkpoints.convert(other, "mmdet")
        assert not parts.detector and parts.note.startswith("only parts are converted, not the detector: ")
        assert "neck.lateral.0.weight" in parts.state and "classifier.weight" not in parts.state
    with pytest.raises(ValueError, match=r"^convert: the detector has 5 classes, got 1 names$"):
        checkpoints.convert(state, "mmdet", classes=["cat"])
    assert checkpoints.convert(state, "mmdet", classes=list("abcde")).detector["classes"] == list("abcde")


def test_the_variances_of_coco_v1_have_no_epsilon(tmp_path: Path) -> None:
    net = _detector(**SETTINGS["torchvision"])
    state = _write(net, "torchvision")
    state["backbone.body.bn1.running_var"][0] = 1e-6
    done = checkpoints.convert(state, "torchvision", eps=0.0)
    x = torch.rand(1, 16, 4, 4)
    net.load_state_dict(done.state)
    names = ("running_mean", "running_var", "weight", "bias")
    mean, var, weight, bias = (state[f"backbone.body.bn1.{name}"].view(-1, 1, 1) for name in names)
    wanted = (x - mean) / var.sqrt() * weight + bias  # F.batch_norm of torch 2.10 refuses an epsilon of 0
    torch.testing.assert_close(net.backbone.bn1(x), wanted)


def test_loading_parts_into_a_detector_names_the_option(tmp_path: Path) -> None:
    net = _detector(**SETTINGS["mmdet"])
    state = _write(net, "mmdet")
    parts = checkpoints.convert({k: v for k, v in state.items() if "head" not in k}, "mmdet")
    checkpoints.write(tmp_path / "parts.pt", parts.state, parts.record)
    with pytest.raises(ValueError, match=r"has no heads, .*pliant convert IN OUT --from mmdet without --take"):
        checkpoints.load(net, tmp_path / "parts.pt")
    whole = checkpoints.convert(state, "mmdet")
    checkpoints.write(tmp_path / "whole.pt", whole.state, whole.record)
    assert checkpoints.load(net, tmp_path / "whole.pt") == []
