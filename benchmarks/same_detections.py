"""Does a converted detector detect what it detects in its own library?

    python benchmarks/same_detections.py [--double] [NAME …]

Every detector gets random weights, statistics of normalization and offset branches, and is saved as its library saves
it. ``pliant convert`` converts the file, a :class:`pliant.models.Predictor` reads the result, and both read the same
files of photographs, of two sizes: each alone, and both in one padded batch. Maps are compared at the pyramid, and
detections one to one. The operators under the other libraries are torchvision's; pliant is neither registered nor
patched anywhere.

Random networks decide much on a hair's breadth: where two scores or an overlap and its threshold differ by less than
the rounding of float32, libraries choose differently. With --double both compute in float64, where that is rarer.

Needs torch and torchvision of one build, mmdet 3.3.0 with mmengine and mmcv-lite 2.1.0, and the Python of detectron2;
what is not installed is skipped. Run with torch 2.14.1 and torchvision 0.29.1.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import io
import itertools
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import box_iou, deform_conv2d, nms, roi_align

from pliant.app import main
from pliant.models import Predictor
from pliant.models.predictor import resized

PHOTOGRAPHS = ("astronaut.png", "coffee.png")  # 512×512 and 400×600
Found = list[dict[str, Tensor]]


@dataclass
class Theirs:
    """A detector of another library.

    Args:
        source: the library, as ``pliant convert --from`` has it.
        model: its network.
        maps: return the pyramid of a batch of files, finest first.
        detect: return the detections of a batch of files.
        first_label: the number of its first class.
    """

    source: str
    model: nn.Module
    maps: Callable[[Sequence[str]], list[Tensor]]
    detect: Callable[[Sequence[str]], Found]
    first_label: int = 0


# What the last layers compute, as standard deviations; logits that saturate would tie.
SPREADS = {
    ("cls_logits", "rpn_cls", "objectness_logits"): 2.0,
    ("head.bbox_pred", "rpn_reg", "anchor_deltas"): 0.3,
    ("cls_score", "fc_cls"): 2.0,
    ("predictor.bbox_pred", "fc_reg"): 0.5,
}


def randomise(theirs: Theirs, paths: Sequence[str], seed: int = 0) -> None:
    """Give a detector weights, statistics and offset branches with which it finds tens of objects.

    Layers start as usual; then the layers after the backbone and those that predict offsets are scaled, one after the
    other, until what they compute of an image has the spread of `SPREADS`, else 1.
    """
    random = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=random))

    def normal(tensor: Tensor, std: float) -> None:
        tensor.copy_(std * torch.randn(tensor.shape, generator=random))

    for name, tensor in theirs.model.state_dict().items():
        if not tensor.is_floating_point() or "cell_anchors" in name or name.startswith("pixel_"):
            continue
        if name.endswith("running_var"):
            uniform(tensor, 0.5, 1.5)
        elif tensor.dim() == 1 and name.endswith("weight"):
            uniform(tensor, *((0.1, 0.3) if "bn3" in name or "conv3.norm" in name else (0.5, 1.5)))
        else:
            normal(tensor, 0.1 if tensor.dim() == 1 else (2 / tensor[0].numel()) ** 0.5)

    def scale(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if layer not in names:
            return None
        name = names.pop(layer)
        goal = next((spread for parts, spread in SPREADS.items() if name.endswith(parts)), 1.0)
        factor = goal / float(output.std())
        for parameter in layer.parameters():
            parameter.mul_(factor)
        return output * factor

    inside = ("backbone.body", "backbone.layer", "backbone.conv1", "backbone.bottom_up")
    names = {
        layer: name
        for name, layer in theirs.model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and ("offset" in name or not name.startswith(inside))
    }
    hooks = [layer.register_forward_hook(scale) for layer in names]
    theirs.detect(paths)
    for hook in hooks:
        hook.remove()


def of_torchvision(name: str) -> Theirs:
    model = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()

    def read(paths: Sequence[str]) -> list[Tensor]:
        dtype = next(model.parameters()).dtype
        return [torchvision.io.read_image(path).to(dtype) / 255 for path in paths]

    def maps(paths: Sequence[str]) -> list[Tensor]:
        images, _ = model.transform(read(paths))
        return list(model.backbone(images.tensors).values())

    return Theirs("torchvision", model, maps, lambda paths: model(read(paths)), first_label=1)


def of_mmdet(name: str) -> Theirs:
    _compiled_for_mmcv()
    import mmdet
    import mmengine
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.dataset import Compose

    register_all_modules()
    config = mmengine.Config.fromfile(Path(mmdet.__file__).parent / ".mim/configs" / f"{name}.py")
    config.model.backbone.init_cfg = None
    model = MODELS.build(config.model).eval()
    pipeline = Compose([step for step in config.test_pipeline if step.type != "LoadAnnotations"])

    def batch(paths: Sequence[str]) -> dict[str, Any]:
        items = [pipeline({"img_path": path, "img_id": i}) for i, path in enumerate(paths)]
        return {key: [item[key] for item in items] for key in ("inputs", "data_samples")}

    def maps(paths: Sequence[str]) -> list[Tensor]:
        return list(model.extract_feat(model.data_preprocessor(batch(paths), False)["inputs"]))

    def detect(paths: Sequence[str]) -> Found:
        results = [sample.pred_instances for sample in model.test_step(batch(paths))]
        return [{"boxes": r.bboxes, "scores": r.scores, "labels": r.labels} for r in results]

    return Theirs("mmdet", model, maps, detect)


def of_detectron2(name: str) -> Theirs:
    _compiled_for_detectron2()
    import numpy as np
    from detectron2 import model_zoo
    from detectron2.data.transforms import ResizeShortestEdge
    from detectron2.modeling import build_model
    from PIL import Image

    kind, _, deform = name.partition("+")
    config = model_zoo.get_config(f"COCO-Detection/{kind}.yaml")
    config.MODEL.DEVICE, config.MODEL.WEIGHTS = "cpu", ""
    if deform:
        config.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, True, True, True]
        config.MODEL.RESNETS.DEFORM_MODULATED = deform == "mdconv"
        config.MODEL.RESNETS.DEFORM_NUM_GROUPS = 2
    model = build_model(config).eval()
    resize = ResizeShortestEdge([config.INPUT.MIN_SIZE_TEST] * 2, config.INPUT.MAX_SIZE_TEST)

    def batch(paths: Sequence[str]) -> list[dict[str, Any]]:
        inputs = []
        for path in paths:
            image = np.array(Image.open(path).convert("RGB"))[:, :, ::-1]
            small = resize.get_transform(image).apply_image(image)
            tensor = torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)).astype("float32"))
            inputs.append({"image": tensor, "height": image.shape[0], "width": image.shape[1]})
        return inputs

    def maps(paths: Sequence[str]) -> list[Tensor]:
        return list(model.backbone(model.preprocess_image(batch(paths)).tensor).values())

    def detect(paths: Sequence[str]) -> Found:
        results = [result["instances"] for result in model(batch(paths))]
        return [{"boxes": r.pred_boxes.tensor, "scores": r.scores, "labels": r.pred_classes} for r in results]

    return Theirs("detectron2", model, maps, detect)


def _align_bins(
    input: Tensor, rois: Tensor, offset: Tensor, output: Tensor, *, pooled_height: int, pooled_width: int,
    spatial_scale: float, sampling_ratio: int, gamma: float,
) -> None:  # fmt: skip
    """Pool deformable RoIs with torchvision's RoIAlign: every moved bin is an RoI of its own."""
    size = rois[:, 3:] - rois[:, 1:3]
    bin = size / rois.new_tensor([pooled_width, pooled_height])
    for i, j in itertools.product(range(pooled_height), range(pooled_width)):
        corner = rois[:, 1:3] + bin * rois.new_tensor([j, i])
        if offset.numel():
            corner = corner + gamma * size * offset[:, :, i, j]
        moved = torch.cat([rois[:, :1], corner, corner + bin], 1)
        output[:, :, i, j] = roi_align(input, moved, 1, spatial_scale, sampling_ratio, True)[:, :, 0, 0]


