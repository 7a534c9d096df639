"""channels_last, autocast and torch.compile: their times on this machine, and how much the results change."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pliant.nn import DeformConv2d

torch.manual_seed(0)
net = nn.Sequential(DeformConv2d(32, 32, 3, padding=1), nn.ReLU(), DeformConv2d(32, 32, 3, padding=1))
for layer in (net[0], net[2]):
    nn.init.normal_(layer.conv_offset.weight, std=0.02)
images = torch.randn(2, 32, 40, 40)


def autocast(x: Tensor) -> Tensor:
    """Run in bfloat16; offsets and masks stay float32, so coordinates lose no precision."""
    with torch.autocast("cpu", torch.bfloat16):
        return net(x)


def measure(name: str, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Print the shortest time of five training steps, and the difference from plain float32."""
    times = []
    for _ in range(6):
        start = time.perf_counter()
        y = call(x)
        y.float().square().mean().backward()
        times.append(time.perf_counter() - start)
    difference = (y - reference).abs().max() / reference.abs().max()
    print(f"{name:26} {1000 * min(times[1:]):6.1f} ms   {str(y.dtype)[6:]:8}   differs by {difference:.1e}")
    return y


with torch.no_grad():
    reference = net(images)
measure("as it is", net, images)
# backend="aot_eager" traces the whole forward and backward without a C++ compiler; omit it to generate code.
measure("compiled", torch.compile(net, fullgraph=True, backend="aot_eager"), images)
net, images = net.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
y = measure("channels_last", net, images)
print(f"  the output is channels_last too: {y.is_contiguous(memory_format=torch.channels_last)}")
measure("channels_last, autocast", autocast, images)
