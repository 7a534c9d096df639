"""A detector by its settings, as recipes and checkpoints record them, and the network they describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from pliant.models.deformable_detr import DeformableDETR
from pliant.models.faster_rcnn import FasterRCNN
from pliant.models.mimic import FeatureMimic
from pliant.models.resnet import ResNet, load_imagenet
from pliant.models.rfcn import RFCN

Version = Literal["v1", "v2"] | None
Recorded = TypeVar("Recorded")


@dataclass(frozen=True)
class ModelRecipe:
    """Which network.

    Args:
        detector: Faster R-CNN, R-FCN or Deformable DETR.
        depth: of the ResNet: 10, 18, 26, 50 or 101.
        width: channels of its first stage; 64 is the usual network.
        stem: "imagenet" is 7×7 with stride 2 and a pooling, "small" suits images of a hundred pixels.
        deform: version of the deformable convolutions of conv2, conv3, conv4 and conv5; null is an ordinary one.
        offset_groups: of every deformable convolution.
        mask_scale: largest mask of version 2; 2 starts as the ordinary convolution does.
        frozen_bn: batch normalization with fixed statistics and weights.
        frozen_stages: the first 0 to 5 of stem, conv2 … conv5 are not trained; needs frozen_bn.
        stride: of conv5; 16 is with dilation 2, as in the papers.
        dilations: of the 3×3 convolutions of conv2, conv3, conv4 and conv5; null is 1, and 2 in conv5 at stride 16.
        stride_in: which convolution of a bottleneck has its stride, "3x3" or the first "1x1", as in Caffe's networks.
        neck: feature pyramid or conv4 (Faster R-CNN).
        roi_pool: "align", "deform" or "modulated" (Faster R-CNN), "ps" or "deform_ps" (R-FCN); null is the first.
        mimic: R-CNN feature mimicking on foreground proposals, background proposals or both (Faster R-CNN).
        mimic_options: further arguments of FeatureMimic, such as {"size": 64}.
        options: further arguments of the detector, such as {"channels": 64, "hidden": 256}.
        weights: where the backbone starts: a file of ImageNet weights, a checkpoint of another detector, or the name of
            one that comes with the package; null is at random.
    """

    detector: Literal["faster_rcnn", "rfcn", "deformable_detr"] = "faster_rcnn"
    depth: Literal[10, 18, 26, 50, 101] = 18
    width: int = 64
    stem: Literal["imagenet", "small"] = "imagenet"
    deform: tuple[Version, Version, Version, Version] = (None, None, None, None)
    offset_groups: int = 1
    mask_scale: float = 2.0
    frozen_bn: bool = False
    frozen_stages: int = 0
    stride: Literal[16, 32] = 32
    dilations: tuple[int, int, int, int] | None = None
    stride_in: Literal["3x3", "1x1"] = "3x3"
    neck: Literal["fpn", "c4"] = "fpn"
    roi_pool: Literal["align", "deform", "modulated", "ps", "deform_ps"] | None = None
    mimic: Literal["foreground", "background", "both"] | None = None
    mimic_options: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None


def recorded(kind: type[Recorded], values: Mapping[str, Any]) -> Recorded:
    """Return the recipe of which :func:`dataclasses.asdict` made `values`, directly or through JSON.

    Raises:
        ValueError: `values` were recorded by another version, or are damaged.

    >>> recorded(ModelRecipe, {"deform": [None, None, None, "v2"]}).deform
    (None, None, None, 'v2')
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"the recipe is damaged: it has a {type(values).__name__} instead of settings")
    try:
        # JSON has lists where the recipe has tuples.
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except TypeError as error:
        raise ValueError(f"the recipe was recorded by another version: {error}") from error


def build_detector(recipe: ModelRecipe, classes: int, *, seed: int = 0, pretrained: bool = True) -> nn.Module:
    """Return the detector of a recipe; the same seed gives the same weights, and torch's generator is left alone.

    Args:
        recipe: its settings.
        classes: number of classes, without background.
        seed: of the weights.
        pretrained: load `recipe.weights`, if any, into the backbone.

    Raises:
        ValueError: settings that do not go together, or that the network does not have.
        OSError: the file of weights does not exist.
    """
    if recipe.mimic and recipe.detector != "faster_rcnn":
        raise ValueError(f"model.mimic needs faster_rcnn, got {recipe.detector}")
    if recipe.roi_pool and recipe.detector == "deformable_detr":
        raise ValueError(
            f"model.roi_pool must be null with deformable_detr, which pools nothing; got {recipe.roi_pool}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        backbone = ResNet(
            recipe.depth, deform=recipe.deform, offset_groups=recipe.offset_groups, mask_scale=recipe.mask_scale,
            width=recipe.width, stem=recipe.stem, frozen_bn=recipe.frozen_bn, frozen_stages=recipe.frozen_stages,
            stride=recipe.stride, dilations=recipe.dilations, stride_in=recipe.stride_in,
        )  # fmt: skip
        try:
            model = _detector(recipe, backbone, classes)
        except TypeError as error:
            raise ValueError(f"model.options or model.mimic_options: {error}") from error
    if recipe.weights and pretrained:
        load_imagenet(model, Path(recipe.weights))
    return model


def _detector(recipe: ModelRecipe, backbone: ResNet, classes: int) -> nn.Module:
    if recipe.detector == "deformable_detr":
        return DeformableDETR(backbone, classes, **recipe.options)
    # Without an entry for roi_pool, each detector pools its plain way.
    pool: dict[str, Any] = {} if recipe.roi_pool is None else {"roi_pool": recipe.roi_pool}
    if recipe.detector == "rfcn":
        return RFCN(backbone, classes, **pool, **recipe.options)
    mimic = None
    if recipe.mimic:
        drawn: dict[str, Any] = {"foreground": recipe.mimic != "background", "background": recipe.mimic != "foreground"}
        mimic = FeatureMimic(**drawn, **recipe.mimic_options)
    return FasterRCNN(backbone, classes, neck=recipe.neck, mimic=mimic, **pool, **recipe.options)
