from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pliant.app.explore import networks
from pliant.app.explore.look import look, packed
from pliant.app.explore.networks import Network
from pliant.app.explore.pictures import Gallery, canvas
from pliant.models import RFCN, ResNet
from pliant.show.bins import bins
from pliant.show.boxes import colour
from pliant.show.recording import record
from pliant.studies.detection.measures import bin_shifts


def unpacked(entry: dict[str, Any]) -> Tensor:
    whole = np.frombuffer(base64.b64decode(entry["int16"]), "<i2")
    return torch.from_numpy(whole.astype(np.float64)) * entry["factor"]


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    return Gallery()


def test_packed_numbers_are_off_by_half_a_step() -> None:
    values = torch.tensor([-3.0, 0.1, 2.99999, 0.0])
    assert float((unpacked(packed(values)) - values).abs().max()) <= 0.5 * 3 / 32767
    assert unpacked(packed(torch.zeros(3))).tolist() == [0.0, 0.0, 0.0]


def test_steps_are_what_was_recorded(grouped: Path, gallery: Gallery) -> None:
    network, picture = networks.read(grouped), gallery.find("scene-1")
    answer = json.loads(json.dumps(look(network, picture, 1.2, 30.0)))
    seen = canvas(picture, network, 1.2, 30.0)
    recorded = [step for _, step in record(network.body(), network.prepare(seen)).steps("")]
    deformable = [entry["name"] for entry in answer["steps"] if entry["deformable"]]
    # The names that the figures of `pliant show` have.
    assert deformable == list(record(network.model, seen).deformable()) and len(deformable) == 4
    for entry, step in zip(answer["steps"], recorded, strict=True):
        T, Q = len(step.regular), step.above[0] * step.above[1]
        where, counts = step.samples(torch.arange(Q))
        assert (entry["below"], entry["above"]) == ([*step.below], [*step.above])
        outputs = torch.cartesian_prod(*(torch.arange(n) for n in step.above)).double() * step.stride
        positions = torch.tensor(entry["regular"])[:, None].double() + outputs
        weights = torch.full((T, Q), entry["weight"])
        assert entry["deformable"] == (entry["groups"] == 2)
        if entry["deformable"]:
            positions = positions + unpacked(entry["moves"]).view(T, Q, 2)
            weights = unpacked(entry["weights"]).view(T, Q)
        torch.testing.assert_close(positions, where, rtol=0, atol=1e-3)
        torch.testing.assert_close(weights.double(), counts, rtol=0, atol=1e-4)
    assert [entry["modulated"] for entry in answer["steps"] if entry["deformable"]] == [False, False, True, True]


def test_classifier_answers_as_it_does(bundled: dict[str, Network], gallery: Gallery) -> None:
    network, picture = bundled["deform-v1-3"], gallery.find("object-9")
    answer = look(network, picture)
    with torch.no_grad():
        chances = network.model(canvas(picture, network)[None, :1])[0].softmax(0)
    best = int(chances.argmax())
    assert answer["answers"][0] == {"label": network.classes[best], "chance": round(float(chances[best]), 4)}
    assert answer["detection"] is None and (answer["width"], answer["height"]) == (64, 64)


def test_responses_are_those_of_the_first_layer(bundled: dict[str, Network], gallery: Gallery) -> None:
    network, picture = bundled["mdconv-c3-c5-mdpool"], gallery.find("scene-2")
    found = look(network, picture)["responses"]
    whole = np.frombuffer(base64.b64decode(found["uint8"]), np.uint8).astype(np.float64) * found["factor"]
    with torch.no_grad():
        first = network.stem(network.prepare(canvas(picture, network)))
    first = torch.nn.functional.avg_pool2d(first, 2)[0].double()
    assert (found["channels"], found["height"], found["width"], found["cell"]) == (16, 32, 32, 4)
    torch.testing.assert_close(
        torch.from_numpy(whole).view(first.shape), first, rtol=0, atol=0.51 * float(first.max()) / 255
    )


@pytest.mark.parametrize("id", ["scene-1", "scene-4"])
def test_detections_are_the_detectors_and_come_from_their_rois(
    bundled: dict[str, Network], gallery: Gallery, id: str
) -> None:
    network, picture = bundled["mdconv-c3-c5-mdpool"], gallery.find(id)
    found = look(network, picture)["detection"]
    model: Any = network.model
    seen = canvas(picture, network)
    with torch.no_grad():
        expected = model([seen])[0]
        objects = found["objects"]
        assert len(objects) > 3
        torch.testing.assert_close(torch.tensor([o["box"] for o in objects]), expected["boxes"][: len(objects)])
        assert [o["colour"] for o in objects] == [colour(c) for c in expected["labels"][: len(objects)].tolist()]
        rois = torch.tensor([o["roi"] for o in objects])
        assert all(roi in found["proposals"] for roi in rois.round(decimals=2).tolist())
        # Moved by the network, a detection's RoI is its box.
        _, maps = model.maps(model.batch([seen])[0])
        _, deltas, _ = model.head(maps, torch.cat((torch.zeros(len(rois), 1), rois), 1))
        for object, roi, delta in zip(objects, rois, deltas, strict=True):
            (dx, dy, dw, dh), (x1, y1, x2, y2) = delta[network.classes.index(object["label"])].tolist(), roi.tolist()
            x, y = (x1 + x2) / 2 + 0.1 * dx * (x2 - x1), (y1 + y2) / 2 + 0.1 * dy * (y2 - y1)
            w, h = (x2 - x1) * np.exp(0.2 * dw), (y2 - y1) * np.exp(0.2 * dh)
            box = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, 128)
            np.testing.assert_allclose(object["box"], box, atol=1e-2)
        shifts, masks = bin_shifts(model, (seen * 255).round().to(torch.uint8), rois)
    sides = (rois[:, 2:] - rois[:, :2])[..., None, None]
    moves = unpacked(found["bins"]).view(len(rois), 7, 7, 2)
    torch.testing.assert_close(moves, (shifts * sides).permute(0, 2, 3, 1).flip(3).double(), rtol=0, atol=2e-2)
    assert masks is not None
    torch.testing.assert_close(unpacked(found["masks"]).view(len(rois), 7, 7), masks[:, 0].double(), rtol=0, atol=1e-3)


def test_detectors_of_parts_move_the_bins_of_each_class(gallery: Gallery) -> None:
    torch.manual_seed(0)
    backbone = ResNet(10, deform=(None, None, None, "v1"), width=4, stem="small", stride=16)
    model = RFCN(backbone, 2, width=8, bins=3, roi_pool="deform_ps", post_nms=(9, 9)).eval()
    with torch.no_grad():
        assert model.classifier.deform is not None
        for parameter in model.classifier.deform.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    network, picture = Network("a", "a", "", model, ("cat", "dog"), 64), gallery.find("scene-1")
    found = look(network, picture)["detection"]
    objects, moves = found["objects"], unpacked(found["bins"]).view(-1, 3, 3, 2)
    assert len(moves) == len(objects) > 0 and {o["label"] for o in objects} == {"cat", "dog"}
    seen = canvas(picture, network)
    for i, object in enumerate(objects):
        label = network.classes.index(object["label"])
        expected = bins(model, seen, torch.tensor([object["roi"]]) - torch.tensor([0.0, 0, 1, 1]), label=label)
        np.testing.assert_allclose(object["roi"], expected.boxes[0])
        np.testing.assert_allclose(moves[i], (expected.moved - expected.regular)[0], atol=2e-2)
