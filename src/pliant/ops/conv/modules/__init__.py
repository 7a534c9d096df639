"""The deformable layers: convolutions that predict their own offsets, and in version 2 their masks."""

from pliant.ops.conv.modules.convolutions import DeformConv1d, DeformConv2d, DeformConv3d
from pliant.ops.conv.modules.sliced import SlicedConv2d
from pliant.ops.conv.modules.transposed import DeformConvTranspose2d

__all__ = ["DeformConv1d", "DeformConv2d", "DeformConv3d", "DeformConvTranspose2d", "SlicedConv2d"]
