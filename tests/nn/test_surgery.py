from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from pliant.nn import (
    DeformConv1d,
    DeformConv2d,
    DeformConv3d,
    DeformConvTranspose2d,
    OffsetStatistics,
    deformify,
    parameter_groups,
    undeformify,
)
from pliant.testing import error

Network = Callable[[str], nn.Module]


def _deformable(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, DeformConv2d | DeformConvTranspose2d)]


CHOICES: dict[str, tuple[str, Any, list[str]]] = {
    "a stage": ("ResNet", "layer4", [f"layer4.{i}.conv{j}" for i in (0, 1) for j in (1, 2)]),
    "stages": (
        "ResNet",
        ("layer2", "layer4.1"),
        ["layer2.0.conv1", "layer2.0.conv2", "layer4.1.conv1", "layer4.1.conv2"],
    ),
    "one layer": ("ResNet", "layer3.1.conv2", ["layer3.1.conv2"]),
    "a pattern": ("ResNet", "layer[34].*.conv2", [f"layer{s}.{i}.conv2" for s in (3, 4) for i in (0, 1)]),
    "a pattern beside 1×1": ("ResNet", "layer2.*", ["layer2.0.conv1", "layer2.0.conv2"]),
    "the last": ("ResNet", "last 3", ["layer4.0.conv2", "layer4.1.conv1", "layer4.1.conv2"]),
    "a stem": ("ResNet", "conv1", ["conv1"]),
    "a function": (
        "ResNet",
        lambda name, conv: conv.in_channels == 16,
        ["layer3.0.conv2", "layer3.1.conv1", "layer3.1.conv2", "layer4.0.conv1"],
    ),
    "depthwise 7×7": ("ConvNeXt", "last 2", ["stages.2.blocks.0.conv_dw", "stages.2.blocks.1.conv_dw"]),
    "2×2": ("ConvNeXt", "stages.*.downsample", ["stages.1.downsample", "stages.2.downsample"]),
    "grouped": ("RegNet", ["s2", "s3"], [f"{s}.{b}.conv2.conv" for s in ("s2", "s3") for b in ("b1", "b2")]),
    "depthwise": (
        "EfficientNet",
        "blocks.*.conv_dw",
        [f"blocks.{i}.{j}.conv_dw" for i, j in ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1))],
    ),
    "a last and a stage": ("EfficientNet", ("last 1", "blocks.0"), ["blocks.0.0.conv_dw", "blocks.2.1.conv_dw"]),
    "all of a U-Net": ("UNet", "*", ["down1.0", "down2.0", "middle.0", "grow2", "up2.0", "grow1", "up1.0"]),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("choice", CHOICES)
def test_chosen_layers_are_replaced_and_the_output_stays(choice: str, version: int, network: Network) -> None:
    name, where, expected = CHOICES[choice]
    net = network(name)
    single = copy.deepcopy(net).float()
    x = torch.randn(2, 3, 32, 40, dtype=torch.float64)
    before, before_single = net(x), single(x.float())
    weights = dict(net.named_parameters())

    assert deformify(net, where, version=version) is net
    assert _deformable(net) == expected
    after = dict(net.named_parameters())
    assert all(after[key] is weight for key, weight in weights.items())
    assert sorted(after.keys() - weights.keys()) == sorted(
        f"{k}.conv_offset.{p}" for k in expected for p in ("weight", "bias")
    )
    assert error(net(x), before) <= 1e-12
    assert error(deformify(single, where, version=version)(x.float()), before_single) <= 1e-5

    assert undeformify(net) is net
    assert _deformable(net) == []
    assert list(dict(net.named_parameters())) == list(weights)
    assert all(parameter is weights[key] for key, parameter in net.named_parameters())
    assert error(net(x), before) <= 1e-12