def _compiled_for_mmcv() -> None:
    """Put torchvision's operators where mmcv looks for its compiled ones."""

    def v1(input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, *rest: Any, **k: int) -> None:
        output.copy_(deform_conv2d(
            input, offset, weight, None, (k["dH"], k["dW"]), (k["padH"], k["padW"]), (k["dilationH"], k["dilationW"])
        ))  # fmt: skip

    def v2(
        input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor, output: Tensor,
        *rest: Any, **k: int,
    ) -> None:  # fmt: skip
        sizes = [(k[f"{name}_h"], k[f"{name}_w"]) for name in ("stride", "pad", "dilation")]
        result = deform_conv2d(input, offset, weight, bias if k["with_bias"] else None, *sizes, mask)
        output.resize_(result.shape).copy_(result)

    def align(input: Tensor, rois: Tensor, output: Tensor, *rest: Any, **k: Any) -> None:
        size = (k["aligned_height"], k["aligned_width"])
        output.copy_(roi_align(input, rois, size, k["spatial_scale"], k["sampling_ratio"], k["aligned"]))

    _module(
        "mmcv._ext", deform_conv_forward=v1, modulated_deform_conv_forward=v2, roi_align_forward=align,
        deform_roi_pool_forward=_align_bins, nms=lambda boxes, scores, iou_threshold, offset: nms(
            boxes, scores, iou_threshold
        ),
    )  # fmt: skip


def _compiled_for_detectron2() -> None:
    """Put torchvision's deformable convolution in the place of detectron2's, which runs on GPUs alone."""
    import detectron2
    import PIL.Image

    detectron2._C = _module("detectron2._C")
    PIL.Image.LINEAR = PIL.Image.BILINEAR  # Pillow 10 removed the name
    from detectron2.layers import deform_conv

    def v1(
        input: Tensor, offset: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, *rest: Any
    ) -> Tensor:
        return deform_conv2d(input, offset, weight, None, stride, padding, dilation)

    def v2(
        input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any,
        dilation: Any, *rest: Any,
    ) -> Tensor:  # fmt: skip
        return deform_conv2d(input, offset, weight, bias, (stride,) * 2, (padding,) * 2, (dilation,) * 2, mask)

    deform_conv.deform_conv, deform_conv.modulated_deform_conv = v1, v2


