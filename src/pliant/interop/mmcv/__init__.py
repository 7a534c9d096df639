"""`mmcv.ops`: its deformable operators and layers, with mmcv's arguments and names, without its compiled code."""

from pliant.interop.mmcv.attention import (
    MultiScaleDeformableAttention,
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)
from pliant.interop.mmcv.conv import (
    DeformConv2d,
    DeformConv2dPack,
    ModulatedDeformConv2d,
    ModulatedDeformConv2dPack,
    deform_conv2d,
    modulated_deform_conv2d,
)
from pliant.interop.mmcv.registering import register
from pliant.interop.mmcv.roi import DeformRoIPool, DeformRoIPoolPack, ModulatedDeformRoIPoolPack, deform_roi_pool

__all__ = [
    "DeformConv2d",
    "DeformConv2dPack",
    "DeformRoIPool",
    "DeformRoIPoolPack",
    "ModulatedDeformConv2d",
    "ModulatedDeformConv2dPack",
    "ModulatedDeformRoIPoolPack",
    "MultiScaleDeformableAttention",
    "MultiScaleDeformableAttnFunction",
    "deform_conv2d",
    "deform_roi_pool",
    "modulated_deform_conv2d",
    "multi_scale_deformable_attn_pytorch",
    "register",
]
