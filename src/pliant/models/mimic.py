"""R-CNN feature mimicking: in training, a detector also reads its proposals cut out, without their surroundings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.models import boxes
from pliant.models.resnet import ResNet
from pliant.models.rpn import ranked
from pliant.ops import deform_roi_pool

Model = TypeVar("Model", bound=nn.Module)


class Detector(Protocol):
    """What mimicking needs of a detector; :class:`pliant.models.FasterRCNN` has it."""

    backbone: ResNet
    fc2: nn.Linear
    classes: int

    def modules(self) -> Iterator[nn.Module]: ...
    def maps(self, pictures: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]: ...
    def describe(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor: ...


class FeatureMimic(nn.Module):
    """Train the features of proposals to agree with the same network's features of the proposals cut out.

    In each image up to `count` proposals Ω are drawn, cut out and resized to `size` × `size` with one bilinear sample
    per pixel. These patches pass through the same backbone, neck, RoI pooling (the RoI is the whole patch) and fully
    connected layers, and a separate classifier classifies them. This gives two losses:
    ``mimic_cosine = weight · Σ_Ω (1 − cos(f_patch, f_proposal))`` and
    ``mimic_classification = weight · mean_Ω cross-entropy``, averaged over images. Without a proposal both are 0.

    Pass it to :class:`pliant.models.FasterRCNN` as `mimic`. In evaluation mode it does nothing; `strip_training_only`
    removes it. On conv5 (``neck="c4"``, the paper's network) 224 pixels become a 14×14 map. On a pyramid the patch is
    pooled from the same map as a proposal of `size` × `size`: 224 at stride 16, which is 14×14 again.

    Batch normalization that is not frozen normalises the patches by their own statistics. They do not enter its running
    statistics, which are those of whole images. (In the papers normalization is frozen.)

    Args:
        count: proposals per image; the paper's 32.
        size: of the patches, in pixels.
        weight: of both losses.
        reduction: of the cosine loss over Ω: "mean", or "sum", the formula as printed.
        detach_target: stop gradients of the cosine loss at f_patch. The paper does not say whether it does; both
            branches share their weights.
        foreground: draw positive proposals.
        background: draw negative proposals; if both are True, Ω is drawn uniformly from all.

    Raises:
        ValueError: neither foreground nor background, an unknown reduction, a count or size below 1, a size smaller
            than two cells of the coarsest map.

    Source: Zhu et al., "Deformable ConvNets v2", CVPR 2019, section 3.3.
    """

    def __init__(
        self,
        *,
        count: int = 32,
        size: int = 224,
        weight: float = 0.1,
        reduction: str = "mean",
        detach_target: bool = False,
        foreground: bool = True,
        background: bool = False,
    ) -> None:
        super().__init__()
        if not (foreground or background):
            raise ValueError("FeatureMimic: foreground or background must be True, or there is nothing to draw")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"FeatureMimic: reduction must be 'mean' or 'sum', got {reduction!r}")
        if count < 1 or size < 1:
            raise ValueError(f"FeatureMimic: count and size must be at least 1, got {count} and {size}")
        self.count, self.size, self.weight, self.reduction = count, size, weight, reduction
        self.detach_target, self.foreground, self.background = detach_target, foreground, background
        self.classifier: nn.Linear | None = None

    def attach(self, detector: Detector) -> None:
        """Make the classifier for `detector`."""
        if self.classifier is not None:
            raise ValueError("FeatureMimic: it belongs to a detector already; make one for each")
        coarsest = max(detector.backbone.strides)
        if self.size < 2 * coarsest:
            raise ValueError(f"FeatureMimic: size must be at least two cells of stride {coarsest}, got {self.size}")
        self.classifier = nn.Linear(detector.fc2.out_features, detector.classes + 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self, detector: Detector, pictures: Tensor, rois: Tensor, labels: Tensor, features: Tensor
    ) -> dict[str, Tensor]:
        """Return both losses.

        Args:
            detector: the detector, whose layers are shared.
            pictures: the images, (N, channels, H, W), normalised.
            rois: (R, 5), the sampled proposals.
            labels: (R,), C for background.
            features: (R, hidden), the detector's features of `rois`.
        """
        assert self.classifier is not None
        N, picture = len(pictures), rois[:, 0].long()
        chosen = self.draw(picture, labels, N, detector.classes)
        if len(chosen) == 0:
            nothing = features[:0]
            return {
                "mimic_cosine": boxes.wide(nothing.sum()),
                "mimic_classification": boxes.wide(self.classifier(nothing).sum()),
            }
        patches = self.cut(pictures, rois[chosen])
        found = self.describe(detector, patches)
        target = found.detach() if self.detach_target else found
        distance = 1 - F.cosine_similarity(boxes.wide(target), boxes.wide(features[chosen]))
        cosine = distance.sum() / N if self.reduction == "sum" else boxes.mean(distance, picture[chosen], N)
        entropy = F.cross_entropy(boxes.wide(self.classifier(found)), labels[chosen], reduction="none")
        classification = boxes.mean(entropy, picture[chosen], N)
        return {"mimic_cosine": self.weight * cosine, "mimic_classification": self.weight * classification}

    def draw(self, picture: Tensor, labels: Tensor, N: int, classes: int) -> Tensor:
        """Return the indices of Ω, drawn without replacement from torch's global generator."""
        positive = labels < classes
        wanted = (positive & self.foreground) | (~positive & self.background)
        order = torch.rand(len(labels), device=labels.device).argsort()
        order = order[wanted[order]]
        _, order, rank = ranked(picture[order], order, N)
        return order[rank < self.count]

    def cut(self, pictures: Tensor, rois: Tensor) -> Tensor:
        """Return the patches (R, channels, size, size): one bilinear sample at the centre of every pixel.

        A sample less than half an image pixel from the border of its box would read pixels outside the box. It is moved
        to half a pixel from the border, or to the middle of a box narrower than a pixel.
        """
        at = (torch.arange(self.size, device=rois.device) + 0.5) / self.size
        # In extents of the box, as offsets are.
        border = (0.5 / (rois[:, 3:] - rois[:, 1:3])).clamp(max=0.5).unsqueeze(2)
        moved = torch.minimum(torch.maximum(at, border), 1 - border) - at  # (R, 2, size)
        offset = torch.stack(torch.broadcast_tensors(moved[:, 0, None], moved[:, 1, :, None]), 1)
        return deform_roi_pool(pictures, rois, offset, self.size, 1.0, 1, 1.0)

    def describe(self, detector: Detector, patches: Tensor) -> Tensor:
        """Return the detector's features (R, hidden) of whole patches."""
        whole = patches.new_zeros(len(patches), 5, dtype=torch.float32)
        whole[:, 0] = torch.arange(len(patches), device=patches.device)
        whole[:, 3:] = self.size
        with statistics_kept(detector):
            _, maps = detector.maps(patches)
        return detector.describe(maps, whole)


@contextmanager
def statistics_kept(model: nn.Module | Detector) -> Iterator[None]:
    """Keep batch normalization that is not frozen from updating its running statistics."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def strip_training_only(model: Model) -> Model:
    """Remove what only training needs (feature mimicking) and return `model`.

    Its state dict then loads into a model that was built without it.
    """
    for module in model.modules():
        if isinstance(getattr(module, "mimic", None), FeatureMimic):
            setattr(module, "mimic", None)  # noqa: B010
    return model
