"""Sizes of one call as the kernels see them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor

# Positions of one map are counted in 32 bits, up to the end of the last tile.
POSITIONS = 2**31 - 2**10


class Shape:
    """One call: its tensors as the kernels read them, its sizes, and everything a kernel may ask for by name."""

    def __init__(
        self,
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        mask: Tensor | None,
        geometry: tuple[int, ...],
        clamp: bool,
    ) -> None:
        axes = input.dim() - 2
        D, H, W = (1, 1, *input.shape[2:])[-3:]
        Kd, Kh, Kw = (1, 1, *weight.shape[2:])[-3:]
        Hr = offset.shape[-2] if axes > 1 else 1
        input, offset, weight, mask = rows(input), rows(offset), rows(weight), None if mask is None else rows(mask)
        N, C = input.shape[:2]
        O, Cg = weight.shape[:2]
        Ho, Wo = offset.shape[2:]
        K = Kd * Kh * Kw
        G, g = offset.shape[1] // (axes * K), C // Cg
        # Three channels cannot be loaded at once but four can: a channel of zeros costs one small copy.
        self.padding = -C % 4 if G == g == 1 else 0
        if self.padding:
            pad = (0, 0, 0, 0, 0, self.padding)
            input, weight = F.pad(input, pad), F.pad(weight, pad)
            C, Cg = C + self.padding, Cg + self.padding
        self.N, self.C, self.O, self.K, self.P, self.G, self.g = N, C, O, K, Ho * Wo, G, g
        self.Og, self.Cg, self.Cj = O // g, Cg, C // G
        # Where every output reads one channel there is no matrix product.
        self.multiplier = self.Og if Cg == 1 and g > 1 else 0
        # Channels in a row that share an offset group and a convolution group.
        self.segment = self.Cj if self.multiplier else math.gcd(self.Cj, Cg)
        if self.P > POSITIONS:
            raise ValueError(
                f"deform_conv{axes}d: on a GPU an output map must have at most {POSITIONS} positions, got {Ho}×{Wo}; "
                "cut the map into strips"
            )
        self.device, self.dtype = input.device, input.dtype
        self.input = input.contiguous(memory_format=torch.channels_last)
        offset, offset_p = planes(offset)
        mask_or_none, (mask, mask_p) = mask, (offset, offset_p) if mask is None else planes(mask)
        # Images are indexed in 64 bits, what lies in one image only where 32 bits do not suffice. Offsets and masks may
        # have gaps or be expanded; their gradients are dense.
        largest = max(D * H * W * C, self.P * O, O * K * Cg, self.P * offset.shape[1])
        for t, stride in ((offset, offset_p), (mask, mask_p)):
            largest = max(largest, t.shape[1] * t.stride(1) + self.P * stride)
        # One number per axis and kind, in the order z, y, x, where axes that the map lacks change nothing.
        (sd, sh, sw), (pd, ph, pw), (dd, dh, dw) = (
            ((fill,) * (3 - axes) + geometry[kind * axes : (kind + 1) * axes]) for kind, fill in enumerate((1, 0, 1))
        )
        self.arguments: dict[str, Any] = {
            "input": self.input, "offset": offset, "mask": mask,
            "weight": weight.contiguous(memory_format=torch.channels_last),
            "N": N, "D": D, "H": H, "W": W, "C": C, "O": O, "G": G, "Ho": Ho, "Hr": Hr, "Wo": Wo,
            "Og": self.Og, "Cg": Cg, "Cj": self.Cj, "segment": self.segment, "K": K, "Kh": Kh, "Kw": Kw,
            "sd": sd, "sh": sh, "sw": sw, "pd": pd, "ph": ph, "pw": pw, "dd": dd, "dh": dh, "dw": dw, "AXES": axes,
            "offset_n": offset.stride(0), "offset_c": offset.stride(1), "offset_p": offset_p,
            "mask_n": mask.stride(0), "mask_c": mask.stride(1), "mask_p": mask_p,
            "MASKED": mask_or_none is not None, "CLAMP": clamp,
            "INDEX": tl.int64 if largest >= 2**31 else tl.int32,
            # As many channels as fit into 16 bytes, while every segment starts at a multiple of them.
            "VECTOR": math.gcd(C, self.segment, 16 // input.element_size()),
            "MULTIPLIER": self.multiplier,
            "PRECISION": precision(input),
        }  # fmt: skip


def rows(t: Tensor) -> Tensor:
    """Return a tensor of one to three spatial axes as (N, C, rows, W): a view of dense memory."""
    if t.dim() == 3:
        return t.unsqueeze(2)
    return t if t.dim() == 4 else t.reshape(*t.shape[:2], t.shape[2] * t.shape[3], t.shape[4])


def planes(t: Tensor) -> tuple[Tensor, int]:
    """Return an offset or mask tensor whose positions have one stride, and it; contiguous and channels_last ones do."""
    Ho, Wo = t.shape[2:]
    if Ho > 1 and Wo > 1 and t.stride(2) != Wo * t.stride(3):
        t = t.contiguous()
    return t, t.stride(3) if Wo > 1 else t.stride(2)


def precision(input: Tensor) -> str:
    """Return the precision of matrix products: for float32 the one that PyTorch's own are allowed."""
    # ROCm builds have TF32 on one family of devices only.
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32" and torch.version.hip is None
    return "tf32" if input.dtype == torch.float32 and allowed else "ieee"
