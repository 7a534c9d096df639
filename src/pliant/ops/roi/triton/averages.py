"""The averages over RoI bins on GPUs: four operators as one, from their arguments to its launches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from pliant.ops.gpu.launch import Launch, ceil, destination, empty, power
from pliant.ops.roi.triton import averaging
from pliant.ops.roi.triton.boxes import grouped, largest, ungrouped
from pliant.ops.sampling.triton import Sums


class Pool:
    """One call: its tensors as the kernels read them, its sizes, and everything a kernel may ask for by name."""

    def __init__(
        self,
        input: Tensor,
        rois: Tensor,
        offset: Tensor | None,
        mask: Tensor | None,
        size: Sequence[int],
        scale: float,
        samples: int,
        *,
        gamma: float = 0.0,
        aligned: bool = True,
        groups: Sequence[int] = (1, 1),
        part: int = 0,
    ) -> None:
        """Take the arguments of a call; `part`, offsets in each direction, is 0 except in deformable PS-RoI pooling."""
        N, C, H, W = input.shape
        (Ph, Pw), (Gh, Gw) = size, groups
        self.input, self.offset, self.mask = input, offset, mask
        self.R, self.P, self.part, self.groups = len(rois), Ph * Pw, part, Gh * Gw
        self.size, self.outputs = size, C // self.groups
        self.classes = offset.shape[1] // 2 if offset is not None and part else 1
        self.each = self.outputs // self.classes
        self.map = grouped(input, self.groups)
        self.C = power(self.each, 1, 64)
        # As many lanes as let each thread load 16 bytes at once without spilling registers; grids as large as the boxes
        # need registers too.
        self.B = power(self.P, 1, (1024 if samples > 0 and input.element_size() == 2 else 512) // self.C)
        self.tiles, self.blocks = ceil(self.P, self.B), ceil(self.each, self.C)
        self.arguments: dict[str, Any] = {
            "input": self.map, "rois": rois.contiguous(),
            "offset": rois if offset is None else offset.contiguous(), "MOVED": offset is not None,
            "mask": rois if mask is None else mask.contiguous(), "MASKED": mask is not None,
            "N": N, "H": H, "W": W, "Ph": Ph, "Pw": Pw, "Gh": Gh, "Gw": Gw,
            "part": part, "parts": part**2 or self.P, "outputs": self.outputs, "each": self.each,
            "classes": self.classes, "samples": samples, "scale": scale, "gamma": gamma, "tiles": self.tiles,
            "COUNTED": part > 0, "ALIGNED": aligned, "ADAPTIVE": samples <= 0,
            # Images are indexed in 64 bits, what lies in one image only where 32 bits do not suffice.
            "INDEX": tl.int64 if C * H * W >= 2**31 else tl.int32,
            # As many channels as fit into 16 bytes, while every class starts at a multiple of them.
            "VECTOR": math.gcd(self.each, 16 // input.element_size()),
            "BLOCK_B": self.B, "BLOCK_C": self.C,
        }  # fmt: skip

    @property
    def slots(self) -> Tensor:
        """Return the index of the offset that each bin takes: (P,)."""
        (Ph, Pw), part = self.size, self.part
        rows, columns = (torch.arange(n, device=self.input.device) * part // n for n in (Ph, Pw))
        return (rows[:, None] * part + columns).flatten()


def _deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    output_size: Sequence[int],
    scale: float,
    ratio: int,
    gamma: float,
    mask: Tensor | None,
) -> Pool:
    return Pool(input, rois, offset, mask, output_size, scale, ratio, gamma=gamma)


def _deform_psroi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    P: int,
    scale: float,
    group: int,
    part: int,
    samples: int,
    std: float,
    mask: Tensor | None,
) -> Pool:
    return Pool(input, rois, offset, mask, (P, P), scale, samples, gamma=std, groups=(group, group), part=part)


def _roi_align(
    input: Tensor, rois: Tensor, output_size: Sequence[int], scale: float, ratio: int, aligned: bool
) -> Pool:
    return Pool(input, rois, None, None, output_size, scale, ratio, aligned=aligned)


def _ps_roi_align(input: Tensor, rois: Tensor, output_size: Sequence[int], scale: float, ratio: int) -> Pool:
    return Pool(input, rois, None, None, output_size, scale, ratio, groups=output_size)


POOLS: dict[str, Callable[..., Pool]] = {
    "deform_roi_pool": _deform_roi_pool,
    "deform_psroi_pool": _deform_psroi_pool,
    "roi_align": _roi_align,
    "ps_roi_align": _ps_roi_align,
}


def forward(op: str, *arguments: Any) -> Tensor:
    """Return the output of an operator, in input's memory format; arguments are checked."""
    pool = POOLS[op](*arguments)
    output = empty(pool.input, (pool.R, pool.outputs, *pool.size))
    forward_launch(pool, output).run(output.device)
    return output


