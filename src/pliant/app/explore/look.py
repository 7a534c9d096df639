"""One look through a network at a picture: all that the page needs to follow the pointer by itself, ready for JSON."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.app.explore.networks import Network
from pliant.app.explore.pictures import Picture, canvas, png_address
from pliant.models import FasterRCNN, boxes
from pliant.models.two_stage import TwoStage, listed
from pliant.show.paths import Step
from pliant.show.recording import Node, Recording, choice, record

RESPONSES = 32  # longer side of the map of first responses, in cells
LEAST = 0.05  # score of a detection that is shown


@torch.no_grad()
def look(network: Network, picture: Picture, scale: float = 1.0, angle: float = 0.0) -> dict[str, Any]:
    """Return what a network does with a picture in a pose.

    ``width``, ``height``, ``picture`` (a data: address); ``steps``, from the picture upwards, what
    :class:`pliant.show.paths.Step` holds of each layer; ``responses`` of the first layer; of a classifier
    ``answers``, its three likeliest, of a detector ``detection``. Arrays are base64 of little-endian integers with a
    factor: 16 bits of the largest magnitude, so that a position is off by at most 1/65534 of the largest offset.
    """
    network = network.own()
    seen = canvas(picture, network, scale, angle)
    input = network.prepare(seen)
    _, H, W = seen.shape
    names, chain = way(record(network.body(), input))
    titles = network.titles(names, [step.taps for step in chain])
    return {
        "width": W,
        "height": H,
        "picture": png_address(seen),
        "grey": not network.detects,
        "steps": [_step(step, title) for step, title in zip(chain, titles, strict=True)],
        "responses": _responses(network, input),
        "answers": None if network.detects else _answers(network, input),
        "detection": _detection(network, seen) if isinstance(network.model, TwoStage) else None,
    }


def packed(values: Tensor) -> dict[str, Any]:
    """Return numbers as 16-bit integers with a factor.

    >>> packed(torch.tensor([1.0, -2.0]))["factor"] * 32767
    2.0
    """
    values = values.double()
    factor = max(float(values.abs().max()) if values.numel() else 0.0, 1e-30) / 32767
    whole = (values / factor).round().to(torch.int16).contiguous().numpy().astype("<i2")
    return {"factor": factor, "int16": base64.b64encode(whole.tobytes()).decode()}


def way(recording: Recording) -> tuple[list[str], list[Step]]:
    """Return the steps from the picture to the last map that the body returned, and the names of their modules."""
    names, steps = [], []
    node: Node | None = recording.node("")
    while node is not None:
        if node.step is not None:
            names.append(node.module)
            steps.append(node.step)
        node = choice(node)
    return names[::-1], steps[::-1]


def _step(step: Step, title: str) -> dict[str, Any]:
    if step.boundary not in ("zeros", "clamp"):
        raise ValueError(f"the page cannot follow {title}, whose border is {step.boundary!r}")
    entry: dict[str, Any] = {
        "name": title,
        "deformable": step.offset is not None,
        "groups": step.groups,
        "modulated": step.mask is not None,
        "regular": step.regular.tolist(),
        "stride": step.stride.tolist(),
        "below": step.below,
        "above": step.above,
        "splits": step.splits,
        "boundary": step.boundary,
        "weight": step.weight,
    }
    if step.offset is not None:
        index = torch.arange(step.above[0] * step.above[1])
        positions, weights = step.samples(index)
        outputs = torch.stack((index // step.above[1], index % step.above[1]), -1)
        entry["moves"] = packed(positions - step.regular[:, None] - outputs * step.stride)
        entry["weights"] = packed(weights)
    return entry


def _responses(network: Network, input: Tensor) -> dict[str, Any]:
    """Return what the first layer answers, averaged over cells where its map is larger than `RESPONSES`."""
    found = network.stem(input)[0]
    C, H, W = found.shape
    cell = -(-max(H, W) // RESPONSES)
    found = F.avg_pool2d(found[None], cell, ceil_mode=True, count_include_pad=False)[0]
    top = max(float(found.max()), 1e-9)
    whole = (found / top * 255).round().to(torch.uint8).contiguous().numpy()
    return {
        "channels": C,
        "height": found.shape[1],
        "width": found.shape[2],
        # Cells of this many pixels of the picture: strides divide what `prepare` returned.
        "cell": cell * input.shape[-1] / W,
        "factor": top / 255,
        "uint8": base64.b64encode(whole.tobytes()).decode(),
    }


def _answers(network: Network, input: Tensor) -> list[dict[str, Any]]:
    chances = network.model(input)[0].softmax(0)
    best = chances.topk(min(3, len(chances)))
    return [
        {"label": network.classes[i], "chance": round(chance, 4)}
        for chance, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _detection(network: Network, seen: Tensor) -> dict[str, Any]:
    """Return detections, the RoIs they come from, and where the bins of these lie in pixels of the picture.

    A detection's RoI is the one that, moved by the deltas of its class, is its box.
    """
    model: Any = network.model
    pictures, sizes = model.batch([seen])
    proposal_maps, maps = model.maps(pictures)
    proposals, present, _ = model.rpn(proposal_maps, sizes, None)
    rois = listed(proposals, present)
    logits, deltas, _ = model.head(maps, rois)
    (found,) = model.detections(rois, logits, deltas, sizes)
    kept = found["scores"] >= LEAST
    found = {key: value[kept] for key, value in found.items()}
    moved = boxes.clip(boxes.decode(deltas, rois[:, None, 1:], model.box_std), sizes[:1, None])
    columns = found["labels"] if deltas.shape[1] > 1 else torch.zeros_like(found["labels"])
    away = (moved[:, columns] - found["boxes"]).abs().sum(-1)  # (R, n)
    origin = away.argmin(0) if len(rois) else columns
    used, which = origin.unique(return_inverse=True)
    bins, masks = _bins(model, maps, rois[used])
    return {
        "objects": [
            {"box": box, "label": network.classes[label], "score": round(score, 4), "roi": roi}
            for box, label, score, roi in zip(
                found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), which.tolist(), strict=True
            )
        ],
        "proposals": rois[:, 1:].round(decimals=2).tolist(),
        "rois": rois[used, 1:].tolist(),
        "side": bins.shape[2] if bins is not None else 0,
        "bins": packed(bins) if bins is not None else None,
        "masks": packed(masks) if masks is not None else None,
    }


def _bins(model: nn.Module, maps: Sequence[Tensor], rois: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return by how much each bin of RoIs (R, 5) moves, (R, 2, P, P), x first, in pixels, and its mask (R, P, P).

    None where bins stay where they are, or where each class moves them its own way (R-FCN).
    """
    if not isinstance(model, FasterRCNN) or model.pool.deform is None:
        return None, None
    pool, deform, P = model.pool, model.pool.deform, model.pool.size
    shifts, masks = rois.new_zeros(len(rois), 2, P, P), rois.new_ones(len(rois), P, P)
    modulated = False
    for i, level in enumerate(pool.levels(rois).tolist()):
        scale = rois.new_tensor([1.0, *[1 / pool.strides[level]] * 4])
        offset, mask = deform.predict(maps[level], rois[i : i + 1] * scale)
        sides = (rois[i, 3:] - rois[i, 1:3])[:, None, None]
        shifts[i] = deform.gamma * sides * offset[0]
        if mask is not None:
            modulated, masks[i] = True, mask[0, 0]
    return shifts, masks if modulated else None
