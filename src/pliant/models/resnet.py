"""ResNet with deformable 3×3 convolutions in chosen stages, and loading of ImageNet weights into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant import _check
from pliant._files import load, weights
from pliant.models import bundled
from pliant.nn import DeformConv2d, SlicedConv2d

# Depth → whether its blocks are bottlenecks, and their number in conv2 to conv5.
DEPTHS = {
    10: (False, (1, 1, 1, 1)),
    18: (False, (2, 2, 2, 2)),
    26: (True, (2, 2, 2, 2)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
}
VERSIONS = {"v1": 1, "v2": 2}


class FrozenBatchNorm2d(nn.Module):
    """Normalise by constants: ``y = (x − running_mean) / √(running_var + eps) · weight + bias``.

    All four are buffers named as in `nn.BatchNorm2d`: they load from its state dict and are not trained.
    """

    _version = 1
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        state.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state, prefix, *rest)


class _Settings(NamedTuple):
    """What all blocks of a stage have in common."""

    deform: str | None
    dilation: int
    offset_groups: int
    mask_scale: float
    frozen_bn: bool
    stride_in: str

    def norm(self, channels: int) -> nn.Module:
        return FrozenBatchNorm2d(channels) if self.frozen_bn else nn.BatchNorm2d(channels)

    def conv3x3(self, C: int, O: int, stride: int = 1) -> nn.Module:
        if self.deform is None:
            return nn.Conv2d(C, O, 3, stride, padding=self.dilation, dilation=self.dilation, bias=False)
        return DeformConv2d(
            C,
            O,
            3,
            stride,
            padding=self.dilation,
            dilation=self.dilation,
            bias=False,
            version=VERSIONS[self.deform],
            offset_groups=self.offset_groups,
            mask_scale=self.mask_scale,
        )

    def shortcut(self, C: int, O: int, stride: int) -> nn.Module | None:
        if C == O and stride == 1:
            return None
        return nn.Sequential(SlicedConv2d.if_needed(C, O, 1, stride, bias=False), self.norm(O))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, both deformable in a deformable stage; the first has the stride."""

    expansion = 1

    def __init__(self, C: int, width: int, stride: int, settings: _Settings) -> None:
        super().__init__()
        self.conv1 = settings.conv3x3(C, width, stride)
        self.bn1 = settings.norm(width)
        self.conv2 = settings.conv3x3(width, width)
        self.bn2 = settings.norm(width)
        self.downsample = settings.shortcut(C, width, stride)

    def forward(self, input: Tensor) -> Tensor:
        shortcut = input if self.downsample is None else self.downsample(input)
        x = F.relu_(self.bn1(self.conv1(input)))
        return F.relu_(self.bn2(self.conv2(x)).add_(shortcut))


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 to four times the width; the 3×3 may be deformable; it or the first 1×1 has the stride."""

    expansion = 4

    def __init__(self, C: int, width: int, stride: int, settings: _Settings) -> None:
        super().__init__()
        first, second = (stride, 1) if settings.stride_in == "1x1" else (1, stride)
        self.conv1 = SlicedConv2d.if_needed(C, width, 1, first, bias=False)
        self.bn1 = settings.norm(width)
        self.conv2 = settings.conv3x3(width, width, second)
        self.bn2 = settings.norm(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = settings.norm(4 * width)
        self.downsample = settings.shortcut(C, 4 * width, stride)

    def forward(self, input: Tensor) -> Tensor:
        shortcut = input if self.downsample is None else self.downsample(input)
        x = F.relu_(self.bn1(self.conv1(input)))
        x = F.relu_(self.bn2(self.conv2(x)))
        return F.relu_(self.bn3(self.conv3(x)).add_(shortcut))


class ResNet(nn.Module):
    """Compute four maps of images, conv2 to conv5, each half the size of the one before.

    Parameters have the names of torchvision and timm (`conv1`, `bn1`, `layer1.0.conv1` …); deformable layers add
    `.conv_offset`. Offset branches start at zero, so that version 1, and version 2 with ``mask_scale=2``, start with
    the output of the plain network with the same weights.

    Args:
        depth: 10, 18 (two 3×3 convolutions per block), 26, 50 or 101 (bottlenecks).
        deform: None, "v1" or "v2" for each of conv2 to conv5: the version of the 3×3 convolutions in its blocks.
            ``(None, None, None, "v1")`` is DCNv1's default, ``(None, "v2", "v2", "v2")`` is DCNv2's.
        offset_groups: of the deformable layers.
        mask_scale: of the deformable layers of version 2; 1.0 is the paper's text.
        width: channels of the stem and of the 3×3 convolutions of conv2; each later stage has twice as many.
        in_channels: of the image.
        stem: "imagenet" (7×7 with stride 2, 3×3 pooling with stride 2) or "small" (3×3 with stride 2: every map is
            twice as large, for images of about a hundred pixels).
        frozen_bn: normalise by constants: γ, β, mean and variance are not trained, as in the papers' detectors.
        frozen_stages: how many of stem, conv2, conv3 … are not trained; needs `frozen_bn`. The authors freeze 2.
        stride: of conv5 with the stem "imagenet": 32, or 16: then conv5 keeps conv4's size and has dilation 2.
        dilations: of the 3×3 convolutions of each stage; None is 1, and 2 in conv5 at stride 16.
        stride_in: which convolution of a bottleneck has the stride: "3x3" (torchvision, timm) or "1x1", the first one
            (Caffe networks, such as MSRA's weights and many of detectron2's).

    Shape:
        (N, in_channels, H, W) → four maps (N, channels[i], ⌈H / strides[i]⌉, ⌈W / strides[i]⌉).

    Attributes:
        channels: of the four maps.
        strides: of the four maps, in pixels of the image.

    Raises:
        ValueError: an unknown depth, version, stem, stride or `stride_in`; not one value per stage; frozen stages
            without frozen normalization; input of another shape.

    Source: He et al., CVPR 2016; Dai et al., ICCV 2017, section 3; Zhu et al., CVPR 2019, section 3.1.

    >>> net = ResNet(18, deform=(None, None, None, "v2"), width=8, stem="small")
    >>> [tuple(x.shape) for x in net(torch.zeros(1, 3, 64, 64))]
    [(1, 8, 32, 32), (1, 16, 16, 16), (1, 32, 8, 8), (1, 64, 4, 4)]
    """

    def __init__(
        self,
        depth: int = 50,
        *,
        deform: Sequence[str | None] = (None, None, None, None),
        offset_groups: int = 1,
        mask_scale: float = 2.0,
        width: int = 64,
        in_channels: int = 3,
        stem: str = "imagenet",
        frozen_bn: bool = False,
        frozen_stages: int = 0,
        stride: int = 32,
        dilations: Sequence[int] | None = None,
        stride_in: str = "3x3",
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"ResNet: depth must be one of {', '.join(map(str, DEPTHS))}, got {depth!r}")
        stages = deform if isinstance(deform, Sequence) else ()
        if len(stages) != 4 or any(entry is not None and entry not in VERSIONS for entry in stages):
            raise ValueError(f"ResNet: deform must hold None, 'v1' or 'v2' for each of conv2 to conv5, got {deform!r}")
        if stem not in ("imagenet", "small"):
            raise ValueError(f"ResNet: stem must be 'imagenet' or 'small', got {stem!r}")
        if stride not in (32, 16):
            raise ValueError(f"ResNet: stride must be 32 or 16, got {stride!r}")
        if stride_in not in ("3x3", "1x1") or (stride_in == "1x1" and not DEPTHS[depth][0]):
            raise ValueError(
                f"ResNet: stride_in must be '3x3', or '1x1' with bottlenecks (depth 26 or more), got {stride_in!r}"
            )
        if width < 1 or in_channels < 1:
            raise ValueError(f"ResNet: width and in_channels must be at least 1, got {width} and {in_channels}")
        dilations = (1, 1, 1, 1 if stride == 32 else 2) if dilations is None else tuple(dilations)
        if len(dilations) != 4 or min(dilations) < 1:
            raise ValueError(f"ResNet: dilations must be four numbers of at least 1, got {dilations!r}")
        if not 0 <= frozen_stages <= 5 or (frozen_stages and not frozen_bn):
            raise ValueError(
                f"ResNet: frozen_stages must be 0 to 5 and needs frozen_bn=True, got {frozen_stages} and {frozen_bn}"
            )
        self.depth, self.stem, self.in_channels, self.deform = depth, stem, in_channels, tuple(deform)
        kernel = 7 if stem == "imagenet" else 3
        self.conv1 = nn.Conv2d(in_channels, width, kernel, 2, padding=kernel // 2, bias=False)
        self.bn1 = FrozenBatchNorm2d(width) if frozen_bn else nn.BatchNorm2d(width)
        bottleneck, counts = DEPTHS[depth]
        block: type[BasicBlock] | type[Bottleneck] = Bottleneck if bottleneck else BasicBlock
        steps = (1, 2, 2, 2 if stride == 32 else 1)
        C, reached = width, 4 if stem == "imagenet" else 2
        channels, strides = [], []
        for i, (count, step, dilation, entry) in enumerate(zip(counts, steps, dilations, deform, strict=True)):
            settings = _Settings(entry, dilation, offset_groups, mask_scale, frozen_bn, stride_in)
            blocks = []
            for j in range(count):
                blocks.append(block(C, width << i, step if j == 0 else 1, settings))
                C = (width << i) * block.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            reached *= step
            channels.append(C)
            strides.append(reached)
        self.channels, self.strides = tuple(channels), tuple(strides)
        self.reset_parameters()
        for part in [self.conv1, *self.stages()][:frozen_stages]:
            part.requires_grad_(False)

    def stages(self) -> list[nn.Module]:
        """Return the stages conv2 to conv5."""
        return [self.get_submodule(f"layer{i}") for i in (1, 2, 3, 4)]

    def reset_parameters(self) -> None:
        """Initialise convolutions with variance 2/fan-out, normalization to the identity, offset branches to zero."""
        branches = {layer.conv_offset for layer in self.modules() if isinstance(layer, DeformConv2d)}
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | DeformConv2d) and layer not in branches:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        for branch in branches:
            nn.init.zeros_(branch.weight)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        _check.tensors("ResNet", input=input)
        _check.rank("ResNet", "input", input, "N C H W")
        if input.shape[1] != self.in_channels:
            got = tuple(int(n) for n in input.shape)
            raise ValueError(f"ResNet: input must have {self.in_channels} channels, got shape {got}")
        x = F.relu_(self.bn1(self.conv1(input)))
        if self.stem == "imagenet":
            x = F.max_pool2d(x, 3, 2, padding=1)
        maps = []
        for stage in self.stages():
            x = stage(x)
            maps.append(x)
        return tuple(maps)


class Loaded(NamedTuple):
    """What :func:`load_imagenet` did: how many `tensors` it loaded, which names of the file it left out (`dropped`) and
    which names of the network it did not change (`untouched`).
    """

    tensors: int
    dropped: tuple[str, ...]
    untouched: tuple[str, ...]


def load_imagenet(model: nn.Module, path: str | Path) -> Loaded:
    """Load the weights of a classifier or of a detector's backbone into a ResNet or the backbone of a detector.

    The last layer (`fc`) of a classifier is left out, and everything but the backbone of a detector. Offset branches
    that are not in the file do not change; they start at zero. All other names and shapes must be equal.

    Args:
        model: a :class:`ResNet`, or a network with one as its `backbone`.
        path: a state dict under torchvision's and timm's names: `.safetensors`, which needs the package of that name,
            or a file of `torch.save`, read with ``weights_only=True``. It may lie inside a dictionary, and its names
            may start with "module.". A checkpoint of a detector is read too, and so is the name of one that comes with
            the package (`pliant.models.bundled.NAMES`), unless a file has that name.

    Returns:
        A report: how many tensors were loaded, and the names left out and untouched.

    Raises:
        TypeError: `model` is not a ResNet and has none as its backbone.
        ValueError: the file holds no state dict, or one that does not fit; the message names the tensors.
        OSError: there is no such file.
        ImportError: a `.safetensors` file without the package.
    """
    net = model if isinstance(model, ResNet) else getattr(model, "backbone", None)
    if not isinstance(net, ResNet):
        raise TypeError(
            f"load_imagenet: model must be a ResNet or have one as its backbone, got {type(model).__name__}"
        )
    path = Path(path)
    state = {name.removeprefix("module."): tensor for name, tensor in _read(path).items()}
    backbone = "backbone."
    if any(name.startswith(backbone) for name in state):
        state = {name.removeprefix(backbone): state[name] for name in state if name.startswith(backbone)}
    wanted = net.state_dict()
    dropped = tuple(name for name in state if name.startswith("fc.") or name.endswith(".num_batches_tracked"))
    kept = {name: tensor for name, tensor in state.items() if name not in dropped}
    untouched = tuple(
        name
        for name in wanted
        if name not in kept and (".conv_offset." in name or name.endswith("num_batches_tracked"))
    )
    missing = [name for name in wanted if name not in kept and name not in untouched]
    unexpected = [name for name in kept if name not in wanted]
    other = [name for name in kept if name in wanted and kept[name].shape != wanted[name].shape]
    if missing or unexpected or other:
        faults = []
        for names, what in ((missing, "lacks"), (unexpected, "has, unexpectedly,"), (other, "has in another shape")):
            if names:
                faults.append(f"{what} {len(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})")
        raise ValueError(
            f"load_imagenet: {path} does not fit a ResNet-{net.depth} (stem={net.stem!r}, {net.channels[0]} channels "
            f"after conv2): of its {len(wanted)} tensors it {'; it '.join(faults)}; take the file of this network"
        )
    net.load_state_dict(kept, strict=False)
    return Loaded(len(kept), dropped, untouched)


def _read(path: Path) -> dict[str, Tensor]:
    if str(path) in bundled.NAMES and not path.exists():
        return dict(bundled.read(str(path))["model"])
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(
                f"load_imagenet: {path} needs the package safetensors: pip install safetensors"
            ) from error
        try:
            return dict(load_file(path))
        except OSError:
            raise
        except Exception as error:  # the package's own error class is not public
            raise ValueError(f"load_imagenet: {path} is no safetensors file: {error}") from error
    try:
        state = load(path)
    except ValueError as error:
        raise ValueError(f"load_imagenet: {error}") from error
    named = {name: tensor for name, tensor in weights(state).items() if isinstance(tensor, Tensor)}
    if not named:
        raise ValueError(f"load_imagenet: {path} holds no state dict, a dictionary from names to tensors")
    return named