def forward_launch(pool: Pool, output: Tensor) -> Launch:
    """Return what computes `output`."""
    grid = (pool.R * pool.tiles, pool.classes * pool.blocks, 1)
    to = destination(output) | {"chunks": pool.blocks}
    return Launch.of(averaging.forward, grid, registers=128, fused=False, **pool.arguments, **to)


def backward(op: str, grad: Tensor, *arguments: Any) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of the input; with offsets, those of input, offset and mask, empty where not wanted."""
    moved = op.startswith("deform")
    wanted = arguments[-1] if moved else 1
    pool = POOLS[op](*(arguments[:-1] if moved else arguments))
    input, offset, mask, none = pool.input, pool.offset, pool.mask, pool.input.new_empty(0)
    d_input, d_offset, d_mask = none, none, none
    want_offset, want_mask = offset is not None and bool(wanted & 2), mask is not None and bool(wanted & 4)
    grad = grad.contiguous(memory_format=torch.channels_last)
    found, moves, averages = None, None, None
    if wanted & 1:
        found = Sums.zeros(grad, input.shape, True, lambda: largest(grad, mask))
    if want_offset or want_mask:
        moves = grad.new_empty((pool.R, pool.classes, 2, pool.P), dtype=torch.float32)
        averages = grad.new_empty((pool.R, pool.classes, pool.P), dtype=torch.float32)
    if wanted:
        sums, unit = found or (None, None)
        backward_launch(pool, grad, sums, unit, moves, averages).run(grad.device)
    if found is not None:
        d_input = empty(input, input.shape).copy_(ungrouped(found.total(), pool.groups))
    if want_offset:
        assert offset is not None and moves is not None
        if pool.part and pool.part != pool.size[0]:
            # Several bins share an offset, or an offset has no bin.
            parts = moves.new_zeros((*moves.shape[:3], pool.part**2))
            moves = parts.index_add_(3, pool.slots, moves)
        d_offset = moves.view(offset.shape).to(offset.dtype)
    if want_mask:
        assert mask is not None and averages is not None
        d_mask = averages.sum(1).view(mask.shape).to(mask.dtype)
    return (d_input, d_offset, d_mask) if moved else d_input


def backward_launch(
    pool: Pool, grad: Tensor, d_input: Tensor | None, unit: Tensor | None, moves: Tensor | None, averages: Tensor | None
) -> Launch:
    """Return what computes the gradients of input (added to what is there), and of offset and mask for every bin."""
    summed = moves is not None
    # The gradient of an offset is a sum over all channels of its class, which one program must have.
    chunks = 1 if summed else pool.blocks
    more: dict[str, Any] = {
        "grad": grad, "grad_input": grad if d_input is None else d_input, "WANT_INPUT": d_input is not None,
        "grad_offset": grad if moves is None else moves, "grad_mask": grad if averages is None else averages,
        "unit": grad if unit is None else unit, "FIXED": unit is not None, "WANT_SUMS": summed,
        "chunks": chunks, "span": pool.blocks * pool.C if summed else pool.C,
    }  # fmt: skip
    grid = (pool.R * pool.tiles, pool.classes * chunks, 1)
    # Sums in 64 bits need more registers.
    registers = 128 if unit is None else 168
    return Launch.of(averaging.backward, grid, registers=registers, fused=False, **pool.arguments, **more)


def _of(op: str) -> tuple[Callable[..., Tensor], Callable[..., Any]]:
    return partial(forward, op), partial(backward, op)


# The declarations of the operators look these names up.
roi_align, roi_align_backward = _of("roi_align")
ps_roi_align, ps_roi_align_backward = _of("ps_roi_align")
deform_roi_pool, deform_roi_pool_backward = _of("deform_roi_pool")
deform_psroi_pool, deform_psroi_pool_backward = _of("deform_psroi_pool")
