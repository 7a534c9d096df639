"""Whole detectors of other libraries: their heads in our layout, and the settings with which they detect the same."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pliant.models import ModelRecipe, build_detector, checkpoint
from pliant.models.detector import IMAGENET_MEAN, IMAGENET_STD
from pliant.models.resnet import DEPTHS

STYLES = ("pytorch", "caffe")
# COCO's categories 1 to 90; ten numbers are not in use.
_COCO = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant - stop_sign parking_meter "
    "bench bird cat dog horse sheep cow elephant bear zebra giraffe - backpack umbrella - - handbag tie suitcase "
    "frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle - "
    "wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair "
    "couch potted_plant bed - dining_table - - toilet - tv laptop mouse remote keyboard cell_phone microwave oven "
    "toaster sink refrigerator - book clock vase scissors teddy_bear hair_drier toothbrush"
)
_EPS = 1e-5  # of our normalization


class Unfit(ValueError):
    """A checkpoint with heads that are not those of our Faster R-CNN."""


@dataclass(frozen=True)
class Library:
    """How a library's Faster R-CNN with a pyramid differs from ours.

    Args:
        conv: the names that the RPN's 3×3 convolution had in its versions.
        logits: the RPN's logits, one per anchor.
        deltas: the RPN's deltas, four per anchor.
        layers: the two fully connected layers.
        classifier: the scores of the classes and the background.
        regressor: the deltas of the classes.
        background_first: the background is class 0, and has deltas.
        style: where strides lie and how images are normalised, unless the user says it.
        interpolation: of images; see :class:`pliant.data.Resize`.
        options: arguments of :class:`pliant.models.FasterRCNN`.
        rest: names beside the heads that hold no weights of ours.
    """

    conv: tuple[str, ...]
    logits: str
    deltas: str
    layers: tuple[str, str]
    classifier: str
    regressor: str
    style: str
    interpolation: str
    options: Mapping[str, Any]
    background_first: bool = False
    rest: str = ""


LIBRARIES = {
    "torchvision": Library(
        conv=("rpn.head.conv.0.0", "rpn.head.conv"),
        logits="rpn.head.cls_logits",
        deltas="rpn.head.bbox_pred",
        layers=("roi_heads.box_head.fc6", "roi_heads.box_head.fc7"),
        classifier="roi_heads.box_predictor.cls_score",
        regressor="roi_heads.box_predictor.bbox_pred",
        background_first=True,
        style="pytorch",
        interpolation="torchvision",
        options={"anchor_rule": "torchvision", "roi_aligned": False, "sampling_ratio": 2, "smallest": 0.01},
    ),
    "mmdet": Library(
        conv=("rpn_head.rpn_conv",),
        logits="rpn_head.rpn_cls",
        deltas="rpn_head.rpn_reg",
        layers=("roi_head.bbox_head.shared_fcs.0", "roi_head.bbox_head.shared_fcs.1"),
        classifier="roi_head.bbox_head.fc_cls",
        regressor="roi_head.bbox_head.fc_reg",
        style="pytorch",
        interpolation="opencv",
        options={
            "anchor_rule": "corner", "sampling_ratio": 0, "limit_shrinking": True, "rpn_smallest": 0.0, "smallest": -1.0
        },
    ),
    "detectron2": Library(
        conv=("proposal_generator.rpn_head.conv",),
        logits="proposal_generator.rpn_head.objectness_logits",
        deltas="proposal_generator.rpn_head.anchor_deltas",
        layers=("roi_heads.box_head.fc1", "roi_heads.box_head.fc2"),
        classifier="roi_heads.box_predictor.cls_score",
        regressor="roi_heads.box_predictor.bbox_pred",
        style="caffe",
        interpolation="pillow",
        options={"anchor_rule": "corner", "sampling_ratio": 0, "rpn_smallest": 0.0},
        rest=r"pixel_(mean|std)|(proposal_generator\.)?anchor_generator\.cell_anchors\.\d",
    ),
}  # fmt: skip


@dataclass
class Detector:
    """A converted detector: its weights, the new name of every name of the checkpoint, and what its file records."""

    state: dict[str, Tensor]
    names: dict[str, str | None]
    layers: dict[str, dict[str, Any]]
    recipe: ModelRecipe
    about: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def has_heads(source: str, state: Mapping[str, Tensor]) -> bool:
    """Return whether a checkpoint has the heads of its library's detectors of two stages."""
    library = LIBRARIES.get(source)
    return library is not None and f"{library.logits}.weight" in state and f"{library.classifier}.weight" in state