def _module(name: str, **functions: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)

    def missing(function: str) -> Any:
        if function.startswith("__"):
            raise AttributeError(function)

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise NotImplementedError(f"{name}.{function}")

        return refuse

    vars(module).update(functions, __getattr__=missing)
    sys.modules[name] = module
    return module


CASES: dict[str, Callable[[str], Theirs]] = {
    "fasterrcnn_resnet50_fpn": of_torchvision,
    "faster_rcnn/faster-rcnn_r50_fpn_1x_coco": of_mmdet,
    "faster_rcnn/faster-rcnn_r101_fpn_1x_coco": of_mmdet,
    "dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco": of_mmdet,
    "dcn/faster-rcnn_r101-dconv-c3-c5_fpn_1x_coco": of_mmdet,
    "dcn/faster-rcnn_r50_fpn_dpool_1x_coco": of_mmdet,
    "dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco": of_mmdet,
    "dcnv2/faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco": of_mmdet,
    "dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco": of_mmdet,
    "faster_rcnn_R_50_FPN_1x": of_detectron2,
    "faster_rcnn_R_101_FPN_3x": of_detectron2,
    "faster_rcnn_R_50_FPN_1x+dconv": of_detectron2,
    "faster_rcnn_R_50_FPN_1x+mdconv": of_detectron2,
}


def compare(theirs: Found, ours: Found) -> str:
    """Return how many detections are the same, one to one, and by how much the same ones differ at most.

    Raises:
        AssertionError: some are not.
    """
    total, box, score = 0, 0.0, 0.0
    for their, our in zip(theirs, ours, strict=True):
        n = len(their["scores"])
        assert n and n == len(our["scores"]), f"{n} detections there, {len(our['scores'])} here"
        apart = (their["scores"][:, None] - our["scores"]).abs()
        overlap = box_iou(their["boxes"], our["boxes"]).where(their["labels"][:, None] == our["labels"], 0.0)
        same = (apart < 1e-5) & (overlap > 0.999)
        if not (same.sum(0) == 1).all() or not (same.sum(1) == 1).all():
            lone = int(same.sum(1).ne(1).nonzero()[0])
            near = int(overlap[lone].argmax())
            raise AssertionError(
                f"{int(same.any(1).sum())} of {n} are the same; the nearest to number {lone} has IoU "
                f"{float(overlap[lone, near]):.5f} and a score that is {float(apart[lone, near]):.1e} apart"
            )
        i, j = same.nonzero(as_tuple=True)
        total += n
        box = max(box, float((their["boxes"][i] - our["boxes"][j]).abs().max()))
        score = max(score, float(apart[i, j].max()))
    return f"{total} of {total} detections, scores {score:.0e}, boxes {box:.0e} pixels"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@torch.no_grad()
def prove(name: str, folder: Path, double: bool) -> str:
    """Return the result of one detector in words."""
    import skimage

    files = [str(Path(skimage.__file__).parent / "data" / photograph) for photograph in PHOTOGRAPHS]
    with quiet():
        theirs = CASES[name](name)
        randomise(theirs, files[:1])
        state = theirs.model.state_dict()
        torch.save(
            {"torchvision": state, "mmdet": {"meta": {}, "state_dict": state}, "detectron2": {"model": state}}[
                theirs.source
            ],
            folder / "in.pth",
        )
        assert main(["convert", str(folder / "in.pth"), str(folder / "out.pt"), "--from", theirs.source]) == 0
        predictor = Predictor.load(folder / "out.pt")
    model: Any = predictor.model
    if double:
        model.double()
        theirs.model.double()
    batch = [predictor_image(predictor, path) for path in files]
    _, maps = model.maps(model.batch(batch)[0])
    wanted = theirs.maps(files)[: len(maps)]
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(maps, wanted, strict=True))
    assert error < 1e-5, f"maps differ by {error:.1e}"
    lines = []
    for paths in ([files[0]], [files[1]], files):
        there, here = theirs.detect(paths), predictor(paths)
        for found in there:
            found["labels"] = found["labels"] - theirs.first_label
        lines.append(compare(there, here))
    return f"maps {error:.0e}; " + "; ".join(lines)


def predictor_image(predictor: Predictor, path: str) -> Tensor:
    from pliant.data import read_image

    image = resized(read_image(Path(path)), predictor.resize)
    return image if image.is_floating_point() else image.float() / 255


def run(names: Sequence[str], double: bool) -> int:
    failed = 0
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(f"{name}: {prove(name, Path(folder), double)}", flush=True)
            except ModuleNotFoundError as error:
                print(f"{name}: skipped, {error.name} is not installed", flush=True)
            except AssertionError as error:
                failed += 1
                print(f"{name}: DIFFERENT, {error}", flush=True)
    return failed


if __name__ == "__main__":
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}")
    given = [word for word in sys.argv[1:] if word != "--double"]
    sys.exit(1 if run(given or list(CASES), "--double" in sys.argv) else 0)
