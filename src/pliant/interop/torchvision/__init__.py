"""`torchvision.ops` on our kernels: the same names, arguments and errors."""

from pliant.interop.torchvision.boxes import (
    PSRoIAlign,
    PSRoIPool,
    RoIAlign,
    RoIPool,
    batched_nms,
    nms,
    ps_roi_align,
    ps_roi_pool,
    roi_align,
    roi_pool,
)
from pliant.interop.torchvision.conv import DeformConv2d, deform_conv2d
from pliant.interop.torchvision.patching import patch, unpatch

__all__ = [
    "DeformConv2d",
    "PSRoIAlign",
    "PSRoIPool",
    "RoIAlign",
    "RoIPool",
    "batched_nms",
    "deform_conv2d",
    "nms",
    "patch",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_pool",
    "unpatch",
]
