"""Faster R-CNN on a pyramid or on conv5, with aligned or deformable RoI pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.models.detector import IMAGENET_MEAN, IMAGENET_STD
from pliant.models.fpn import FPN
from pliant.models.mimic import FeatureMimic
from pliant.models.resnet import ResNet
from pliant.models.rpn import RPN
from pliant.models.two_stage import HeadSettings, TwoStage
from pliant.nn import DeformRoIPool
from pliant.ops import roi_align

VERSIONS = {"align": None, "deform": 1, "modulated": 2}  # of DeformRoIPool


class RoIPooling(nn.Module):
    """Pool every RoI from the map that suits its size, all with the same (deformable) pooling.

    The map is the coarsest one whose stride is at most ``16·√(w·h)/canonical``, else the finest: for a pyramid of
    strides 4 to 32 and canonical 224 that is level ``⌊4 + log2(√(w·h)/224)⌋``. RoIs are scaled to the pixels of their
    map, and offsets are in units of the RoI's width and height, so that one branch serves all maps. (The authors'
    released pyramid and mmdetection have a branch per map.)

    Args:
        kind: "align", "deform" (offsets) or "modulated" (offsets and mask).
        channels: of the maps.
        strides: of the maps, finest first.
        size: bins in each direction.
        sampling_ratio: samples per bin in each direction; 0: as many as the bin has pixels, rounded up.
        canonical: side of the RoIs that are pooled at stride 16, in pixels.
        hidden: widths of the fully connected layers before the offsets; None takes the papers': no such layer for
            "deform", (1024, 1024) for "modulated".
        aligned: for "align": the centre of a pixel is at half a pixel, else at its corner.
        per_map: a branch of offsets for each map, named ``deform.0``, ``deform.1`` …
        mask_trunk: for "modulated": the mask has its own layers; see :class:`pliant.nn.DeformRoIPool`.

    Shape:
        maps, RoIs (R, 5) in pixels of the image → (R, channels, size, size).
    """

    def __init__(
        self,
        kind: str,
        channels: int,
        strides: Sequence[int],
        *,
        size: int = 7,
        sampling_ratio: int = 2,
        canonical: float = 224.0,
        hidden: Sequence[int] | None = None,
        aligned: bool = True,
        per_map: bool = False,
        mask_trunk: bool = False,
    ) -> None:
        super().__init__()
        if kind not in VERSIONS:
            raise ValueError(f"FasterRCNN: roi_pool must be one of {', '.join(map(repr, VERSIONS))}, got {kind!r}")
        if not canonical > 0:
            raise ValueError(f"FasterRCNN: roi_canonical must be positive, got {canonical}")
        self.strides, self.size, self.sampling_ratio, self.canonical = tuple(strides), size, sampling_ratio, canonical
        version = VERSIONS[kind]
        self.aligned = aligned
        self.deform: DeformRoIPool | nn.ModuleList | None = None
        if version is not None:
            branches = [
                DeformRoIPool(
                    size, channels, 1.0, sampling_ratio, version=version, hidden=hidden, separate_mask_trunk=mask_trunk
                )
                for _ in (strides if per_map else strides[:1])
            ]
            self.deform = nn.ModuleList(branches) if per_map else branches[0]

    def forward(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        level = self.levels(rois)
        if torch.compiler.is_exporting():
            # The number of RoIs per map is not known in an exported graph: pool all RoIs from every map, then choose.
            every = [self.pool(x, rois, stride) for x, stride in zip(maps, self.strides, strict=True)]
            chosen = every[0]
            for i, candidate in enumerate(every[1:], 1):
                chosen = torch.where((level == i).view(-1, 1, 1, 1), candidate, chosen)
            return chosen
        counts = torch.bincount(level, minlength=len(maps)).tolist()
        order = level.argsort(stable=True)
        pooled = [
            self.pool(x, part, stride)
            for x, part, stride in zip(maps, rois[order].split(counts), self.strides, strict=True)
            if len(part) or (len(rois) == 0 and stride == self.strides[0])  # parameters stay in the graph
        ]
        if len(pooled) == 1:
            return pooled[0]
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return torch.cat(pooled)[back]

    def levels(self, rois: Tensor) -> Tensor:
        """Return the index of the map of every RoI (R,)."""
        if len(self.strides) == 1:
            return torch.zeros_like(rois[:, 0], dtype=torch.long)
        side = (rois[:, 3:] - rois[:, 1:3]).clamp(min=0).prod(1).sqrt()
        fits = 16 / self.canonical * side[:, None] >= side.new_tensor(self.strides)
        return (fits.sum(1) - 1).clamp(min=0)

    def pool(self, x: Tensor, rois: Tensor, stride: int) -> Tensor:
        """Return the RoIs pooled from one map."""
        if self.deform is None:
            return roi_align(x, rois, self.size, 1 / stride, self.sampling_ratio, self.aligned)
        branches = self.deform
        layer = branches[self.strides.index(stride)] if isinstance(branches, nn.ModuleList) else branches
        pooled: Tensor = layer(x, rois * rois.new_tensor([1.0, *[1 / stride] * 4]))
        return pooled


class FasterRCNN(TwoStage):
    """Detect objects: the RPN's boxes are pooled, pass two fully connected layers, and are classified and moved.

    ``neck="fpn"``: proposals and pooling on a feature pyramid. ``neck="c4"``: proposals on conv4, pooling on conv5
    after a 1×1 convolution, as in both papers, which have conv5 at stride 16: `ResNet(…, stride=16)`. For calls and
    results see :class:`pliant.models.two_stage.TwoStage`. The defaults are the papers' settings where these are given.

    Args:
        backbone: a ResNet.
        classes: C, of the foreground.
        neck: "fpn" or "c4".
        roi_pool: "align", "deform" (DCNv1) or "modulated" (DCNv2).
        mimic: R-CNN feature mimicking in training; see :class:`pliant.models.FeatureMimic`.
        channels: of the pyramid, or of the 1×1 convolution on conv5.
        hidden: width of the two fully connected layers.
        levels: the backbone's maps, 0 to 3, on which the pyramid is built; 3 is always among them.
        anchor_sizes: square roots of the anchors' areas in pixels, for each map of the RPN, finest first; None: 8 times
            the stride (pyramid), or 2, 4, 8, 16 and 32 times the stride (conv4), which is 32 to 512.
        anchor_ratios: height / width.
        anchor_rule: where anchors are: "middle", "corner" or "torchvision"; see :class:`pliant.models.rpn.Anchors`.
        rpn_channels: of the RPN's 3×3 convolution; None: as many as the pyramid has, 512 on conv4.
        rpn_samples: anchors per image that the RPN's losses see.
        pre_nms: best anchors per map before suppression, in training and in evaluation; None: 2000 and 1000 (pyramid),
            12000 and 6000 (conv4).
        post_nms: proposals per image, in training and in evaluation.
        rpn_nms: IoU with a better proposal above which one is dropped.
        rpn_smallest: a proposal is dropped unless both its sides are longer, in pixels.
        in_padding: cells in the padding of a batch propose boxes, too.
        rois: proposals per image that the head's losses see.
        positive_share: largest share of positives among them.
        positive_iou: IoU with a true box from which a proposal is positive.
        hard: online hard example mining; see HeadSettings.
        pooled: bins in each direction.
        sampling_ratio: samples per bin in each direction; 0: as many as the bin has pixels, rounded up.
        roi_aligned: see RoIPooling, as for the two that follow.
        roi_per_map: a branch of offsets for each map.
        roi_mask_trunk: the mask has its own layers.
        roi_canonical: side of the RoIs that are pooled at stride 16 of the pyramid, in pixels.
        roi_hidden: widths of the layers before the offsets of the pooling; see RoIPooling.
        class_agnostic: one set of deltas for all classes.
        box_std: scale of the head's deltas.
        score_threshold: boxes with a lower score are dropped.
        nms_threshold: IoU with a better detection of the same class above which a box is dropped.
        max_detections: most detections per image.
        smallest: a detection is dropped unless both its sides are longer, in pixels.
        limit_shrinking: no side of a proposal or a detection shrinks by a factor of more than 1000/16, as none grows by
            more.
        mean: of images, per channel.
        std: of images, per channel.

    Raises:
        TypeError: the backbone is not a ResNet; images are not floating-point.
        ValueError: an unknown neck or pooling; settings, images or targets that do not fit.

    Source: Ren et al., NIPS 2015; Lin et al., CVPR 2017; Dai et al., ICCV 2017; Zhu et al., CVPR 2019.

    >>> _ = torch.manual_seed(0)
    >>> net = FasterRCNN(ResNet(18, width=8, stem="small"), 3, channels=16, hidden=32, post_nms=(50, 50))
    >>> image = torch.rand(3, 64, 64)
    >>> losses = net([image], [{"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}])
    >>> sorted(losses)
    ['box', 'classification', 'rpn_box', 'rpn_objectness']
    >>> sorted(net.eval()([image])[0])
    ['boxes', 'labels', 'scores']
    """

    def __init__(
        self,
        backbone: ResNet,
        classes: int,
        *,
        neck: str = "fpn",
        roi_pool: str = "align",
        mimic: FeatureMimic | None = None,
        channels: int = 256,
        hidden: int = 1024,
        levels: Sequence[int] = (0, 1, 2, 3),
        anchor_sizes: Sequence[Sequence[float]] | None = None,
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        anchor_rule: str = "middle",
        rpn_channels: int | None = None,
        rpn_samples: int = 256,
        pre_nms: tuple[int, int] | None = None,
        post_nms: tuple[int, int] = (2000, 1000),
        rpn_nms: float = 0.7,
        rpn_smallest: float = 1e-3,
        in_padding: bool = False,
        rois: int = 512,
        positive_share: float = 0.25,
        positive_iou: float = 0.5,
        hard: int | None = None,
        pooled: int = 7,
        sampling_ratio: int = 2,
        roi_aligned: bool = True,
        roi_per_map: bool = False,
        roi_mask_trunk: bool = False,
        roi_canonical: float = 224.0,
        roi_hidden: Sequence[int] | None = None,
        class_agnostic: bool = False,
        box_std: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
        smallest: float = 0.0,
        limit_shrinking: bool = False,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        head = HeadSettings(
            rois, positive_share, positive_iou, hard, box_std, score_threshold, nms_threshold, max_detections,
            smallest, limit_shrinking,
        )  # fmt: skip
        super().__init__(backbone, classes, head, mean, std)
        if min(channels, hidden, pooled) < 1:
            raise ValueError(
                f"FasterRCNN: channels, hidden and pooled must be at least 1, got {channels}, {hidden} and {pooled}"
            )
        if neck not in ("fpn", "c4"):
            raise ValueError(f"FasterRCNN: neck must be 'fpn' or 'c4', got {neck!r}")
        if neck == "fpn":
            self.levels = tuple(levels)
            if self.levels[-1:] != (3,) or list(self.levels) != sorted(set(self.levels) & {0, 1, 2, 3}):
                raise ValueError(f"FasterRCNN: levels must be some of 0, 1, 2 and 3, in this order, got {self.levels}")
            pool_strides = [backbone.strides[i] for i in self.levels]
            rpn_in, rpn_strides = channels, [*pool_strides, 2 * pool_strides[-1]]
            factors: tuple[int, ...] = (8,)
            rpn_channels, pre_nms = rpn_channels or channels, pre_nms or (2000, 1000)
            self.neck: nn.Module = FPN([backbone.channels[i] for i in self.levels], channels)
        else:
            self.levels = (3,)
            pool_strides, rpn_strides, rpn_in = [backbone.strides[3]], [backbone.strides[2]], backbone.channels[2]
            factors = (2, 4, 8, 16, 32)
            rpn_channels, pre_nms = rpn_channels or 512, pre_nms or (12000, 6000)
            self.neck = nn.Conv2d(backbone.channels[3], channels, 1)
            nn.init.kaiming_normal_(self.neck.weight, nonlinearity="relu")
            nn.init.zeros_(self.neck.bias)  # type: ignore[arg-type]
        if anchor_sizes is None:
            anchor_sizes = [[factor * stride for factor in factors] for stride in rpn_strides]
        if len(anchor_sizes) != len(rpn_strides) or len({len(sizes) for sizes in anchor_sizes}) != 1:
            raise ValueError(
                f"FasterRCNN: anchor_sizes must have an equal number of sizes for each of the {len(rpn_strides)} maps "
                f"of the RPN, got {anchor_sizes!r}"
            )
        self.rpn = RPN(
            rpn_in, rpn_strides, anchor_sizes, anchor_ratios, hidden=rpn_channels, samples=rpn_samples,
            pre_nms=pre_nms, post_nms=post_nms, nms_threshold=rpn_nms, anchor_rule=anchor_rule, in_padding=in_padding,
            smallest=rpn_smallest, limit_shrinking=limit_shrinking,
        )  # fmt: skip
        self.pool = RoIPooling(
            roi_pool, channels, pool_strides, size=pooled, sampling_ratio=sampling_ratio, canonical=roi_canonical,
            hidden=roi_hidden, aligned=roi_aligned, per_map=roi_per_map, mask_trunk=roi_mask_trunk,
        )  # fmt: skip
        self.fc1 = nn.Linear(channels * pooled**2, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.classifier = nn.Linear(hidden, classes + 1)
        self.regressor = nn.Linear(hidden, 4 if class_agnostic else 4 * classes)
        for layer, std_ in ((self.fc1, None), (self.fc2, None), (self.classifier, 0.01), (self.regressor, 0.001)):
            if std_ is None:
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            else:
                nn.init.normal_(layer.weight, std=std_)
            nn.init.zeros_(layer.bias)
        if mimic is not None:
            if not isinstance(mimic, FeatureMimic):
                raise TypeError(f"FasterRCNN: mimic must be a pliant.models.FeatureMimic, got {type(mimic).__name__}")
            mimic.attach(self)
        self.mimic = mimic

    def maps(self, images: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        found = self.backbone(images)
        if isinstance(self.neck, FPN):
            levels = self.neck([found[i] for i in self.levels])
            return levels, levels[: len(self.levels)]
        return [found[2]], [F.relu(self.neck(found[3]))]

    def describe(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Return the features (R, hidden) of RoIs (R, 5), the input of classifier and regressor."""
        x = F.relu(self.fc1(self.pool(maps, rois).flatten(1)))
        return F.relu(self.fc2(x))

    def head(self, maps: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.describe(maps, rois)
        deltas = self.regressor(features)
        return self.classifier(features), deltas.unflatten(1, (-1, 4)), features

    def more_losses(self, images: Tensor, rois: Tensor, labels: Tensor, features: Tensor) -> dict[str, Tensor]:
        return {} if self.mimic is None else self.mimic(self, images, rois, labels, features)
