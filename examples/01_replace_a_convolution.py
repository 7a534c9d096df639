"""Replace a trained convolution by a deformable one: the output does not change until training moves the samples."""

import torch
from torch import nn

from pliant.nn import DeformConv2d

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=2, dilation=2))
images = torch.randn(4, 3, 32, 32)
before = net(images)

# The same stride, padding, dilation and trained weights. Only the offset branch is new, and it starts at zero.
old = net[2]
layer = DeformConv2d(16, 32, 3, stride=2, padding=2, dilation=2)
missing, _ = layer.load_state_dict(old.state_dict(), strict=False)
net[2] = layer
after = net(images)

print("new parameters:    ", ", ".join(missing))
print(f"largest difference: {(after - before).abs().max():.1e} of values up to {before.abs().max():.2f}")

# After one step of training the samples move.
after.square().mean().backward()
torch.optim.SGD(net.parameters(), lr=0.5).step()
offset, mask = layer.predict(net[1](net[0](images)))
print(f"after one step:     mean |offset| {offset.abs().mean():.4f} pixels, masks {mask.min():.3f} to {mask.max():.3f}")
