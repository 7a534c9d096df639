"""Non-maximum suppression: the yardstick is sorting the scores, the peer is a loop over kept boxes in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from measuring import Call, Problem
from pliant.ops import batched_nms
from pliant.testing import NMS_SPEED as CASES
from pliant.testing import NMSCase

__all__ = ["CASES", "problem"]

THRESHOLD = 0.5


def problem(case: NMSCase, backward: bool, peers: str) -> Problem:
    """Return the contestants for one case; there is no backward, it is the same with and without."""
    t = case.tensors()

    # All indices are one row: what is checked is the first of the results.
    def own(implementation: str) -> Tensor:
        return batched_nms(**t, iou_threshold=THRESHOLD, implementation=implementation)[None]

    contestants = [
        Call("sort", lambda: t["scores"].sort(descending=True, stable=True), checked=False),
        Call("pliant", lambda: own("native")),
    ]
    if peers != "none":
        contestants.append(Call("torch loop", lambda: own("reference")))
    kept = own("native").shape[1]
    shape = f"{case.boxes} boxes, {case.classes} classes, {kept} kept, IoU {THRESHOLD}"
    return Problem(case.name, shape, contestants, {"sort": 1.0}, lambda: (own("reference"),))
