"""Make the last stages of a network deformable. The output does not change until offsets learn, at their own rate."""

import torch
from torch import nn

from pliant.models import ResNet
from pliant.nn import DeformConv2d, deformify, parameter_groups, undeformify

torch.manual_seed(0)
net = ResNet(18, width=16, stem="small").eval()
images = torch.randn(2, 3, 64, 64)
with torch.no_grad():
    before = net(images)[-1]
    deformify(net, ["layer3", "layer4"])
    after = net(images)[-1]

layers = [name for name, layer in net.named_modules() if isinstance(layer, DeformConv2d)]
print("deformable now:    ", ", ".join(layers))
print(f"largest difference: {(after - before).abs().max():.1e} of values up to {before.abs().max():.2f}")

# Convolutions are selected by the name of a stage, by a pattern, by "last 3" or by a function.
for where in ("layer4", "layer?.*.conv2", "last 3", lambda name, conv: conv.in_channels == 32):
    other = deformify(ResNet(18, width=16, stem="small"), where)
    count = sum(isinstance(layer, DeformConv2d) for layer in other.modules())
    print(f"{where if isinstance(where, str) else 'a function':<18}  {count} layers")

# One step of training moves samples. Only a layer whose samples do not move can become a convolution again.
optimizer = torch.optim.SGD(parameter_groups(net.train(), lr=0.1))
net(images)[-1].square().mean().backward()
optimizer.step()
try:
    undeformify(net)
except ValueError as error:
    print(f"after one step:     {error}")
with torch.no_grad():
    for layer in net.modules():
        if isinstance(layer, DeformConv2d):
            nn.init.zeros_(layer.conv_offset.weight)
            nn.init.zeros_(layer.conv_offset.bias)
undeformify(net)
print("deformable in the end:", sum(isinstance(layer, DeformConv2d) for layer in net.modules()))
