"""Checks that the RoI operators share: the map, the boxes on it, sizes and numbers of samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from pliant import _check


def boxes(op: str, name: str, rois: Tensor | Sequence[Tensor], input: Tensor) -> Tensor:
    """Return boxes as (R, 5) with the image index first; a list holds one (n, 4) tensor of boxes per image.

    Raises:
        TypeError: `input` or the boxes are not tensors.
        ValueError: the list does not fit the images, or (on the CPU, in eager mode) an image index is out of range.
    """
    _check.tensors(op, input=input)
    _check.rank(op, "input", input, "N C H W")
    if isinstance(rois, Tensor):
        _check_images(op, name, input, rois)
        return rois
    if not isinstance(rois, Sequence) or not all(isinstance(b, Tensor) for b in rois):
        raise TypeError(f"{op}: {name} must be a tensor (R, 5) or a list of tensors (n, 4), got {type(rois).__name__}")
    images = input.shape[0]
    if len(rois) != images:
        raise ValueError(f"{op}: {name} must hold one tensor for each of the {images} images, got {len(rois)}")
    for i, b in enumerate(rois):
        if b.dim() != 2 or b.shape[1] != 4:
            raise ValueError(f"{op}: {name}[{i}] must have shape (n, 4), got {tuple(int(n) for n in b.shape)}")
    if not rois:
        raise ValueError(f"{op}: {name} must hold one tensor for each image, got none; pass a tensor (0, 5)")
    return torch.cat([torch.cat([torch.full_like(b[:, :1], i), b], 1) for i, b in enumerate(rois)])


def check_map(op: str, name: str, input: Tensor, rois: Tensor, **others: Tensor | None) -> None:
    """Raise unless `input` is a non-empty map, `rois` has shape (R, 5), and dtypes and devices fit.

    `others` must have input's dtype, or may be float32 where input is float16 or bfloat16.
    """
    _check.rank(op, "input", input, "N C H W")
    _check.device(op, "input", input, **{name: rois}, **others)
    _check.dtype(op, "input", input)
    # Boxes may be float32 whatever the dtype of the map: float16 has no fractions beyond 1024.
    _check.dtype(op, name, rois, tuple({torch.float32: None, input.dtype: None}))
    for other, tensor in others.items():
        if tensor is not None:
            beside = (input.dtype, torch.float32) if input.dtype in _check.LOW else (input.dtype,)
            _check.dtype(op, other, tensor, beside)
    _, C, H, W = input.shape
    if C < 1 or H < 1 or W < 1:
        raise ValueError(f"{op}: input must not be an empty map, got {tuple(int(n) for n in input.shape)}")
    _check.rank(op, name, rois, "R 5")
    if rois.shape[1] != 5:
        hint = "The first of the five is the index of the image." if rois.shape[1] == 4 else ""
        _check.shape(op, name, rois, "(R, 5)", (rois.shape[0], 5), hint)


def _check_images(op: str, name: str, input: Tensor, rois: Tensor) -> None:
    """Raise ValueError for an image index out of range, where values can be read: on the CPU, in eager mode."""
    if rois.device.type != "cpu" or torch.compiler.is_compiling() or isinstance(rois, FakeTensor):
        return
    if torch._C._are_functorch_transforms_active() or not rois.is_floating_point():
        return
    if rois.dim() != 2 or rois.shape[1] != 5:
        return
    N = input.shape[0]
    index = rois.detach()[:, 0]
    # The minimum and the maximum suffice where all is well; a NaN makes both NaN.
    if not len(index) or (index.amin() >= 0 and index.amax() < N):
        return
    wrong = ~((index >= 0) & (index < N))
    r = int(wrong.nonzero()[0])
    raise ValueError(f"{op}: {name}[{r}, 0] must be the index of one of the {N} images, got {float(index[r]):g}")


def whole(op: str, name: str, value: object, least: int | None = None, limit: int = _check.LIMIT) -> None:
    """Raise unless `value` is an int, at least `least`, and less than `limit`, a limit of ``_check``."""
    if not isinstance(value, int | torch.SymInt) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be an int, got {value!r}")
    if least is not None and value < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {value}")
    if type(value) is int and value >= limit:
        raise ValueError(f"{op}: {name} must be less than {_check.SPELLED[limit]}, got {value}")


def check_mask(op: str, mask: Tensor | None, rois: Tensor, Ph: int, Pw: int) -> None:
    """Raise ValueError unless `mask` is None or has one value per bin."""
    if mask is not None:
        _check.shape(op, "mask", mask, "(R, 1, Ph, Pw)", (rois.shape[0], 1, Ph, Pw))
