"""Replace a trained convolution by a deformable one: the output does not change, until training moves the samples."""

import torch
from torch import nn

from pliant.nn import DeformConv2d

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=2, dilation=2))
pictures = torch.randn(4, 3, 32, 32)
before = net(pictures)

# The same geometry, and the trained weights; only the offset branch is new, and it starts at zero.
old = net[2]
layer = DeformConv2d(16, 32, 3, stride=2, padding=2, dilation=2)
missing, _ = layer.load_state_dict(old.state_dict(), strict=False)
net[2] = layer
after = net(pictures)

print("new parameters:    ", ", ".join(missing))
print(f"largest difference: {(after - before).abs().max():.1e} of values up to {before.abs().max():.2f}")

# One step of training, and it is a different layer.
after.square().mean().backward()
torch.optim.SGD(net.parameters(), lr=0.5).step()
offset, mask = layer.predict(net[1](net[0](pictures)))
print(f"after one step:     mean |offset| {offset.abs().mean():.4f} pixels, masks {mask.min():.3f} to {mask.max():.3f}")
