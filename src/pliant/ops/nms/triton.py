"""Non-maximum suppression on GPUs: a table of bits, which box suppresses which, then one sweep through it."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pliant.ops.gpu.launch import Launch, ceil, power

# Boxes per word of bits.
WORD = tl.constexpr(32)
# Boxes that one program compares with those of one word.
ROWS = 128


@triton.jit(do_not_specialize=["n", "words"])
def overlaps(boxes, classes, bits, n, words, threshold, CLASSES: tl.constexpr, BLOCK: tl.constexpr):
    """Write for BLOCK boxes which of WORD later ones they suppress.

    Compiled without fused multiply-adds, which would move IoUs that lie exactly on the threshold.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lane = tl.arange(0, WORD)
    j = tl.program_id(1) * WORD + lane
    # Only above the diagonal: the sweep does not read the rest.
    if (tl.program_id(1) + 1) * WORD > tl.program_id(0) * BLOCK:
        a = boxes + i * 4
        b = boxes + j * 4
        here = i < n
        there = j < n
        ax1 = tl.load(a, mask=here, other=0.0).to(tl.float32)[:, None]
        ay1 = tl.load(a + 1, mask=here, other=0.0).to(tl.float32)[:, None]
        ax2 = tl.load(a + 2, mask=here, other=0.0).to(tl.float32)[:, None]
        ay2 = tl.load(a + 3, mask=here, other=0.0).to(tl.float32)[:, None]
        bx1 = tl.load(b, mask=there, other=0.0).to(tl.float32)[None, :]
        by1 = tl.load(b + 1, mask=there, other=0.0).to(tl.float32)[None, :]
        bx2 = tl.load(b + 2, mask=there, other=0.0).to(tl.float32)[None, :]
        by2 = tl.load(b + 3, mask=there, other=0.0).to(tl.float32)[None, :]
        width = tl.maximum(tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1), 0.0)
        height = tl.maximum(tl.minimum(ay2, by2) - tl.maximum(ay1, by1), 0.0)
        common = width * height
        union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - common
        # False for NaN.
        hits = (tl.div_rn(common, union) > threshold) & (j[None, :] > i[:, None]) & there[None, :]
        if CLASSES:
            hits &= (
                tl.load(classes + i, mask=here, other=0)[:, None] == tl.load(classes + j, mask=there, other=0)[None, :]
            )
        # Every bit occurs once, so their sum is the word; its highest bit is the sign.
        word = tl.sum(hits.to(tl.int32) << lane[None, :], 1)
        tl.store(bits + i.to(tl.int64) * words + tl.program_id(1), word, mask=here)


@triton.jit(do_not_specialize=["n", "words"])
def sweep(bits, kept, n, words, WORDS: tl.constexpr):
    """Visit the boxes by descending score, one word of them at a time, in one program that remembers the suppressed."""
    lane = tl.arange(0, WORD)
    column = tl.arange(0, WORDS)
    removed = tl.zeros((WORDS,), tl.int32)
    for w in range(words):
        first = w * WORD
        # Which of these boxes are suppressed already; each of the others may suppress those after it.
        gone = tl.sum(tl.where(column == w, removed, 0), 0)
        for t in tl.static_range(WORD):
            row = tl.load(bits + (first + t).to(tl.int64) * words + w, mask=first + t < n, other=0)
            gone |= tl.where((gone >> t) & 1 == 0, row, 0)
        tl.store(kept + first + lane, ((gone >> lane) & 1 == 0).to(tl.int8), mask=first + lane < n)
        for t in tl.static_range(WORD):
            reads = (first + t < n) & ((gone >> t) & 1 == 0)
            more = (column > w) & (column < tl.where(reads, words, 0))
            removed |= tl.load(bits + (first + t).to(tl.int64) * words + column, mask=more, other=0)


def nms(boxes: Tensor, scores: Tensor, classes: Tensor | None, iou_threshold: float) -> Tensor:
    """Return the boxes that are kept, by descending score; arguments are checked."""
    # NaN would be sorted before every number.
    order = torch.where(scores.isnan(), -math.inf, scores).argsort(descending=True, stable=True)
    if not len(order):
        return order
    kept = torch.empty_like(order, dtype=torch.int8)
    sorted_classes = None if classes is None else classes[order]
    for launch in launches(boxes[order], sorted_classes, kept, iou_threshold):
        launch.run(boxes.device)
    return order[kept.bool()]


def launches(boxes: Tensor, classes: Tensor | None, kept: Tensor, iou_threshold: float) -> list[Launch]:
    """Return what computes which of some boxes, sorted by score, are kept."""
    n = len(boxes)
    words = ceil(n, WORD.value)
    # The largest float32 that is not above the threshold: no float32 IoU lies between the two.
    threshold = torch.tensor(iou_threshold, dtype=torch.float32)
    if threshold.double() > iou_threshold:
        threshold = threshold.nextafter(torch.tensor(-1.0))
    known: dict[str, Any] = {
        "boxes": boxes.contiguous(), "classes": boxes if classes is None else classes.contiguous(),
        "CLASSES": classes is not None, "bits": boxes.new_empty((n, words), dtype=torch.int32), "kept": kept,
        "n": n, "words": words, "threshold": threshold.item(), "BLOCK": ROWS, "WORDS": power(words, 1, 1 << 30),
    }  # fmt: skip
    return [
        Launch.of(overlaps, (ceil(n, ROWS), words, 1), fused=False, **known),
        Launch.of(sweep, (1, 1, 1), warps=8, **known),
    ]