def test_timm_where_it_imports() -> None:
    try:
        import timm
    except Exception as reason:
        pytest.skip(f"timm does not import here: {reason}")
    for name in ("resnet18", "convnext_atto", "regnety_002", "efficientnet_b0"):
        net = timm.create_model(name, pretrained=False).eval().double()
        x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
        before = net(x)
        assert error(deformify(net, "last 3")(x), before) <= 1e-12
        assert len(_deformable(net)) == 3


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "crooked": {"kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 1), "dilation": (2, 1)},
    "one row": {"kernel_size": (1, 5), "padding": (0, 2)},
    "multiplier": {"kernel_size": 3, "groups": 8, "padding": 1},
    "groups": {"kernel_size": 3, "groups": 2, "bias": False},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "same": {"kernel_size": (4, 3), "padding": "same", "dilation": (1, 2)},
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("geometry", CONVOLUTIONS)
def test_every_geometry_there_and_back(geometry: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, **CONVOLUTIONS[geometry], dtype=torch.float64)
    x = torch.randn(2, 8, 12, 11, dtype=torch.float64)
    layer = deformify(conv, "*", offset_groups=4, version=1)
    assert isinstance(layer, DeformConv2d)
    assert (layer.version, layer.offset_groups) == (1, 4)
    assert error(layer(x), conv(x)) <= 1e-12
    back = undeformify(layer)
    assert type(back) is nn.Conv2d
    assert back.weight is conv.weight
    assert torch.equal(back(x), conv(x))


def test_mask_scale_one_starts_at_half_and_is_folded_into_the_weight() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=1, bias=False, dtype=torch.float64)
    x = torch.randn(1, 8, 9, 9, dtype=torch.float64)
    layer = deformify(conv, lambda name, conv: True, mask_scale=1.0)
    assert torch.equal(2 * layer(x), deformify(conv, "*")(x))
    back = undeformify(layer)
    assert torch.equal(2 * back.weight, conv.weight)
    assert torch.equal(layer.weight, conv.weight)


def test_masks_that_do_not_depend_on_the_input_are_folded() -> None:
    torch.manual_seed(0)
    layer = DeformConv2d(12, 10, (3, 2), padding=1, groups=2, offset_groups=3, mask_scale=1.5, dtype=torch.float64)
    with torch.no_grad():
        layer.conv_offset.bias[2 * 3 * 6 :].normal_()
    x = torch.randn(2, 12, 9, 7, dtype=torch.float64)
    conv = undeformify(layer)
    assert error(conv(x), layer(x)) <= 1e-12
    assert conv.weight is not layer.weight
    assert conv.bias is layer.bias
    layer.weight.requires_grad_(False)
    assert not undeformify(layer).weight.requires_grad


def test_clamped_layers_fold_too() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=2, dilation=2, dtype=torch.float64)
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    layer = deformify(conv, "*", boundary="clamp")
    assert layer.boundary == "clamp"
    assert error(layer(x), conv(x)) <= 1e-12
    assert torch.equal(undeformify(layer)(x), conv(x))


