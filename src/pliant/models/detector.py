"""What all detectors share: images of any sizes in, normalised and padded to a batch, and true boxes checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.models.boxes import Truth
from pliant.models.resnet import ResNet

Target = dict[str, Tensor]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Detector(nn.Module):
    """A backbone whose maps become boxes; the subclass says how.

    In training mode ``model(images, targets)`` returns a dictionary of losses, to be summed; in evaluation mode
    ``model(images)`` returns for each image a dictionary of `boxes` (n, 4), `scores` (n,) and `labels` (n,), best
    first, in pixels of the image. Images may differ in size: they are normalised and padded with 0 to a common multiple
    of the largest stride.

    Args:
        backbone: a ResNet.
        classes: C, of the foreground; labels are 0 to C − 1.
        mean: of images, per channel.
        std: of images, per channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: ResNet, classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        name = type(self).__name__
        if not isinstance(backbone, ResNet):
            raise TypeError(f"{name}: backbone must be a pliant.models.ResNet, got {type(backbone).__name__}")
        if classes < 1:
            raise ValueError(f"{name}: classes must be at least 1, got {classes}")
        if len(mean) != backbone.in_channels or len(std) != backbone.in_channels:
            raise ValueError(
                f"{name}: mean and std must have a value for each of the {backbone.in_channels} channels of images, "
                f"got {tuple(mean)} and {tuple(std)}"
            )
        self.backbone, self.classes = backbone, classes
        self.register_buffer("mean", torch.tensor(tuple(mean)).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(tuple(std)).reshape(-1, 1, 1), persistent=False)

    def batch(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return normalised images padded to one size (N, channels, H, W), and their own sizes (N, 2), width first."""
        name, C = type(self).__name__, self.backbone.in_channels
        if len(images) == 0:
            raise ValueError(f"{name}: images must hold at least one image")
        for i, image in enumerate(images):
            if not isinstance(image, Tensor) or not image.is_floating_point():
                kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
                raise TypeError(
                    f"{name}: images[{i}] must be a floating-point tensor with values in 0 to 1, got {kind}"
                )
            if image.dim() != 3 or image.shape[0] != C or 0 in image.shape:
                got = tuple(int(n) for n in image.shape)
                raise ValueError(f"{name}: images[{i}] must have shape ({C}, H, W), got {got}")
        stride = max(self.backbone.strides)
        # At least two cells each way: batch normalization in training needs more than one value per channel.
        H, W = (max(2, -(-max(image.shape[d] for image in images) // stride)) * stride for d in (1, 2))
        sizes = self.mean.new_tensor([(image.shape[2], image.shape[1]) for image in images], dtype=torch.float32)
        if all(image.shape[1:] == (H, W) for image in images):
            padded = (torch.stack(list(images)).to(self.mean.dtype) - self.mean) / self.std
        else:
            normal = [(image.to(self.mean.dtype) - self.mean) / self.std for image in images]
            padded = torch.stack([F.pad(x, (0, W - x.shape[2], 0, H - x.shape[1])) for x in normal])
        # Convolutions and RoI pooling are fastest in this memory format, and all maps that follow keep it.
        return padded.contiguous(memory_format=torch.channels_last), sizes

    def truth(self, targets: Sequence[Target] | None, N: int) -> Truth:
        """Check the targets of a batch and return them padded."""
        name = type(self).__name__
        if targets is None or len(targets) != N:
            got = "none" if targets is None else len(targets)
            raise ValueError(f"{name}: in training every image needs a target, got {got} for {N}; or call eval() first")
        for i, target in enumerate(targets):
            if not isinstance(target, Mapping):
                raise TypeError(f"{name}: targets[{i}] must be a dictionary of tensors, got {type(target).__name__}")
            found, labels, ignore = target.get("boxes"), target.get("labels"), target.get("ignore")
            if not isinstance(found, Tensor) or not isinstance(labels, Tensor) or not isinstance(ignore, Tensor | None):
                kinds = ", ".join(f"{key} {type(value).__name__}" for key, value in target.items())
                raise TypeError(
                    f"{name}: targets[{i}] must have tensors boxes, labels and optionally ignore, got {kinds}"
                )
            n = labels.numel()
            if found.shape != (n, 4) or labels.dim() != 1 or (ignore is not None and ignore.shape != (n,)):
                keys = [key for key in ("boxes", "labels", "ignore") if target.get(key) is not None]
                shapes = ", ".join(f"{key} {tuple(target[key].shape)}" for key in keys)
                raise ValueError(f"{name}: targets[{i}] must have boxes (n, 4), labels (n,), ignore (n,), got {shapes}")
            if n and labels.is_floating_point():
                raise TypeError(f"{name}: targets[{i}] must have integer labels, got {labels.dtype}")
            if n and not found.isfinite().all():
                raise ValueError(f"{name}: targets[{i}] has boxes with NaN or infinite coordinates")
            if n and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
                extent = f"{int(labels.min())} to {int(labels.max())}"
                raise ValueError(f"{name}: targets[{i}] has labels {extent}; they must be 0 to {self.classes - 1}")
        return Truth.pad(targets, self.mean.device)
