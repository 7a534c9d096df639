"""One pass of an image through a network: all data with which the page follows the pointer, ready for JSON."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pliant.app.explore.networks import Network
from pliant.app.explore.pictures import Picture, canvas, png_address
from pliant.models.two_stage import TwoStage, listed
from pliant.nn import DeformPSRoIPool
from pliant.show.bins import bins, layers
from pliant.show.boxes import colour
from pliant.show.paths import Step
from pliant.show.recording import record

RESPONSES = 32  # longer side of the map of the first layer's responses, in cells
LEAST = 0.05  # lowest score of a detection that is shown


@torch.no_grad()
def look(network: Network, picture: Picture, scale: float = 1.0, angle: float = 0.0) -> dict[str, Any]:
    """Return the results of a network for an image in a pose.

    ``width``, ``height``, ``picture`` (a data: address); ``steps``, lowest layer first, the fields of
    :class:`pliant.show.paths.Step`; ``responses`` of the first layer; for a classifier ``answers``, its three most
    likely classes, for a detector ``detection``. Arrays are base64 of little-endian integers with a factor: with 16
    bits, a position is off by at most 1/65534 of the largest offset.
    """
    network = network.own()
    seen = canvas(picture, network, scale, angle)
    input = network.prepare(seen)
    _, H, W = seen.shape
    steps = record(network.body(), input).steps("")
    titles = network.titles([(name, step.taps) for name, step in steps])
    return {
        "width": W,
        "height": H,
        "picture": png_address(seen),
        "grey": not network.detects,
        "steps": [_step(step, title) for (_, step), title in zip(steps, titles, strict=True)],
        "responses": _responses(network, input),
        "answers": None if network.detects else _answers(network, input),
        "detection": _detection(network, seen) if network.detects else None,
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
    """Return the responses of the first layer, averaged over cells if its map is larger than `RESPONSES`."""
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
        # Pixels of the image per cell: the sides of the prepared image are multiples of the strides.
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
    """Return detections, the RoIs they come from, and the positions of the RoIs' bins in pixels of the image.

    The RoI of a detection is the one that becomes its box when moved by the deltas of its class; where a detector has
    no RoIs, it is the box itself.
    """
    model: Any = network.model
    if not isinstance(model, TwoStage):
        (found,) = model([seen])
        kept = found["scores"] >= LEAST
        found = {key: value[kept] for key, value in found.items()}
        return _listed(network, found, found["boxes"].tolist(), found["boxes"][:0], None, None)
    pictures, sizes = model.batch([seen])
    proposal_maps, maps = model.maps(pictures)
    proposals, present, _ = model.rpn(proposal_maps, sizes, None)
    rois = listed(proposals, present)
    logits, deltas, _ = model.head(maps, rois)
    (found,) = model.detections(rois, logits, deltas, sizes)
    kept = found["scores"] >= LEAST
    found = {key: value[kept] for key, value in found.items()}
    moved = model.moved(deltas, rois[:, None, 1:], sizes[:1, None])
    columns = found["labels"] if deltas.shape[1] > 1 else torch.zeros_like(found["labels"])
    away = (moved[:, columns] - found["boxes"]).abs().sum(-1)  # (R, n)
    origins = rois[away.argmin(0) if len(rois) else columns, 1:]
    pooled, shifts, masks = _bins(model, seen, maps, origins, found["labels"])
    return _listed(network, found, pooled, rois[:, 1:], shifts, masks)


def _listed(
    network: Network,
    found: dict[str, Tensor],
    pooled: list[list[float]],
    proposals: Tensor,
    shifts: Tensor | None,
    masks: Tensor | None,
) -> dict[str, Any]:
    rows = zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), pooled, strict=True)
    return {
        "objects": [
            {"box": box, "label": network.classes[label], "colour": colour(label), "score": round(score, 4), "roi": roi}
            for box, label, score, roi in rows
        ],
        "proposals": proposals.round(decimals=2).tolist(),
        "side": 0 if shifts is None else shifts.shape[1],
        "bins": None if shifts is None else packed(shifts),
        "masks": None if masks is None else packed(masks),
    }


def _bins(
    model: TwoStage, seen: Tensor, maps: Sequence[Tensor], rois: Tensor, labels: Tensor
) -> tuple[list[list[float]], Tensor | None, Tensor | None]:
    """Return RoIs (n, 4) as they are pooled, the offsets (n, P, P, 2) of their bins, and the masks (n, P, P).

    Offsets are (y, x) in pixels of the image; None if bins have none. R-FCN has different offsets for each class.
    """
    there = list(layers(model).values())
    if not there or not len(rois):
        return rois.tolist(), None, None

    def call(model: Any, _: Tensor, some: Tensor) -> None:
        for roi in some:
            model.head(maps, torch.cat((roi.new_zeros(1), roi))[None])

    # Pairs (label, indices of RoIs): one label at a time if offsets depend on it.
    parts: list[tuple[int | None, Tensor]] = [(None, torch.arange(len(rois)))]
    if isinstance(there[0], DeformPSRoIPool):
        parts = [(label, (labels == label).nonzero()[:, 0]) for label in labels.unique().tolist()]
    found = [bins(model, seen, rois[rows], label=label, call=call) for label, rows in parts]
    back = torch.cat([rows for _, rows in parts]).argsort().numpy()
    pooled, moved, regular = (
        np.concatenate([getattr(one, name) for one in found])[back] for name in ("boxes", "moved", "regular")
    )
    masks = [one.mask for one in found if one.mask is not None]
    weights = torch.from_numpy(np.concatenate(masks)[back]) if masks else None
    return pooled.tolist(), torch.from_numpy(moved - regular), weights