class Shared(nn.Module):
    """One head on every level, as in RetinaNet, and two convolutions that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(4, 4, 3, padding=1)
        self.levels = nn.ModuleList([nn.Sequential(self.head, nn.ReLU()) for _ in range(3)])
        self.tied = nn.Conv2d(4, 4, 3, padding=1)
        self.tied.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        return sum((level(x) for level in self.levels), self.tied(x))


@pytest.mark.parametrize("where", ["head", "levels.1", "last 2", lambda name, conv: name == "levels.2.0"])
def test_a_shared_convolution_stays_shared(where: Any) -> None:
    net = Shared()
    x = torch.randn(1, 4, 6, 6)
    before = net(x)
    deformify(net, where)
    assert isinstance(net.head, DeformConv2d)
    assert all(level[0] is net.head for level in net.levels)
    assert net.tied.weight is net.head.weight
    assert error(net(x), before) <= 1e-5
    undeformify(net, where)
    assert type(net.head) is nn.Conv2d
    assert all(level[0] is net.head for level in net.levels)
    assert len(list(net.parameters())) == 3


def test_layers_keep_mode_dtype_device_and_frozen_weights() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)).bfloat16()
    net[0].eval()
    net[0].weight.requires_grad_(False)
    deformify(net, "*")
    assert not net[0].training and not net[0].conv_offset.training and net[1].training
    assert not net[0].weight.requires_grad and net[0].bias.requires_grad and net[0].conv_offset.weight.requires_grad
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    meta = deformify(nn.Sequential(nn.Conv2d(4, 4, 3, device="meta")), "0")
    assert {p.device.type for p in meta.parameters()} == {"meta"}


def test_draws_no_random_number() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    deformify(net, "*")
    assert torch.equal(torch.rand(1), expected)


def test_what_is_deformable_already_is_left_alone(network: Network) -> None:
    net = deformify(network("ResNet"), "layer4")
    first = {name: net.get_submodule(name) for name in _deformable(net)}
    deformify(net, "*")
    assert all(net.get_submodule(name) is layer for name, layer in first.items())
    assert not any("conv_offset" in name for name in _deformable(net))
    with pytest.raises(ValueError, match="the model has no convolutions with a kernel of more than one tap"):
        deformify(net, "layer4")


def test_trains_and_is_watched(network: Network) -> None:
    net = deformify(network("UNet").float(), "last 2").train()
    assert [group["lr"] for group in parameter_groups(net, 0.1)] == [0.1, pytest.approx(0.01)]
    optimizer = torch.optim.SGD(parameter_groups(net, 0.1, momentum=0.9))
    x = torch.randn(2, 3, 16, 16)
    target = x.roll(1, -1).mean(1, keepdim=True).expand(-1, 5, -1, -1)
    losses = []
    with OffsetStatistics(net, every=1) as statistics:
        for _ in range(20):
            optimizer.zero_grad()
            loss = F.mse_loss(net(x), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert sorted(statistics.report()) == ["grow1", "up1.0"]
    assert all(numbers["mean"] > 0 for numbers in statistics.report().values())
    with pytest.raises(
        ValueError, match=r"^undeformify: layer 'grow1' moves its samples, no plain convolution equals it$"
    ):
        undeformify(net)


def test_works_on_traced_modules() -> None:
    # By torch.fx itself the surgery is not traced, but a graph may hold what it replaces.
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    x = torch.randn(1, 3, 6, 6)
    graph = torch.fx.symbolic_trace(net)
    deformify(graph, "last 1")
    assert _deformable(graph) == ["0"]
    assert error(graph(x), net(x)) <= 1e-5


class OwnForward(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (1, 1, 1, 1)))


class OnlyNamed(nn.Conv2d):
    """A subclass that does what its parent does."""


def _weight_norm(conv: nn.Conv2d) -> nn.Conv2d:
    return parametrizations.weight_norm(conv)


def _hooked(conv: nn.Conv2d) -> nn.Conv2d:
    conv.register_forward_hook(lambda *_: None)
    return conv


def _symmetric_bias(conv: nn.Conv2d) -> nn.Conv2d:
    parametrize.register_parametrization(conv, "bias", nn.Identity())
    return conv


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


COMPUTED = "computes its weight or bias (weight norm, pruning, a parametrization); make them plain parameters first"
OBSTACLES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "reflect": (
        lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        "has padding_mode='reflect', but a deformable layer pads only with zeros",
    ),
    "circular": (
        lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        "has padding_mode='circular', but a deformable layer pads only with zeros",
    ),
    "own forward": (
        lambda: OwnForward(4, 4, 3),
        "is a OwnForward with a forward of its own, which a deformable layer would not follow",
    ),
    "weight norm": (lambda: _weight_norm(nn.Conv2d(4, 4, 3)), COMPUTED),
    "pruned": (lambda: prune.l1_unstructured(nn.Conv2d(4, 4, 3), "weight", 0.5), COMPUTED),
    "parametrized": (lambda: _symmetric_bias(nn.Conv2d(4, 4, 3)), COMPUTED),
    "spectral norm": (lambda: nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)), COMPUTED),
    "lazy": (lambda: nn.LazyConv2d(4, 3), "is lazy and has no weight yet; run the model once first"),
    "hooks": (lambda: _hooked(nn.Conv2d(4, 4, 3)), "has hooks, which would be lost; remove them first"),
    "complex": (
        lambda: nn.Conv2d(4, 4, 3, dtype=torch.complex64),
        "computes in complex64, which deformable convolution does not support",
    ),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_cannot_be_replaced_is_named_and_nothing_changes(obstacle: str) -> None:
    make, sentence = OBSTACLES[obstacle]
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Sequential(nn.ReLU(), make()), nn.Conv2d(4, 4, 3))
    before = dict(net.named_modules())
    with pytest.raises(ValueError, match=f"^deformify: layer '1.1' {re.escape(sentence)}$"):
        deformify(net, "*")
    assert dict(net.named_modules()) == before
    assert _deformable(deformify(net, ["0", "2"])) == ["0", "2"]
    with pytest.raises(ValueError, match="layer \\(the model itself\\)"):
        deformify(make(), "*")


def test_a_subclass_without_a_forward_of_its_own_is_replaced() -> None:
    assert _deformable(deformify(nn.Sequential(OnlyNamed(4, 4, 3)), "0")) == ["0"]


WRONG: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no such stage": (
        "layer5",
        {},
        ValueError,
        "where='layer5' chooses none of the model's convolutions with a kernel of more than one tap: conv1, "
        "layer1.0.conv1, layer1.0.conv2, layer2.0.conv1, layer2.0.conv2, layer3.0.conv1, layer3.0.conv2, "
        "layer3.1.conv1, …",
    ),
    "half a name": ("layer", {}, ValueError, "where='layer' chooses none"),
    "1×1 only": ("*.downsample.*", {}, ValueError, "where='*.downsample.*' chooses none"),
    "one of two": (("layer4", "layer9"), {}, ValueError, "where='layer9' chooses none"),
    "nothing": ((), {}, ValueError, "where=() chooses none"),
    "too many": ("last 99", {}, ValueError, "where='last 99' asks for 99, the model has 13 convolutions with"),
    "last none": ("last 0", {}, ValueError, "where='last 0' asks for 0, the model has 13 convolutions with"),
    "a number": (3, {}, TypeError, "where must be a name, a pattern, 'last n', several of these, or a function, got 3"),
    "numbers": (
        [3],
        {},
        TypeError,
        "where must be a name, a pattern, 'last n', several of these, or a function, got [3]",
    ),
    "offset groups": (
        "*",
        {"offset_groups": 5},
        ValueError,
        "layer 'conv1': offset_groups=5 must divide 3 input channels",
    ),
    "version": ("last 1", {"version": 3}, ValueError, "layer 'layer4.1.conv2': version must be 1 (offsets) or 2"),
    "boundary": (
        "last 1",
        {"boundary": "x"},
        ValueError,
        "layer 'layer4.1.conv2': boundary must be 'zeros' or 'clamp'",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_requests(wrong: str, network: Network) -> None:
    where, options, kind, sentence = WRONG[wrong]
    net = network("ResNet")
    before = dict(net.named_modules())
    with pytest.raises(kind, match=f"^{re.escape(f'deformify: {sentence}')}"):
        deformify(net, where, **options)
    assert dict(net.named_modules()) == before


def test_same_padding_that_the_clamped_boundary_cannot_follow() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 2, padding="same"))
    with pytest.raises(ValueError, match=r"^deformify: layer '0': padding='same' pads unevenly here"):
        deformify(net, "0", boundary="clamp")


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_layers_that_move_are_not_folded_and_nothing_changes(part: str) -> None:
    net = nn.Sequential(DeformConv2d(4, 4, 3), DeformConv2d(4, 4, 3))
    with torch.no_grad():
        getattr(net[1].conv_offset, part)[3] = 0.25
    before = dict(net.named_modules())
    with pytest.raises(ValueError, match=r"^undeformify: layer '1' moves its samples"):
        undeformify(net)
    assert dict(net.named_modules()) == before
    assert _deformable(undeformify(net, "0")) == ["1"]
    with pytest.raises(ValueError, match=r"where='0' chooses none of the model's deformable convolutions: 1$"):
        undeformify(net, "0")


def test_what_is_no_model_of_layers() -> None:
    for function in (deformify, undeformify):
        with pytest.raises(TypeError, match=rf"^{function.__name__}: model must be an nn.Module, got a OrderedDict$"):
            function(nn.Conv2d(4, 4, 3).state_dict(), "*")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")  # which is deprecated
        traced = torch.jit.trace(nn.Sequential(nn.Conv2d(4, 4, 3)), torch.zeros(1, 4, 5, 5))
    with pytest.raises(ValueError, match=r"^deformify: a traced or scripted model has no layers to replace; replace "):
        deformify(traced, "*")


def test_nothing_to_fold_and_hooks() -> None:
    with pytest.raises(ValueError, match=r"the model has no deformable convolutions$"):
        undeformify(nn.Conv2d(1, 1, 3))
    layer = DeformConv2d(4, 4, 3)
    with OffsetStatistics(layer), pytest.raises(ValueError, match=r"layer \(the model itself\) has hooks"):
        undeformify(layer)
    with pytest.raises(ValueError, match="moves its samples"):
        undeformify(DeformConv2d(4, 4, 3, device="meta"))


class Decoder(nn.Module):
    """A convolution of every kind that is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(16, 16, 3, padding="same", dilation=2, groups=2)
        self.volume = nn.Conv3d(16, 16, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.up = nn.ConvTranspose2d(16, 32, 3, 2, 1, output_padding=1, groups=2)
        self.point = nn.ConvTranspose2d(32, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.line(x.flatten(2)).view_as(x)
        y = self.volume(y.unsqueeze(2)).squeeze(2)
        found: Tensor = self.point(self.up(y))
        return found


@pytest.mark.parametrize("version", [1, 2])
def test_other_dimensions_and_transposed_there_and_back(version: int) -> None:
    torch.manual_seed(0)
    net = Decoder().double()
    x = torch.randn(2, 16, 5, 6, dtype=torch.float64)
    before, names = net(x), list(net.state_dict())
    deformify(net, ["line", "volume", "up"], version=version, offset_groups=2)
    kinds = [type(layer) for layer in (net.line, net.volume, net.up, net.point)]
    assert kinds == [DeformConv1d, DeformConv3d, DeformConvTranspose2d, nn.ConvTranspose2d]
    assert set(names) < set(net.state_dict())
    assert error(net(x), before) < 1e-12
    if version == 2:
        # Masks other than 1 are multiplied into the weight, of each group its own.
        with torch.no_grad():
            for layer in (net.line, net.volume, net.up):
                offsets = 2 * len(layer.axes) * math.prod(layer.kernel_size)
                layer.conv_offset.bias[offsets:].normal_()
        before = net(x)
    undeformify(net)
    assert [type(layer) for layer in (net.line, net.volume, net.up)] == [nn.Conv1d, nn.Conv3d, nn.ConvTranspose2d]
    assert error(net(x), before) < 1e-12


def test_a_layer_with_a_guide_stays() -> None:
    with pytest.raises(ValueError, match=r"^undeformify: layer '0' takes a guide, no plain convolution does$"):
        undeformify(nn.Sequential(DeformConv2d(4, 4, 3, guide_channels=4)))
