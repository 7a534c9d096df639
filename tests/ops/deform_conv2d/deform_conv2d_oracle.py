"""Deformable convolution one sample at a time, forward and backward, in NumPy and from the formulas alone."""

from __future__ import annotations

import math

import numpy as np

Corner = tuple[int, int, float, float, float]


def corners(y: float, x: float, H: int, W: int, boundary: str) -> list[Corner]:
    """Return the pixels one sample reads: (row, column, weight, d weight/dy, d weight/dx)."""
    first = -1 if boundary == "zeros" else 0
    if not (math.isfinite(y) and math.isfinite(x) and first <= y < H and first <= x < W):
        return []
    top, left = math.floor(y), math.floor(x)
    fy, fx = y - top, x - left
    found = []
    for down in (0, 1):
        for right in (0, 1):
            row, column = top + down, left + right
            weight_y, slope_y = (fy, 1.0) if down else (1 - fy, -1.0)
            weight_x, slope_x = (fx, 1.0) if right else (1 - fx, -1.0)
            if boundary == "clamp":
                row, column = min(row, H - 1), min(column, W - 1)
            if 0 <= row < H and 0 <= column < W:
                found.append((row, column, weight_y * weight_x, slope_y * weight_x, weight_y * slope_x))
    return found


def deform_conv2d(input, offset, weight, bias, mask, stride, padding, dilation, boundary, grad):
    """Return the output, and the gradients of ``Σ grad·output`` in input, offset, weight, bias and mask."""
    N, C, H, W = input.shape
    O, Cg, Kh, Kw = weight.shape
    _, _, Ho, Wo = offset.shape
    K = Kh * Kw
    G = offset.shape[1] // (2 * K)
    output = np.zeros((N, O, Ho, Wo)) + (0 if bias is None else bias[:, None, None])
    d_input, d_offset, d_weight = np.zeros_like(input), np.zeros_like(offset), np.zeros_like(weight)
    d_mask = np.zeros((N, G * K, Ho, Wo))
    for n, c, i, j, ho, wo in np.ndindex(N, C, Kh, Kw, Ho, Wo):
        offset_group, k = c // (C // G), i * Kw + j
        y = ho * stride[0] - padding[0] + i * dilation[0] + offset[n, (offset_group * K + k) * 2, ho, wo]
        x = wo * stride[1] - padding[1] + j * dilation[1] + offset[n, (offset_group * K + k) * 2 + 1, ho, wo]
        factor = 1.0 if mask is None else mask[n, offset_group * K + k, ho, wo]
        read = corners(y, x, H, W, boundary)
        value = sum(w * input[n, c, row, column] for row, column, w, _, _ in read)

        group = c // Cg
        outputs = slice(group * (O // (C // Cg)), (group + 1) * (O // (C // Cg)))
        taps = weight[outputs, c % Cg, i, j]
        output[n, outputs, ho, wo] += taps * factor * value

        above = grad[n, outputs, ho, wo]
        d_weight[outputs, c % Cg, i, j] += above * factor * value
        through = float(above @ taps)
        d_mask[n, offset_group * K + k, ho, wo] += through * value
        for row, column, w, wy, wx in read:
            d_input[n, c, row, column] += through * factor * w
            d_offset[n, (offset_group * K + k) * 2, ho, wo] += through * factor * wy * input[n, c, row, column]
            d_offset[n, (offset_group * K + k) * 2 + 1, ho, wo] += through * factor * wx * input[n, c, row, column]
    return output, d_input, d_offset, d_weight, grad.sum((0, 2, 3)), d_mask
