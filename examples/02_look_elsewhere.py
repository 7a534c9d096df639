"""A task that needs moving samples: the input says in which direction to shift it, so no fixed kernel can do it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.nn import DeformConv2d, parameter_groups


def batch(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw smooth images with a flag channel; the target reads the image 3 pixels to the right (1) or left (−1)."""
    smooth = F.avg_pool2d(torch.randn(n, 1, 22, 22), 5, stride=1)
    flag = torch.randint(2, (n, 1, 1, 1)).float() * 2 - 1
    image = smooth[..., 3:15]
    target = torch.where(flag > 0, smooth[..., 6:18], smooth[..., 0:12])
    return torch.cat([image, flag.expand_as(image)], 1), target, flag.flatten()


def train(layer: nn.Module, steps: int = 400) -> float:
    """Return the error on new images, as a fraction of the target's variance."""
    optimizer = torch.optim.Adam(parameter_groups(layer, 0.02, 1.0))
    for _ in range(steps):
        x, target, _ = batch(16)
        optimizer.zero_grad()
        F.mse_loss(layer(x), target).backward()
        optimizer.step()
    x, target, _ = batch(256)
    with torch.no_grad():
        return float(F.mse_loss(layer(x), target) / target.var())


torch.manual_seed(0)
plain, deformable = nn.Conv2d(2, 1, 3, padding=1), DeformConv2d(2, 1, 3, padding=1, version=1)
print(f"convolution 3×3:            error {train(plain):.3f} of the target's variance")
print(f"deformable convolution 3×3: error {train(deformable):.3f}")

x, _, flag = batch(64)
offset, _ = deformable.predict(x)
for side, name in ((1, "right"), (-1, "left")):
    moved = offset[flag == side][:, 1::2].mean()
    print(f"images to shift {name + ':':7} samples moved by {moved:+.2f} pixels on average")
