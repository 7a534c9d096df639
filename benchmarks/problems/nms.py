"""Non-maximum suppression: the yardstick is sorting the scores, the peer is a loop over kept boxes in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

import peers as others
from measuring import Call, Problem, Setting
from pliant.ops import batched_nms
from pliant.testing import NMSCase

THRESHOLD = 0.5


def problem(case: NMSCase, setting: Setting) -> Problem:
    """Return a problem of `batched_nms`; there is no backward."""
    t = {name: x.to(setting.device) for name, x in case.tensors(setting.dtype).items()}

    # The indices as one row, because the first row of a result is compared.
    def own(implementation: str) -> tuple[Tensor]:
        return (batched_nms(**t, iou_threshold=THRESHOLD, implementation=implementation)[None],)

    def exact() -> tuple[Tensor, ...]:
        return own("reference")

    contestants = [
        Call("sort", lambda: t["scores"].sort(descending=True, stable=True), checked=False),
        Call("pliant", lambda: own(setting.implementation)),
    ]
    if setting.device == "cpu" and setting.peers != "none":
        contestants.append(Call("torch loop", exact))
    if setting.peers == "all":
        makers = {"torchvision": lambda: others.torchvision_nms(t, THRESHOLD)}
        contestants += [Call(name, run) for name, run in others.available(makers)]
    kept = own(setting.implementation)[0].shape[1]
    shape = f"{case.boxes} boxes, {case.classes} classes, {kept} kept, IoU {THRESHOLD}"
    return Problem(case.name, shape, contestants, {"sort": 1.0}, exact)
