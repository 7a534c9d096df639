"""R-FCN: position-sensitive score maps, one set per part of an object, with or without deformable pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pliant.models.detector import IMAGENET_MEAN, IMAGENET_STD
from pliant.models.resnet import ResNet
from pliant.models.rpn import RPN
from pliant.models.two_stage import HeadSettings, TwoStage
from pliant.nn import DeformPSRoIPool
from pliant.ops import deform_psroi_pool


class PartScores(nn.Module):
    """Score RoIs by parts: each bin (i, j) of k × k is pooled from its own maps, and the bins are averaged.

    ``score[r, c] = mean_b pool(maps)[r, c, b]``, with ``maps = conv(features)``, 1×1 to outputs·k² channels, pooled by
    :func:`pliant.ops.deform_psroi_pool` without offsets or by :class:`pliant.nn.DeformPSRoIPool`.

    Args:
        channels: of the features.
        outputs: scores per RoI.
        bins: k.
        stride: of the features.
        classes: number of classes with their own offsets, a divisor of `outputs`; None: bins do not move.

    Shape:
        features (N, channels, H, W), RoIs (R, 5) → (R, outputs).
    """

    def __init__(self, channels: int, outputs: int, bins: int, stride: int, classes: int | None) -> None:
        super().__init__()
        self.bins, self.stride = bins, stride
        self.conv = nn.Conv2d(channels, outputs * bins**2, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.deform = None if classes is None else DeformPSRoIPool(bins, channels, classes, 1 / stride)

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        maps = self.conv(features)
        if self.deform is not None:
            pooled = self.deform(maps, features, rois)
        else:
            pooled = deform_psroi_pool(maps, rois, None, self.bins, 1 / self.stride, group_size=self.bins)
        scores: Tensor = pooled.mean((2, 3))
        return scores


class RFCN(TwoStage):
    """Detect objects by convolutions alone: after the proposals there is only pooling and averaging.

    The RPN works on conv4. conv5, which should be at stride 16 (`ResNet(…, stride=16)`), goes through a 1×1 convolution
    to `width` maps, and these through 1×1 convolutions to k²·(C + 1) score maps and 4·k² maps of box deltas (shared by
    all classes), from which RoIs are pooled part by part. ``roi_pool="deform_ps"``: each bin moves by an offset that
    convolutions predict per class. Both kinds use the same pooling (:func:`pliant.ops.deform_psroi_pool`) and differ in
    the offsets alone. For calls and results see :class:`pliant.models.two_stage.TwoStage`.

    The released code predicts 8·k² maps of deltas. Half of them belong to the background and are never trained; they
    are left out here. Its other settings are the defaults: 300 proposals, of which the 128 of largest loss count.

    Args:
        backbone: a ResNet.
        classes: C, of the foreground.
        roi_pool: "ps" or "deform_ps".
        width: channels between conv5 and the score maps.
        bins: k, parts in each direction.
        anchor_sizes: square roots of the anchors' areas in pixels; None: 4, 8, 16 and 32 times the stride of conv4.
        anchor_ratios: height / width.
        anchor_rule: where anchors are: "middle", "corner" or "torchvision"; see :class:`pliant.models.rpn.Anchors`.
        rpn_channels: of the RPN's 3×3 convolution.
        rpn_samples: anchors per image that the RPN's losses see.
        pre_nms: best anchors before suppression, in training and in evaluation.
        post_nms: proposals per image, in training and in evaluation.
        rpn_nms: IoU with a better proposal above which one is dropped.
        rpn_smallest: a proposal is dropped unless both its sides are longer, in pixels.
        in_padding: cells in the padding of a batch propose boxes, too.
        hard: proposals per image that count, those of largest loss; None draws `rois` of them instead.
        rois: see `hard`.
        positive_share: largest share of positives among `rois`.
        positive_iou: IoU with a true box from which a proposal is positive.
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
        ValueError: an unknown pooling; settings, images or targets that do not fit.

    Source: Dai et al., "R-FCN", NIPS 2016; Dai et al., "Deformable Convolutional Networks", ICCV 2017, section 2.2.

    >>> import torch
    >>> net = RFCN(ResNet(18, width=8, stem="small", stride=16), 3, width=16, bins=3, roi_pool="deform_ps")
    >>> sorted(net.eval()([torch.rand(3, 64, 64)])[0])
    ['boxes', 'labels', 'scores']
    """

    def __init__(
        self,
        backbone: ResNet,
        classes: int,
        *,
        roi_pool: str = "ps",
        width: int = 1024,
        bins: int = 7,
        anchor_sizes: Sequence[float] | None = None,
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        anchor_rule: str = "middle",
        rpn_channels: int = 512,
        rpn_samples: int = 256,
        pre_nms: tuple[int, int] = (6000, 6000),
        post_nms: tuple[int, int] = (300, 300),
        rpn_nms: float = 0.7,
        rpn_smallest: float = 1e-3,
        in_padding: bool = False,
        hard: int | None = 128,
        rois: int = 128,
        positive_share: float = 0.25,
        positive_iou: float = 0.5,
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
        if roi_pool not in ("ps", "deform_ps"):
            raise ValueError(f"RFCN: roi_pool must be 'ps' or 'deform_ps', got {roi_pool!r}")
        if width < 1 or bins < 1:
            raise ValueError(f"RFCN: width and bins must be at least 1, got {width} and {bins}")
        _, _, conv4, conv5 = backbone.strides
        sizes = [factor * conv4 for factor in (4, 8, 16, 32)] if anchor_sizes is None else anchor_sizes
        self.rpn = RPN(
            backbone.channels[2], [conv4], [sizes], anchor_ratios, hidden=rpn_channels, samples=rpn_samples,
            pre_nms=pre_nms, post_nms=post_nms, nms_threshold=rpn_nms, anchor_rule=anchor_rule, in_padding=in_padding,
            smallest=rpn_smallest, limit_shrinking=limit_shrinking,
        )  # fmt: skip
        self.neck = nn.Conv2d(backbone.channels[3], width, 1)
        nn.init.kaiming_normal_(self.neck.weight, nonlinearity="relu")
        nn.init.zeros_(self.neck.bias)  # type: ignore[arg-type]
        deform = roi_pool == "deform_ps"
        self.classifier = PartScores(width, classes + 1, bins, conv5, classes + 1 if deform else None)
        self.regressor = PartScores(width, 4, bins, conv5, 1 if deform else None)

    def maps(self, images: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        found = self.backbone(images)
        return [found[2]], [F.relu(self.neck(found[3]))]

    def head(self, maps: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (features,) = maps
        logits = self.classifier(features, rois)
        return logits, self.regressor(features, rois).unsqueeze(1), logits
