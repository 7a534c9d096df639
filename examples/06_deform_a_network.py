"""Make the last stages of a network deformable: nothing changes at first; offsets then learn at their own rate."""

import torch
from torch import nn

from pliant.models import ResNet
from pliant.nn import DeformConv2d, deformify, parameter_groups, undeformify

torch.manual_seed(0)
net = ResNet(18, width=16, stem="small").eval()
pictures = torch.randn(2, 3, 64, 64)
with torch.no_grad():
    before = net(pictures)[-1]
    deformify(net, ["layer3", "layer4"])
    after = net(pictures)[-1]

layers = [name for name, layer in net.named_modules() if isinstance(layer, DeformConv2d)]
print("deformable now:    ", ", ".join(layers))
print(f"largest difference: {(after - before).abs().max():.1e} of values up to {before.abs().max():.2f}")

# Stages by name, names by pattern, "last 3", or a function: all say which.
for where in ("layer4", "layer?.*.conv2", "last 3", lambda name, conv: conv.in_channels == 32):
    other = deformify(ResNet(18, width=16, stem="small"), where)
    count = sum(isinstance(layer, DeformConv2d) for layer in other.modules())
    print(f"{where if isinstance(where, str) else 'a function':<18}  {count} layers")

# One step of training moves samples; a network whose samples do not move can be folded back.
optimizer = torch.optim.SGD(parameter_groups(net.train(), lr=0.1))
net(pictures)[-1].square().mean().backward()
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