def convert(
    source: str, theirs: Mapping[str, Tensor], names: Mapping[str, str | None], state: Mapping[str, Tensor],
    layers: Mapping[str, dict[str, Any]], *, style: str | None, classes: Sequence[str] | None, eps: float,
) -> Detector:  # fmt: skip
    """Return a whole detector, given its backbone and its neck in our names.

    Args:
        source: one of :data:`LIBRARIES`.
        theirs: the checkpoint.
        names: our name of every name of `theirs`, None where it is a head's.
        state: the weights of backbone and neck.
        layers: the settings of the deformable layers.
        style: "pytorch" or "caffe"; None takes the library's usual one.
        classes: names of the classes; None: COCO's if there are 80 of them, or torchvision's 90.
        eps: that the library adds to variances.

    Raises:
        Unfit: the detector is not one of ours; the sentence says what differs.
        ValueError: an unknown style, or another number of classes.
    """
    library = LIBRARIES[source]
    style = style or library.style
    if style not in STYLES:
        raise ValueError(f"convert: style must be one of {', '.join(map(repr, STYLES))}, got {style!r}")
    found = _Heads(library, theirs)
    new = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    renamed = {old: name if name in new else None for old, name in names.items()}
    moved: dict[str, dict[str, Any]] = {}
    for layer, settings in layers.items():
        pool = re.fullmatch(r"roi_head\.bbox_roi_extractor\.roi_layers\.(\d)", layer)
        if pool is None:
            moved[layer] = settings
            continue
        ours = f"pool.deform.{pool[1]}"
        moved[ours] = settings
        for name in [name for name in new if name.startswith(f"{layer}.")]:
            new[ours + name.removeprefix(layer)] = new.pop(name)
            renamed[name] = ours + name.removeprefix(layer)
    new |= found.state
    renamed |= found.names
    count = len(new["classifier.bias"]) - 1
    recipe = _recipe(library, new, moved, style)
    new = _normalised({name: tensor.float() for name, tensor in new.items()}, style, eps)
    _fits(new, recipe, count)
    left = [n for n, name in renamed.items() if name is None and not n.endswith("num_batches_tracked")]
    left = [n for n in left if not re.fullmatch(library.rest, n)]
    note = f"it detects boxes; {len(left)} tensors of other heads are left over, such as {left[0]}" if left else ""
    labels, ids = _classes(classes, count, library.background_first)
    resize = {"short_side": 800, "long_side": 1333, "interpolation": library.interpolation}
    about = {
        "format": checkpoint.FORMAT,
        "recipe": {"model": asdict(recipe), "data": resize, "optimiser": {}},
        "classes": labels,
        "category_ids": ids,
        "step": 0,
    }
    return Detector(new, renamed, moved, recipe, about, note)


class _Heads:
    """The heads of a checkpoint in our layout: `state`, and our names for theirs, `names`."""

    def __init__(self, library: Library, theirs: Mapping[str, Tensor]) -> None:
        self.state: dict[str, Tensor] = {}
        self.names: dict[str, str | None] = {}
        conv = next((name for name in library.conv if f"{name}.weight" in theirs), library.conv[0])
        wanted = (conv, library.logits, library.deltas, *library.layers, library.classifier, library.regressor)
        missing = [f"{name}.{kind}" for name in wanted for kind in ("weight", "bias") if f"{name}.{kind}" not in theirs]
        if missing:
            raise Unfit(f"it lacks {missing[0]}")
        for kind in ("weight", "bias"):
            named = {name: theirs[f"{name}.{kind}"] for name in wanted}
            logits, deltas = named[library.logits], named[library.deltas]
            scores, moves = named[library.classifier], named[library.regressor]
            if logits.dim() != (4 if kind == "weight" else 1) or len(deltas) != 4 * len(logits):
                raise Unfit(f"its RPN has {len(logits)} logits and {len(deltas)} deltas")
            if library.background_first:
                scores = scores.roll(-1, 0)
                moves = moves[4:] if len(moves) == 4 * len(scores) else moves
            both = torch.cat([logits.unflatten(0, (-1, 1)), deltas.unflatten(0, (-1, 4))], 1)
            parts = (
                (conv, "rpn.conv", named[conv]),
                (library.logits, "rpn.predict", both.flatten(0, 1)),
                (library.deltas, "rpn.predict", both.flatten(0, 1)),
                (library.layers[0], "fc1", named[library.layers[0]]),
                (library.layers[1], "fc2", named[library.layers[1]]),
                (library.classifier, "classifier", scores),
                (library.regressor, "regressor", moves),
            )
            for old, new, tensor in parts:
                self.names[f"{old}.{kind}"], self.state[f"{new}.{kind}"] = f"{new}.{kind}", tensor


