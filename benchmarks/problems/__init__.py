"""Every operator that is timed: its cases, and the function that makes a problem of one. A family is a file.

The cases are named here, not read from the table of operators, because revision.py runs this folder beside revisions
of pliant that have no such table. tests/test_benchmarks.py holds the two together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from measuring import Problem, Setting
from pliant import testing
from pliant.testing import (
    DCN_SPEED,
    DEFORM_CONV3D_SPEED,
    DEFORM_CONV_CALL,
    DEFORM_CONV_SPEED,
    DEFORM_CONV_TRANSPOSE2D_SPEED,
    LRN_SPEED,
    MS_DEFORM_ATTN_SPEED,
    NETWORK_SPEED,
    NMS_SPEED,
    ROI_SPEED,
)

from . import aggregation, conv, conv_family, local_response_norm, networks, nms, roi

# Older revisions lack these cases.
_KERNELS = getattr(testing, "DEFORM_CONV_KERNELS", ())

Builder = Callable[[Any, Setting], Problem]

PROBLEMS: dict[str, tuple[tuple[Any, ...], Builder]] = {
    "deform_conv2d": ((*DEFORM_CONV_SPEED, *_KERNELS, DEFORM_CONV_CALL), conv.problem),
    "deform_conv3d": (DEFORM_CONV3D_SPEED, conv_family.volume),
    "deform_conv_transpose2d": (DEFORM_CONV_TRANSPOSE2D_SPEED, conv_family.transposed),
    "ms_deform_attn": (MS_DEFORM_ATTN_SPEED, aggregation.attention),
    "dcnv3": (DCN_SPEED, functools.partial(aggregation.dcn, "dcnv3")),
    "dcnv4": (DCN_SPEED, functools.partial(aggregation.dcn, "dcnv4")),
    "deform_roi_pool": (ROI_SPEED, functools.partial(roi.problem, "deform_roi_pool")),
    "roi_align": (ROI_SPEED, functools.partial(roi.problem, "roi_align")),
    "roi_pool": (ROI_SPEED, functools.partial(roi.problem, "roi_pool")),
    "local_response_norm": (LRN_SPEED, local_response_norm.problem),
    "nms": (NMS_SPEED, nms.problem),
    "networks": (NETWORK_SPEED, networks.problem),
}
