"""The operators: functions of tensors, without parameters."""

from pliant.ops.deform_conv2d.op import deform_conv2d
from pliant.ops.deform_psroi_pool.op import deform_psroi_pool
from pliant.ops.deform_roi_pool.op import deform_roi_pool
from pliant.ops.local_response_norm.op import local_response_norm, lrn
from pliant.ops.nms.op import batched_nms, nms
from pliant.ops.ps_roi_align.op import ps_roi_align
from pliant.ops.ps_roi_pool.op import ps_roi_pool
from pliant.ops.roi_align.op import roi_align
from pliant.ops.roi_pool.op import roi_pool

__all__ = [
    "batched_nms",
    "deform_conv2d",
    "deform_psroi_pool",
    "deform_roi_pool",
    "local_response_norm",
    "lrn",
    "nms",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_pool",
]
