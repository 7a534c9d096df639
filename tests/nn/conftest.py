"""Small networks with the shape and the names of well-known ones, with weights that are not those they start with."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    def __init__(self, C: int, O: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(C, O, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(O)
        self.conv2 = nn.Conv2d(O, O, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(O)
        self.downsample = None
        if stride > 1 or C != O:
            self.downsample = nn.Sequential(nn.Conv2d(C, O, 1, stride, bias=False), nn.BatchNorm2d(O))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    """conv1, layer1 … layer4 of basic blocks, as in torchvision and timm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(8, 8, 1))
        self.layer2 = nn.Sequential(BasicBlock(8, 12, 2))
        self.layer3 = nn.Sequential(BasicBlock(12, 16, 2), BasicBlock(16, 16, 1))
        self.layer4 = nn.Sequential(BasicBlock(16, 24, 2), BasicBlock(24, 24, 1))
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        return self.fc(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))


class ConvNeXtBlock(nn.Module):
    """A depthwise 7×7 convolution, then two linear layers on channels last."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(C, C, 7, padding=3, groups=C)
        self.norm = nn.LayerNorm(C)
        self.mlp = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))
        self.gamma = nn.Parameter(torch.full((C,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_dw(x).permute(0, 2, 3, 1)
        return x + (self.mlp(self.norm(y)) * self.gamma).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """stem, stages.0 … stages.2, as in timm; the 2×2 convolutions between stages are their downsample."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.stages = nn.ModuleList()
        for C, O in ((8, 8), (8, 12), (12, 16)):
            downsample = nn.Conv2d(C, O, 2, 2) if C != O else nn.Identity()
            blocks = nn.Sequential(ConvNeXtBlock(O), ConvNeXtBlock(O))
            self.stages.append(nn.Sequential(OrderedDict(downsample=downsample, blocks=blocks)))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


class ConvNormAct(nn.Sequential):
    def __init__(self, C: int, O: int, k: int, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(C, O, k, stride, k // 2, groups=groups, bias=False)
        super().__init__(OrderedDict(conv=conv, bn=nn.BatchNorm2d(O), act=nn.ReLU()))


class RegNetBlock(nn.Module):
    """1×1, 3×3 in groups of 8 channels, 1×1, beside a shortcut."""

    def __init__(self, C: int, O: int) -> None:
        super().__init__()
        stride = 2 if C != O else 1
        self.conv1 = ConvNormAct(C, O, 1)
        self.conv2 = ConvNormAct(O, O, 3, stride, O // 8)
        self.conv3 = nn.Conv2d(O, O, 1)
        self.downsample = nn.Conv2d(C, O, 1, stride) if C != O else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv3(self.conv2(self.conv1(x))) + self.downsample(x)).relu()


class RegNet(nn.Module):
    """stem, s1 … s3, as in timm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, 8, 3, 2)
        self.s1 = nn.Sequential(OrderedDict(b1=RegNetBlock(8, 16)))
        self.s2 = nn.Sequential(OrderedDict(b1=RegNetBlock(16, 24), b2=RegNetBlock(24, 24)))
        self.s3 = nn.Sequential(OrderedDict(b1=RegNetBlock(24, 32), b2=RegNetBlock(32, 32)))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.s3(self.s2(self.s1(self.stem(x)))).mean((2, 3)))


class InvertedResidual(nn.Module):
    """1×1 up, depthwise k×k, squeeze and excite, 1×1 down."""

    def __init__(self, C: int, O: int, k: int, stride: int) -> None:
        super().__init__()
        wide = 3 * C
        self.conv_pw = ConvNormAct(C, wide, 1)
        self.conv_dw = nn.Conv2d(wide, wide, k, stride, k // 2, groups=wide, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.se = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, 4, 1), nn.SiLU(), nn.Conv2d(4, wide, 1))
        self.conv_pwl = nn.Conv2d(wide, O, 1, bias=False)
        self.skip = C == O and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.bn2(self.conv_dw(self.conv_pw(x))))
        y = self.conv_pwl(y * self.se(y).sigmoid())
        return x + y if self.skip else y


class EfficientNet(nn.Module):
    """conv_stem and blocks.0 … blocks.2 with kernels of 3 and 5, as in timm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.blocks = nn.Sequential(
            nn.Sequential(InvertedResidual(8, 8, 3, 1)),
            nn.Sequential(InvertedResidual(8, 12, 3, 2), InvertedResidual(12, 12, 3, 1)),
            nn.Sequential(InvertedResidual(12, 16, 5, 2), InvertedResidual(16, 16, 5, 1)),
        )
        self.classifier = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.conv_stem(x)).mean((2, 3)))


class UNet(nn.Module):
    """down, up and skips between them; dilation in the middle, transposed convolutions on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(8, 12, 3, padding="same"), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(12, 16, 3, padding=2, dilation=2), nn.ReLU())
        self.grow2 = nn.ConvTranspose2d(16, 12, 2, 2)
        self.up2 = nn.Sequential(nn.Conv2d(24, 12, 3, padding=1), nn.ReLU())
        self.grow1 = nn.ConvTranspose2d(12, 8, 2, 2)
        self.up1 = nn.Sequential(nn.Conv2d(16, 8, (3, 5), padding=(1, 2)), nn.ReLU())
        self.out = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        y = self.up2(torch.cat((two, self.grow2(self.middle(F.max_pool2d(two, 2)))), 1))
        return self.out(self.up1(torch.cat((one, self.grow1(y)), 1)))


NETWORKS = {kind.__name__: kind for kind in (ResNet, ConvNeXt, RegNet, EfficientNet, UNet)}


@pytest.fixture
def network() -> Callable[[str], nn.Module]:
    """Return a function that makes a network by its name: float64, three steps of SGD old, in evaluation mode."""

    def make(name: str) -> nn.Module:
        torch.manual_seed(0)
        net = NETWORKS[name]().double()
        x, target = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.randn((), dtype=torch.float64)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            F.mse_loss(net(x), target.expand(net(x).shape)).backward()
            optimizer.step()
        return net.eval()

    return make
