"""Register our layers where mmdetection looks for mmcv's, even if mmcv's own are not compiled."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pliant import ops
from pliant.interop.mmcv import attention, compiled, conv, roi

_EXTENSION = "mmcv._ext"
# By their names in configurations.
REGISTERED = {
    "DCN": conv.DeformConv2dPack,
    "DCNv2": conv.ModulatedDeformConv2dPack,
    "MultiScaleDeformableAttention": attention.MultiScaleDeformableAttention,
}
REPLACED: dict[str, Any] = {
    "deform_conv2d": conv.deform_conv2d,
    "modulated_deform_conv2d": conv.modulated_deform_conv2d,
    "DeformConv2d": conv.DeformConv2d,
    "DeformConv2dPack": conv.DeformConv2dPack,
    "ModulatedDeformConv2d": conv.ModulatedDeformConv2d,
    "ModulatedDeformConv2dPack": conv.ModulatedDeformConv2dPack,
    "deform_roi_pool": roi.deform_roi_pool,
    "DeformRoIPool": roi.DeformRoIPool,
    "DeformRoIPoolPack": roi.DeformRoIPoolPack,
    "ModulatedDeformRoIPoolPack": roi.ModulatedDeformRoIPoolPack,
    "MultiScaleDeformableAttention": attention.MultiScaleDeformableAttention,
}
# What mmcv.ops does not show, and projects import from this module of it.
_INNER = "mmcv.ops.multi_scale_deform_attn"
INNER: dict[str, Any] = {
    "MultiScaleDeformableAttnFunction": attention.MultiScaleDeformableAttnFunction,
    "multi_scale_deformable_attn_pytorch": attention.multi_scale_deformable_attn_pytorch,
}


def register() -> None:
    """Register our layers in mmengine under mmcv's names, and put ours into mmcv where it is installed.

    Configurations with ``dcn=dict(type="DCNv2")`` then run on our kernels, and so do RoI extractors with
    ``roi_layer=dict(type="DeformRoIPoolPack")`` and transformers with ``type="MultiScaleDeformableAttention"``. Where
    mmcv is installed without its compiled part (mmcv-lite), `mmcv.ops`, and with it mmdetection, can be imported
    afterwards: ``mmcv._ext`` is replaced by a module that has `nms` and `roi_align` on our kernels, and `roi_pool`,
    `soft_nms` and `nms_match` in PyTorch; its other functions raise NotImplementedError when they are called. Call it
    before models are built; a second call changes nothing.

    Raises:
        ModuleNotFoundError: mmengine is not installed.
    """
    if importlib.util.find_spec("mmengine") is None:
        sentence = "register: needs the package mmengine: pip install mmengine"
        raise ModuleNotFoundError(sentence, name="mmengine")
    if importlib.util.find_spec("mmcv") is not None:
        if _EXTENSION not in sys.modules and importlib.util.find_spec(_EXTENSION) is None:
            sys.modules[_EXTENSION] = _Extension(_EXTENSION)
        original = importlib.import_module("mmcv.ops")
        inner = importlib.import_module(_INNER)
        theirs = {name: getattr(original, name) for name in REPLACED}
        theirs |= {name: getattr(inner, name) for name in INNER}
        for key, module in list(sys.modules.items()):
            if key.partition(".")[0] in ("mmcv", "mmdet"):
                for name, value in theirs.items():
                    if vars(module).get(name) is value:
                        setattr(module, name, (REPLACED | INNER)[name])
    models = importlib.import_module("mmengine.registry").MODELS
    for name, layer in REGISTERED.items():
        models.register_module(name=name, module=layer, force=True)


class _Extension(ModuleType):
    """Replace mmcv's compiled module: the functions that mmcv calls, on our kernels."""

    roi_pool_forward = staticmethod(compiled.roi_pool_forward)
    roi_pool_backward = staticmethod(compiled.roi_pool_backward)
    softnms = staticmethod(compiled.softnms)
    nms_match = staticmethod(compiled.nms_match)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError(f"{_EXTENSION}.{name} is not compiled here, and pliant has nothing in its place")

        return missing

    @staticmethod
    def get_compiler_version() -> str:
        # mmengine's runner asks for it when it starts.
        return "none, the kernels are those of pliant"

    @staticmethod
    def get_compiling_cuda_version() -> str:
        return "not available"

    @staticmethod
    def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
        # With sides x2 − x1 + offset, areas and intersections are those of boxes enlarged by the offset.
        return ops.nms(boxes + boxes.new_tensor([0, 0, offset, offset]), scores, iou_threshold)

    @staticmethod
    def roi_align_forward(
        input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, **settings: Any
    ) -> None:
        output.copy_(_align(input, rois, **settings))

    @staticmethod
    def roi_align_backward(
        grad: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor, **settings: Any
    ) -> None:
        # The operator is linear in the map, so its gradient is the same at any map.
        with torch.enable_grad():
            place = torch.zeros_like(grad_input).requires_grad_()
            (found,) = torch.autograd.grad(_align(place, rois, **settings), place, grad)
        grad_input.copy_(found)


def _align(
    input: Tensor,
    rois: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> Tensor:
    if pool_mode != 1:
        raise NotImplementedError('mmcv._ext.roi_align with pool_mode="max" is not compiled here; take "avg"')
    size = (aligned_height, aligned_width)
    return ops.roi_align(input, rois, size, spatial_scale, sampling_ratio, bool(aligned))
