"""The contestants of the detection study: one small Faster R-CNN in the variants of the papers' tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pliant.train.recipe import Version

Deform = tuple[Version, Version, Version, Version]
V1: Deform = (None, "v1", "v1", "v1")
V2: Deform = (None, "v2", "v2", "v2")


@dataclass(frozen=True)
class Contestant:
    """One entrant: which layers are deformable or dilated, how it pools, and what it mimics in training.

    Args:
        name, label: in files, and in reports.
        deform: version of the 3×3 convolutions of conv2 to conv5.
        dilations: of the 3×3 convolutions of conv2 to conv5.
        roi_pool: aligned, deformable or modulated deformable.
        mimic: proposals whose features are trained to match those of their patches.
        learned: False: no network, hand-made features.
    """

    name: str
    label: str
    deform: Deform = (None, None, None, None)
    dilations: tuple[int, int, int, int] | None = None
    roi_pool: Literal["align", "deform", "modulated"] = "align"
    mimic: Literal["foreground", "background", "both"] | None = None
    learned: bool = True

    @property
    def deformable(self) -> bool:
        """Return whether any of its layers moves its samples."""
        return any(self.deform) or self.roi_pool != "align"


CONTESTANTS = {
    c.name: c
    for c in (
        Contestant("hog", "HOG, linear SVM, sliding window", learned=False),
        Contestant("regular", "regular"),
        Contestant("dilated-c5", "dilation 2 in c5", dilations=(1, 1, 1, 2)),
        Contestant("dilated-c3-c5", "dilation 2 in c3–c5", dilations=(1, 2, 2, 2)),
        Contestant("dconv-c5", "dconv in c5", deform=(None, None, None, "v1")),
        Contestant("dconv-c3-c5", "dconv in c3–c5", deform=V1),
        Contestant("dconv-c3-c5-dpool", "dconv in c3–c5 + dpool", deform=V1, roi_pool="deform"),
        Contestant("mdconv-c3-c5", "mdconv in c3–c5", deform=V2),
        Contestant("mdconv-c3-c5-mdpool", "mdconv in c3–c5 + mdpool", deform=V2, roi_pool="modulated"),
        Contestant("full-mimic-fg", "… + mimicking, foreground", V2, None, "modulated", "foreground"),
        Contestant("full-mimic-bg", "… + mimicking, background", V2, None, "modulated", "background"),
        Contestant("full-mimic-both", "… + mimicking, both", V2, None, "modulated", "both"),
        Contestant("regular-mimic-fg", "regular + mimicking, foreground", mimic="foreground"),
    )
}
QUICK = ("hog", "regular", "dconv-c3-c5", "mdconv-c3-c5-mdpool")


def find(contestant: str) -> Contestant:
    """Return a contestant by its name."""
    if contestant not in CONTESTANTS:
        raise ValueError(f"detection: there is no contestant {contestant!r}; there are {', '.join(CONTESTANTS)}")
    return CONTESTANTS[contestant]
