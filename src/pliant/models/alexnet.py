"""AlexNet as it was in 2012, local response normalization and two convolution groups included."""

from __future__ import annotations

import math

from torch import Tensor, nn

from pliant import _check
from pliant.nn import LocalResponseNorm


def _lrn() -> LocalResponseNorm:
    """Return the paper's n = 5, k = 2, β = 0.75, and α = 1e-4 on the sum, which is 5e-4 on the mean of 5."""
    return LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, stride=2)


class AlexNet(nn.Module):
    """Classify images with five convolutions, two of them normalized, and three fully connected layers.

    conv 11×11/4, 96 → ReLU → LRN → pool · conv 5×5, 256, 2 groups → ReLU → LRN → pool · conv 3×3, 384 · conv 3×3, 384,
    2 groups · conv 3×3, 256, 2 groups → pool · 4096 · 4096 · `classes`. Pooling is 3×3 with stride 2, so windows
    overlap. The groups are the paper's two GPUs. Dropout follows the two hidden fully connected layers.

    The paper says 224×224, but its 55×55 first map needs 227 without padding; here conv1 is padded by 2, which makes 55
    of 224. 60,965,224 parameters for 1000 classes, the paper's "60 million".

    The weights of torchvision's AlexNet do not fit: that network is the later one-GPU variant (Krizhevsky 2014) with
    64, 192, 384, 256, 256 channels, without groups and without normalization.

    Args:
        classes: width of the last layer.
        channels: of the image.
        small: a variant for 64×64 images with the same eight layers, LRN and groups: conv1 is 5×5 with stride 2, the
            widths are 32, 64, 96, 96, 64, and 256 twice (368,842 parameters for 10 classes of RGB images). The paper's
            initial values, chosen for large widths, would make the signal vanish here: the weights start with variance
            2/fan-in (the last layer's with the paper's 0.01), the biases at 0.
        dropout: probability, in the two hidden fully connected layers.

    Shape:
        (N, channels, 224, 224), or (N, channels, 64, 64) if small → (N, classes), logits.

    Raises:
        ValueError: images whose last map is not 6×6 (3×3 if small), input without a batch.

    Source: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012,
    sections 3 to 5.

    >>> import torch
    >>> AlexNet(10, small=True)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 10])
    """

    def __init__(self, classes: int = 1000, *, channels: int = 3, small: bool = False, dropout: float = 0.5) -> None:
        super().__init__()
        if classes < 1 or channels < 1:
            raise ValueError(f"AlexNet: classes and channels must be at least 1, got {classes} and {channels}")
        self.side, self.last = (64, 3) if small else (224, 6)
        widths = (32, 64, 96, 96, 64) if small else (96, 256, 384, 384, 256)
        hidden = 256 if small else 4096
        kernel, stride = (5, 2) if small else (11, 4)
        self.features, self.classifier = nn.Sequential(), nn.Sequential()
        convolutions: tuple[tuple[str, nn.Module], ...] = (
            ("conv1", nn.Conv2d(channels, widths[0], kernel, stride, padding=2)),
            ("relu1", nn.ReLU(inplace=True)),
            ("norm1", _lrn()),
            ("pool1", _pool()),
            ("conv2", nn.Conv2d(widths[0], widths[1], 5, padding=2, groups=2)),
            ("relu2", nn.ReLU(inplace=True)),
            ("norm2", _lrn()),
            ("pool2", _pool()),
            ("conv3", nn.Conv2d(widths[1], widths[2], 3, padding=1)),
            ("relu3", nn.ReLU(inplace=True)),
            ("conv4", nn.Conv2d(widths[2], widths[3], 3, padding=1, groups=2)),
            ("relu4", nn.ReLU(inplace=True)),
            ("conv5", nn.Conv2d(widths[3], widths[4], 3, padding=1, groups=2)),
            ("relu5", nn.ReLU(inplace=True)),
            ("pool5", _pool()),
        )
        for name, layer in convolutions:
            self.features.add_module(name, layer)
        connected: tuple[tuple[str, nn.Module], ...] = (
            ("fc6", nn.Linear(widths[4] * self.last**2, hidden)),
            ("relu6", nn.ReLU(inplace=True)),
            ("drop6", nn.Dropout(dropout)),
            ("fc7", nn.Linear(hidden, hidden)),
            ("relu7", nn.ReLU(inplace=True)),
            ("drop7", nn.Dropout(dropout)),
            ("fc8", nn.Linear(hidden, classes)),
        )
        for name, layer in connected:
            self.classifier.add_module(name, layer)
        self.small = small
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the paper does: N(0, 0.01²), biases 1 in conv2, conv4, conv5, fc6, fc7 and 0 elsewhere."""
        for part in (self.features, self.classifier):
            for name, layer in part.named_children():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    fan_in = layer.weight[0].numel()
                    std = math.sqrt(2 / fan_in) if self.small and name != "fc8" else 0.01
                    nn.init.normal_(layer.weight, std=std)
                    one = not self.small and name in ("conv2", "conv4", "conv5", "fc6", "fc7")
                    nn.init.constant_(layer.bias, float(one))  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        _check.tensors("AlexNet", input=input)
        _check.rank("AlexNet", "input", input, "N C H W")
        H, W = input.shape[-2:]
        # Maps of much smaller images would become empty on the way.
        maps = self.features(input) if min(H, W) >= self.side // 2 else input
        if maps is input or maps.shape[-2:] != (self.last, self.last):
            raise ValueError(f"AlexNet: images must be {self.side}×{self.side}, got {int(H)}×{int(W)}; resize them")
        logits: Tensor = self.classifier(maps.flatten(1))
        return logits
