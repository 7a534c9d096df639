"""Whole networks, forward: a ResNet with modulated layers in conv3 to conv5 beside the same with plain convolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from measuring import Call, Problem, Setting
from pliant.models import ResNet
from pliant.nn import DeformConv2d
from pliant.testing import NetworkCase

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def problem(case: NetworkCase, setting: Setting) -> Problem:
    """Return a problem: forward on the CPU in float32, whatever the setting; there are no peers."""
    image = torch.randn(1, 3, *case.size, generator=torch.Generator().manual_seed(0))
    contestants = []
    for layout, form in LAYOUTS.items():
        for kind, version in (("plain", None), ("pliant", "v2")):
            net, x = _network(case.depth, version), image.contiguous(memory_format=form)
            run = _call(net.to(memory_format=form), x)  # type: ignore[call-overload]
            contestants.append(Call(f"{kind} {layout}", run, checked=version is not None))
    layers = sum(isinstance(module, DeformConv2d) for module in _network(case.depth, "v2").modules())
    shape = f"ResNet-{case.depth}, {layers} modulated layers, {case.size[0]}×{case.size[1]}"

    def exact() -> tuple[Tensor, ...]:
        return _call(_network(case.depth, "v2").double(), image.double())()

    return Problem(case.name, shape, contestants, {"plain nchw": 1.0}, exact)


def _network(depth: int, version: str | None) -> nn.Module:
    """Return the same network at every call; its offsets are a few pixels, not the zeros that training begins with."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = ResNet(depth, deform=(None, version, version, version)).eval()
        for module in net.modules():
            if isinstance(module, DeformConv2d):
                nn.init.normal_(module.conv_offset.weight, std=1e-3)
                nn.init.normal_(module.conv_offset.bias, std=2.0)
    return net


def _call(net: nn.Module, image: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    def run() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (net(image)[-1],)

    return run
