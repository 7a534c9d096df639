"""The RoI operators on GPUs."""

from functools import partial

from pliant.ops.roi.triton import averages
from pliant.ops.roi.triton.bins import ps_roi_pool, ps_roi_pool_backward, roi_pool, roi_pool_backward

__all__ = [
    "deform_psroi_pool",
    "deform_psroi_pool_backward",
    "deform_roi_pool",
    "deform_roi_pool_backward",
    "ps_roi_align",
    "ps_roi_align_backward",
    "ps_roi_pool",
    "ps_roi_pool_backward",
    "roi_align",
    "roi_align_backward",
    "roi_pool",
    "roi_pool_backward",
]

roi_align, roi_align_backward = (partial(f, "roi_align") for f in (averages.forward, averages.backward))
ps_roi_align, ps_roi_align_backward = (partial(f, "ps_roi_align") for f in (averages.forward, averages.backward))
deform_roi_pool, deform_roi_pool_backward = (
    partial(f, "deform_roi_pool") for f in (averages.forward, averages.backward)
)
deform_psroi_pool, deform_psroi_pool_backward = (
    partial(f, "deform_psroi_pool") for f in (averages.forward, averages.backward)
)
