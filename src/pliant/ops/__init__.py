"""The operators: functions of tensors, without parameters."""

from pliant.ops.deform_conv2d.op import deform_conv2d
from pliant.ops.local_response_norm.op import local_response_norm, lrn

__all__ = ["deform_conv2d", "local_response_norm", "lrn"]
