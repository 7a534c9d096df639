"""The layers: operators that hold their parameters, and what training them needs."""

from pliant.nn.aspp import DeformASPP
from pliant.nn.deformable import deformable_layers
from pliant.nn.histograms import OffsetHistory
from pliant.nn.offsets import OffsetStatistics, parameter_groups
from pliant.nn.prepacking import prepack, unprepack
from pliant.nn.surgery import deformify, undeformify
from pliant.ops.aggregation.modules.attention import MSDeformAttn
from pliant.ops.aggregation.modules.dcn import DCNv3, DCNv4
from pliant.ops.conv.modules import DeformConv1d, DeformConv2d, DeformConv3d, DeformConvTranspose2d, SlicedConv2d
from pliant.ops.local_response_norm.modules import LocalResponseNorm
from pliant.ops.roi.modules import DeformPSRoIPool, DeformRoIPool

__all__ = [
    "DCNv3",
    "DCNv4",
    "DeformASPP",
    "DeformConv1d",
    "DeformConv2d",
    "DeformConv3d",
    "DeformConvTranspose2d",
    "DeformPSRoIPool",
    "DeformRoIPool",
    "LocalResponseNorm",
    "MSDeformAttn",
    "OffsetHistory",
    "OffsetStatistics",
    "SlicedConv2d",
    "deformable_layers",
    "deformify",
    "parameter_groups",
    "prepack",
    "undeformify",
    "unprepack",
]
