"""The operators: functions of tensors, without parameters."""

from pliant.ops.aggregation.dcnv3 import dcnv3
from pliant.ops.aggregation.dcnv4 import dcnv4
from pliant.ops.aggregation.ms_deform_attn import ms_deform_attn
from pliant.ops.conv.deform_conv1d import deform_conv1d
from pliant.ops.conv.deform_conv2d import deform_conv2d
from pliant.ops.conv.deform_conv3d import deform_conv3d
from pliant.ops.conv.deform_conv_transpose2d import deform_conv_transpose2d
from pliant.ops.local_response_norm.local_response_norm import local_response_norm, lrn
from pliant.ops.nms.nms import batched_nms, nms
from pliant.ops.roi.deform_psroi_pool import deform_psroi_pool
from pliant.ops.roi.deform_roi_pool import deform_roi_pool
from pliant.ops.roi.ps_roi_align import ps_roi_align
from pliant.ops.roi.ps_roi_pool import ps_roi_pool
from pliant.ops.roi.roi_align import roi_align
from pliant.ops.roi.roi_pool import roi_pool

__all__ = [
    "batched_nms",
    "dcnv3",
    "dcnv4",
    "deform_conv1d",
    "deform_conv2d",
    "deform_conv3d",
    "deform_conv_transpose2d",
    "deform_psroi_pool",
    "deform_roi_pool",
    "local_response_norm",
    "lrn",
    "ms_deform_attn",
    "nms",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_pool",
]
