"""The layers: operators that hold their parameters, and what training them needs."""

from pliant.nn.histograms import OffsetHistory
from pliant.nn.offsets import OffsetStatistics, parameter_groups
from pliant.nn.surgery import deformify, undeformify
from pliant.ops.deform_conv2d.module import DeformConv2d
from pliant.ops.deform_psroi_pool.module import DeformPSRoIPool
from pliant.ops.deform_roi_pool.module import DeformRoIPool
from pliant.ops.local_response_norm.module import LocalResponseNorm

__all__ = [
    "DeformConv2d",
    "DeformPSRoIPool",
    "DeformRoIPool",
    "LocalResponseNorm",
    "OffsetHistory",
    "OffsetStatistics",
    "deformify",
    "parameter_groups",
    "undeformify",
]
