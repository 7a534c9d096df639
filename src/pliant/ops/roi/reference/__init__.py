"""The RoI operators in plain PyTorch: the formulas, differentiable any number of times."""

from pliant.ops.roi.reference.averages import deform_psroi_pool, deform_roi_pool, ps_roi_align, roi_align
from pliant.ops.roi.reference.bins import ps_roi_pool, roi_pool

__all__ = ["deform_psroi_pool", "deform_roi_pool", "ps_roi_align", "ps_roi_pool", "roi_align", "roi_pool"]
