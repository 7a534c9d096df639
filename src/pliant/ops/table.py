"""One record per operator: what the docs, ``pliant doctor``, the contract tests and the benchmarks derive from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pliant import _check, ops, testing


@dataclass(frozen=True)
class Operator:
    """What is known about a public operator besides what it computes.

    Attributes:
        function: the public function.
        family: the folder of `ops` it lives in.
        inputs: draws the tensors of a case, by the names of the function's arguments: (case, dtype, seed,
            channels_last).
        settings: the function's other arguments on a case.
        cases: the cases on which it is tested, small and irregular.
        small: cases for finite differences, where it has gradients.
        huge: a case of more than 2³¹ elements, where the shape of the output does not depend on values.
        speed: the cases on which speed is promised.
        checked: the name of the case that ``pliant doctor`` checks.
        gradients: the tensors it can be differentiated in, twice.
        integers: tensors in float64 and settings with which all samples lie at whole pixels, on the borders of the map
            and beyond them, where derivatives are one-sided; None where no position has a gradient.
        variants: settings beside those of a case; what is tested holds with each of them.
        wide: tensors that may be float32 beside an input in low precision, and stay so under autocast.
        beside: views of what may hold any value and is not the map: coordinates and masks.
        alone: one image of a batch: (tensors, image) to (its tensors, its rows of the output).
        jumps: whether the last bit of a coordinate may decide about the output, as it does where boxes are
            rounded: the reference is then asked in the precision that the kernel computes in.
        follows: whether the output and the gradient of the map have its memory format; else they are contiguous.
        any_threads: whether gradients are the same bit for bit for any number of threads.
        layer: the layer of :mod:`pliant.nn` built on it, or nothing.
        meaning: what it does, in half a sentence; `meaning_zh` the same in Chinese.
        source: where it comes from.
        page: its page in docs/.
        exports: the formats that ``pliant.interop`` writes it to.
        dtypes: those of its CPU kernel.
        gpu_dtypes: those of its GPU kernel.
        whole: whether ``torch.compile(fullgraph=True)`` takes it.
        traceable: whether it takes the reference: not where loops depend on values.
    """

    function: Callable[..., Tensor]
    family: str
    inputs: Callable[[Any, torch.dtype, int, bool], dict[str, Tensor]]
    settings: Callable[[Any], dict[str, Any]]
    cases: tuple[Any, ...]
    checked: str
    small: tuple[Any, ...]
    huge: Any
    speed: tuple[Any, ...]
    gradients: tuple[str, ...]
    beside: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    alone: Callable[[dict[str, Tensor], int], tuple[dict[str, Tensor], Tensor]]
    layer: str
    meaning: str
    meaning_zh: str
    source: str
    page: str
    exports: tuple[str, ...] = ("ONNX", "OpenVINO")
    dtypes: tuple[torch.dtype, ...] = _check.DTYPES
    gpu_dtypes: tuple[torch.dtype, ...] = (torch.float32, *_check.LOW)
    whole: bool = True
    traceable: bool = True
    variants: tuple[dict[str, Any], ...] = ({},)
    wide: tuple[str, ...] = ()
    jumps: bool = False
    any_threads: bool = True
    integers: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]] | None = None
    follows: bool = True

    @property
    def name(self) -> str:
        return self.function.__name__

    def tensors(
        self, case: Any, dtype: torch.dtype = torch.float32, *, seed: int = 0, channels_last: bool = False
    ) -> dict[str, Tensor]:
        """Return the tensors of a case, drawn in float64 and rounded to `dtype`."""
        return self.inputs(case, dtype, seed, channels_last)


def _conv(case: testing.DeformConvCase, dtype: torch.dtype, seed: int, last: bool) -> dict[str, Tensor]:
    return case.tensors(dtype, seed=seed, channels_last=last)


def _roi(name: str) -> Callable[[testing.RoICase, torch.dtype, int, bool], dict[str, Tensor]]:
    return lambda case, dtype, seed, last: case.tensors(name, dtype, seed=seed, channels_last=last)


def _attention(case: testing.MSDeformAttnCase, dtype: torch.dtype, seed: int, last: bool) -> dict[str, Tensor]:
    return case.tensors(dtype, seed=seed)


def _dcn(name: str) -> Callable[[testing.DCNCase, torch.dtype, int, bool], dict[str, Tensor]]:
    return lambda case, dtype, seed, last: case.tensors(name, dtype, seed=seed)


def _lrn(case: testing.LRNCase, dtype: torch.dtype, seed: int, last: bool) -> dict[str, Tensor]:
    return {"input": case.tensors(dtype, seed=seed, channels_last=last)["input"]}


def _nms(*names: str) -> Callable[[testing.NMSCase, torch.dtype, int, bool], dict[str, Tensor]]:
    def draw(case: testing.NMSCase, dtype: torch.dtype, seed: int, last: bool) -> dict[str, Tensor]:
        tensors = case.tensors(dtype, seed=seed)
        return {name: tensors[name] for name in names}

    return draw


def _image(*names: str) -> Callable[[dict[str, Tensor], int], tuple[dict[str, Tensor], Tensor]]:
    """Return how one image is taken out of the batch: `names` are the tensors with a value for each."""

    def alone(tensors: dict[str, Tensor], image: int) -> tuple[dict[str, Tensor], Tensor]:
        own = {name: t[image : image + 1] if name in names else t for name, t in tensors.items()}
        return own, torch.tensor([image])

    return alone


def _boxes_of_image(tensors: dict[str, Tensor], image: int) -> tuple[dict[str, Tensor], Tensor]:
    name = "rois" if "rois" in tensors else "boxes"
    (rows,) = torch.where(tensors[name][:, 0] == image)
    own = {n: t[image : image + 1] if n == "input" else t[rows] for n, t in tensors.items()}
    own[name][:, 0] = 0
    return own, rows


def _of_roi(
    function: Callable[..., Tensor],
    meaning: str,
    meaning_zh: str,
    source: str,
    layer: str = "",
    own_channels: bool = False,
    timed: bool = False,
    jumps: bool = False,
    traceable: bool = True,
    variants: tuple[dict[str, Any], ...] = ({},),
    exports: tuple[str, ...] = ("ONNX", "OpenVINO"),
    integers: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]] | None = None,
) -> Operator:
    name = function.__name__
    taken = inspect.signature(function).parameters
    moved = ("offset", "mask") if name.startswith("deform") else ()

    def beside(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        boxes = "rois" if moved else "boxes"
        return {boxes: tensors[boxes][:, 1:], **{n: tensors[n] for n in moved}}

    return Operator(
        function=function,
        family="roi",
        inputs=_roi(name),
        settings=lambda case: {n: v for n, v in case.arguments(name).items() if n in taken},
        cases=testing.PS_ROI_CASES if own_channels else testing.ROI_CASES,
        checked="classes" if own_channels else "adaptive",
        speed=testing.ROI_SPEED if timed else (),
        small=testing.PS_ROI_SMALL if own_channels else testing.ROI_SMALL,
        huge=testing.ROI_HUGE,
        gradients=("input", *moved),
        variants=variants,
        wide=moved,
        beside=beside,
        alone=_boxes_of_image,
        jumps=jumps,
        traceable=traceable,
        layer=layer,
        meaning=meaning,
        meaning_zh=meaning_zh,
        source=source,
        page="roi_pooling.md",
        exports=exports,
        integers=integers,
    )


def _of_dcn(function: Callable[..., Tensor], layer: str, meaning: str, meaning_zh: str, source: str) -> Operator:
    name = function.__name__
    moved = ("offset", "mask") if name == "dcnv3" else ("offset_mask",)
    return Operator(
        function=function,
        family="aggregation",
        inputs=_dcn(name),
        settings=lambda case: dict(case.arguments),
        cases=testing.DCN_CASES,
        checked="crooked",
        small=testing.DCN_SMALL,
        huge=testing.DCN_HUGE,
        speed=testing.DCN_SPEED,
        gradients=("input", *moved),
        wide=moved,
        # The first channel of all is an offset, in either layout.
        beside=lambda tensors: {n: t[..., :1] if n == "offset_mask" else t for n, t in tensors.items() if n != "input"},
        alone=_image("input", *moved),
        follows=False,
        layer=layer,
        meaning=meaning,
        meaning_zh=meaning_zh,
        source=source,
        page="dcn.md",
        exports=(),
        integers=testing.dcnv3_at_integers if name == "dcnv3" else testing.dcnv4_at_integers,
    )


def _of_nms(
    function: Callable[..., Tensor], names: tuple[str, ...], meaning: str, meaning_zh: str, source: str
) -> Operator:
    return Operator(
        function=function,
        family="nms",
        inputs=_nms(*names),
        settings=lambda case: {"iou_threshold": 0.5},
        cases=testing.NMS_CASES,
        checked="dense",
        speed=testing.NMS_SPEED if "classes" not in names else (),
        small=(),
        huge=None,
        gradients=(),
        variants=({}, {"iou_threshold": 0.1}),
        beside=lambda tensors: {n: tensors[n] for n in ("boxes", "scores")},
        # It has no images.
        alone=lambda tensors, image: (tensors, torch.arange(0)),
        jumps=True,
        layer="",
        meaning=meaning,
        meaning_zh=meaning_zh,
        source=source,
        page="nms.md",
        exports=("ONNX",),
        # How many boxes are kept depends on values.
        whole=False,
        traceable=False,
    )


def _of_conv(
    function: Callable[..., Tensor],
    cases: tuple[testing.DeformConvCase, ...],
    small: tuple[testing.DeformConvCase, ...],
    huge: testing.DeformConvCase,
    speed: tuple[testing.DeformConvCase, ...],
    meaning: str,
    meaning_zh: str,
    source: str,
) -> Operator:
    name = function.__name__
    return Operator(
        function=function,
        family="conv",
        inputs=_conv,
        settings=lambda case: dict(case.geometry),
        cases=cases,
        checked="crooked",
        speed=speed,
        small=small,
        huge=huge,
        gradients=("input", "offset", "weight", "bias", "mask"),
        variants=({}, {"boundary": "clamp"}),
        wide=("offset", "mask"),
        beside=lambda tensors: {n: tensors[n] for n in ("offset", "mask")},
        alone=_image("input", "offset", "mask"),
        # Sums over images and tiles are split among threads.
        any_threads=False,
        integers=lambda: testing.deform_conv_at_integers(cases[0]),
        layer="".join(part.capitalize() for part in name.split("_")),
        meaning=meaning,
        meaning_zh=meaning_zh,
        source=source,
        page=f"{name}.md",
    )


OPERATORS = (
    _of_conv(
        ops.deform_conv2d,
        testing.DEFORM_CONV_CASES,
        testing.DEFORM_CONV_SMALL,
        testing.DEFORM_CONV_HUGE,
        (*testing.DEFORM_CONV_SPEED, *testing.DEFORM_CONV_KERNELS, testing.DEFORM_CONV_CALL),
        "convolution whose taps are moved by learned offsets (v1) and weighted by a learned mask (v2)",
        "每个采样点按学到的偏移量移动的卷积（v1），并可乘以学到的调制系数（v2）",
        "Dai et al. 2017, Zhu et al. 2019",
    ),
    _of_conv(
        ops.deform_conv1d,
        testing.DEFORM_CONV1D_CASES,
        testing.DEFORM_CONV1D_SMALL,
        testing.DEFORM_CONV1D_HUGE,
        (),
        "`deform_conv2d` of sequences: one coordinate per tap",
        "用于序列的 `deform_conv2d`：每个采样点一个坐标",
        "Dai et al. 2017",
    ),
    _of_conv(
        ops.deform_conv3d,
        testing.DEFORM_CONV3D_CASES,
        testing.DEFORM_CONV3D_SMALL,
        testing.DEFORM_CONV3D_HUGE,
        testing.DEFORM_CONV3D_SPEED,
        "`deform_conv2d` of volumes and videos: three coordinates per tap",
        "用于体数据与视频的 `deform_conv2d`：每个采样点三个坐标",
        "Ying et al. 2020",
    ),
    _of_conv(
        ops.deform_conv_transpose2d,
        testing.DEFORM_CONV_TRANSPOSE2D_CASES,
        testing.DEFORM_CONV_TRANSPOSE2D_SMALL,
        testing.DEFORM_CONV_TRANSPOSE2D_HUGE,
        testing.DEFORM_CONV_TRANSPOSE2D_SPEED,
        "transposed convolution whose taps are moved by learned offsets: the adjoint of `deform_conv2d`",
        "采样点按学到的偏移量移动的转置卷积：`deform_conv2d` 的伴随算子",
        "Dai et al. 2017",
    ),
    Operator(
        function=ops.ms_deform_attn,
        family="aggregation",
        inputs=_attention,
        settings=lambda case: dict(case.arguments),
        cases=testing.MS_DEFORM_ATTN_CASES,
        checked="detector",
        small=testing.MS_DEFORM_ATTN_SMALL,
        huge=testing.MS_DEFORM_ATTN_HUGE,
        speed=testing.MS_DEFORM_ATTN_SPEED,
        gradients=("value", "sampling_locations", "attention_weights"),
        integers=testing.ms_deform_attn_at_integers,
        variants=({}, {"method": "discrete"}),
        wide=("sampling_locations", "attention_weights"),
        beside=lambda tensors: {n: t for n, t in tensors.items() if n != "value"},
        alone=_image("value", "sampling_locations", "attention_weights"),
        follows=False,
        layer="MSDeformAttn",
        meaning="weighted sum of a few samples of every level of a pyramid, per query and head: multi-scale deformable "
        "attention",
        meaning_zh="多尺度可变形注意力：每个查询、每个头在金字塔各层取少量采样点并加权求和",
        source="Zhu et al. 2021",
        page="ms_deform_attn.md",
        exports=(),
    ),
    _of_dcn(
        ops.dcnv3,
        "DCNv3",
        "masked sum of samples moved by learned offsets, per group of channels, without a weight (InternImage)",
        "按通道组对带偏移的采样点加权求和，不含卷积核权重（InternImage）",
        "Wang et al. 2023",
    ),
    _of_dcn(
        ops.dcnv4,
        "DCNv4",
        "`dcnv3` with offsets and masks in one packed tensor (FlashInternImage)",
        "偏移与调制系数打包在同一张量中的 `dcnv3`（FlashInternImage）",
        "Xiong et al. 2024",
    ),
    _of_roi(
        ops.deform_roi_pool,
        "average over every bin of a box, each bin moved by a learned offset (v1) and weighted by a learned mask (v2)",
        "对框内各格取平均，每格按学到的偏移量移动（v1），并可乘以学到的调制系数（v2）",
        "Dai et al. 2017, Zhu et al. 2019",
        layer="DeformRoIPool",
        integers=testing.roi_pool_at_integers,
        timed=True,
    ),
    _of_roi(
        ops.deform_psroi_pool,
        "position-sensitive `deform_roi_pool`: every bin reads its own channels",
        "位置敏感的 `deform_roi_pool`：每格只读取属于自己的通道",
        "Dai et al. 2017, Zhu et al. 2019",
        layer="DeformPSRoIPool",
        integers=testing.psroi_pool_at_integers,
        own_channels=True,
        # Boxes are rounded to whole pixels, and samples right at the border are left out or not.
        jumps=True,
    ),
    _of_roi(
        ops.roi_align,
        "average of bilinear samples over every bin of a box; torchvision's arguments",
        "对框内各格的双线性采样值取平均；参数与 torchvision 一致",
        "He et al. 2017",
        timed=True,
        variants=({}, {"aligned": True}),
    ),
    _of_roi(
        ops.ps_roi_align,
        "position-sensitive `roi_align`: every bin reads its own channels; torchvision's arguments",
        "位置敏感的 `roi_align`：每格只读取属于自己的通道；参数与 torchvision 一致",
        "Li et al. 2017",
        own_channels=True,
    ),
    _of_roi(
        ops.roi_pool,
        "maximum over the whole pixels of every bin of a box; torchvision's arguments",
        "对框内各格的整数像素取最大值；参数与 torchvision 一致",
        "Girshick 2015",
        timed=True,
        jumps=True,
        traceable=False,
    ),
    _of_roi(
        ops.ps_roi_pool,
        "position-sensitive average over the whole pixels of every bin of a box; torchvision's arguments",
        "位置敏感：每格在属于自己的通道中对整数像素取平均；参数与 torchvision 一致",
        "Dai et al. 2016",
        own_channels=True,
        jumps=True,
        traceable=False,
    ),
    Operator(
        function=ops.local_response_norm,
        family="local_response_norm",
        inputs=_lrn,
        settings=lambda case: dict(case.arguments),
        cases=testing.LRN_CASES,
        checked="alexnet",
        small=testing.LRN_SMALL,
        huge=testing.LRN_HUGE,
        speed=testing.LRN_SPEED,
        gradients=("input",),
        beside=lambda tensors: {},
        alone=_image("input"),
        layer="LocalResponseNorm",
        meaning="divides every value by a power of the energy of neighbouring channels, or of neighbouring pixels; "
        "PyTorch's arguments",
        meaning_zh="除以相邻通道（或相邻像素）的能量的幂；参数与 PyTorch 一致",
        source="Krizhevsky et al. 2012",
        page="local_response_norm.md",
    ),
    Operator(
        function=ops.lrn,
        family="local_response_norm",
        inputs=_lrn,
        settings=lambda case: {
            "depth_radius": case.size // 2,
            "bias": case.k,
            "alpha": case.alpha / case.size,
            "beta": case.beta,
        },
        cases=tuple(case for case in testing.LRN_CASES if case.region == "channel"),
        checked="alexnet",
        speed=(),
        small=tuple(case for case in testing.LRN_SMALL if case.region == "channel"),
        huge=testing.LRN_HUGE,
        gradients=("input",),
        beside=lambda tensors: {},
        alone=_image("input"),
        layer="",
        meaning="local response normalization over the last dimension; TensorFlow's arguments",
        meaning_zh="沿最后一维的局部响应归一化；参数与 TensorFlow 一致",
        source="`tf.nn.lrn`",
        page="local_response_norm.md",
    ),
    _of_nms(
        ops.nms,
        ("boxes", "scores"),
        "non-maximum suppression: keeps the best of the boxes that overlap; exact; torchvision's arguments",
        "非极大值抑制：在重叠的框中只留最好的一个；结果精确；参数与 torchvision 一致",
        "Girshick et al. 2014",
    ),
    _of_nms(
        ops.batched_nms,
        ("boxes", "scores", "classes"),
        "`nms` within each class; torchvision's arguments",
        "按类别分开的 `nms`；参数与 torchvision 一致",
        "`torchvision.ops`",
    ),
)