def _recipe(
    library: Library, state: Mapping[str, Tensor], layers: Mapping[str, dict[str, Any]], style: str
) -> ModelRecipe:
    """Return the recipe of the detector with these weights."""
    stages = [
        [name for name in state if re.fullmatch(rf"backbone\.layer{i}\.\d+\.conv1\.weight", name)] for i in (1, 2, 3, 4)
    ]
    shape = ("backbone.layer1.0.conv3.weight" in state, tuple(len(blocks) for blocks in stages))
    depth = next((depth for depth, known in DEPTHS.items() if known == shape), None)
    if depth is None:
        raise Unfit(f"its backbone has {shape[1]} blocks, which is none of ResNet-{', '.join(map(str, DEPTHS))}")
    kinds = {name: layer for name, layer in layers.items() if name.startswith("backbone.")}
    deform: list[Any] = []
    for i in (1, 2, 3, 4):
        versions = {layer["version"] for name, layer in kinds.items() if name.startswith(f"backbone.layer{i}.")}
        deform.append(f"v{versions.pop()}" if versions else None)
    groups = {layer["offset_groups"] for layer in kinds.values()} or {1}
    channels, features = len(state["rpn.conv.weight"]), state["fc1.weight"].shape[1]
    if "neck.lateral.3.weight" not in state:
        raise Unfit("it has no pyramid of four maps")
    channels = len(state["neck.lateral.0.weight"])
    caffe = style == "caffe"
    options: dict[str, Any] = {
        "channels": channels, "hidden": len(state["fc1.weight"]), "pooled": math.isqrt(features // channels),
        "rpn_channels": len(state["rpn.conv.weight"]), "class_agnostic": len(state["regressor.bias"]) == 4,
        "in_padding": True, **library.options,
        "mean": IMAGENET_MEAN, "std": (1 / 255,) * 3 if caffe else IMAGENET_STD,
    }  # fmt: skip
    pools = [layer for name, layer in layers.items() if name.startswith("pool.")]
    if pools:
        options |= {
            "roi_hidden": pools[0]["hidden"],
            "roi_per_map": True,
            "roi_mask_trunk": pools[0]["separate_mask_trunk"],
        }
    return ModelRecipe(
        depth=depth, width=len(state["backbone.conv1.weight"]), deform=tuple(deform), offset_groups=min(groups),  # type: ignore[arg-type]
        mask_scale=1.0, frozen_bn=True, stride_in="1x1" if caffe else "3x3",
        roi_pool=("deform", "modulated")[pools[0]["version"] - 1] if pools else None, options=options,
    )  # fmt: skip


def _normalised(state: dict[str, Tensor], style: str, eps: float) -> dict[str, Tensor]:
    """Return weights for images that are RGB, and for variances to which our normalization adds its own ε."""
    if style == "caffe":
        state["backbone.conv1.weight"] = state["backbone.conv1.weight"].flip(1)  # images are BGR there
    if eps != _EPS:
        for name in [name for name in state if name.endswith("running_var")]:
            weight, var = f"{name.removesuffix('running_var')}weight", state[name].double()
            state[weight] = (state[weight] * ((var + _EPS) / (var + eps)).sqrt()).float()
    return state


def _fits(state: Mapping[str, Tensor], recipe: ModelRecipe, count: int) -> None:
    """Raise Unfit unless a detector of `recipe` has exactly these weights."""
    with torch.device("meta"):
        wanted = build_detector(recipe, count).state_dict()
    for name in [*wanted, *state]:
        mine, own = wanted.get(name), state.get(name)
        if mine is None or own is None or mine.shape != own.shape:
            shapes = [tuple(tensor.shape) if tensor is not None else "nothing" for tensor in (own, mine)]
            raise Unfit(f"{name} is {shapes[0]}, ours is {shapes[1]}")


def _classes(given: Sequence[str] | None, count: int, background_first: bool) -> tuple[list[str], list[int]]:
    """Return the names of the classes and their numbers in COCO's files."""
    names = [name.replace("_", " ") for name in _COCO.split()]
    used = [i + 1 for i, name in enumerate(names) if name != "-"]
    if given is not None:
        if len(given) != count:
            raise ValueError(f"convert: the detector has {count} classes, got {len(given)} names")
        return list(given), list(range(1, count + 1))
    if count == len(used):
        return [names[i - 1] for i in used], used
    if count == len(names) and background_first:
        return names, list(range(1, count + 1))
    return [f"class {i}" for i in range(1, count + 1)], list(range(1, count + 1))
