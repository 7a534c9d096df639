"""ResNet: sizes and counts of the papers, deformed twins that start equal, ImageNet's weights."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.models import Predictor, ResNet, load_imagenet
from pliant.models.resnet import FrozenBatchNorm2d
from pliant.nn import DeformConv2d, parameter_groups
from pliant.testing import error


def _size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _deformable(net: nn.Module) -> list[str]:
    return [name for name, layer in net.named_modules() if isinstance(layer, DeformConv2d)]


def _meta(*args: Any, **options: Any) -> ResNet:
    with torch.device("meta"):
        return ResNet(*args, **options)


def _small(**options: Any) -> ResNet:
    torch.manual_seed(0)
    return ResNet(18, width=8, stem="small", **options)


# torchvision's and timm's networks with their last layer taken off: 512 or 2048 inputs, 1000 classes.
@pytest.mark.parametrize(
    ("depth", "whole", "features"),
    [(18, 11_689_512, 512), (26, 15_995_176, 2048), (50, 25_557_032, 2048), (101, 44_549_160, 2048)],
)
def test_has_the_known_number_of_parameters(depth: int, whole: int, features: int) -> None:
    net = _meta(depth)
    assert _size(net) == whole - 1000 * features - 1000
    assert net.channels == tuple(features // n for n in (8, 4, 2, 1)) and net.strides == (4, 8, 16, 32)


def test_resnet10_has_the_first_block_of_every_stage_of_resnet18() -> None:
    shorter, longer = _meta(10), _meta(18)
    assert {name for name in longer.state_dict() if name not in shorter.state_dict()} == {
        name for name in longer.state_dict() if name.startswith("layer") and name.split(".")[1] == "1"
    }
    # Of width w a block has two 3×3 convolutions and two normalizations.
    assert _size(longer) - _size(shorter) == sum(2 * 9 * w * w + 4 * w for w in (64, 128, 256, 512))


@pytest.mark.parametrize(("version", "channels", "added"), [("v1", 18, 580_842), ("v2", 27, 871_263)])
def test_conv3_to_conv5_of_resnet50_are_13_deformable_layers(version: str, channels: int, added: int) -> None:
    net = _meta(50, deform=(None, version, version, version))
    assert len(_deformable(net)) == 4 + 6 + 3
    # An offset branch of C channels has channels · (9·C + 1) values: +0.581M and +0.871M (papers, one offset group).
    by_hand = sum(n * channels * (9 * C + 1) for n, C in ((4, 128), (6, 256), (3, 512)))
    assert _size(net) - _size(_meta(50)) == added == by_hand
    assert len(_deformable(_meta(101, deform=(None, version, version, version)))) == 4 + 23 + 3


def test_which_layers_are_deformable() -> None:
    # The three layers of DCNv1, and both 3×3 convolutions of a basic block.
    assert _deformable(_meta(50, deform=(None, None, None, "v1"))) == [f"layer4.{i}.conv2" for i in (0, 1, 2)]
    assert _deformable(_meta(18, deform=(None, None, None, "v2"))) == [
        f"layer4.{i}.conv{j}" for i in (0, 1) for j in (1, 2)
    ]
    net = _meta(50, deform=("v1", None, "v2", None), offset_groups=4, mask_scale=1.0)
    assert net.layer1[0].conv2.version == 1 and net.layer3[0].conv2.version == 2
    assert net.layer3[0].conv2.conv_offset.out_channels == 4 * 27 and net.layer3[0].conv2.mask_scale == 1.0
    # The 3×3 of a bottleneck carries the stride, its branch too.
    assert net.layer3[0].conv2.stride == net.layer3[0].conv2.conv_offset.stride == (2, 2)


def test_maps_have_the_known_sizes() -> None:
    net = _small()
    assert net.strides == (2, 4, 8, 16) and net.channels == (8, 16, 32, 64)
    # 1×1 up to sizes that no stride divides: always ⌈H / stride⌉.
    net.eval()
    for H, W in ((1, 1), (33, 70), (64, 32)):
        shapes = [tuple(x.shape) for x in net(torch.zeros(1, 3, H, W))]
        assert shapes == [(1, C, -(-H // s), -(-W // s)) for C, s in zip(net.channels, net.strides, strict=True)]
    large = ResNet(26, width=8).eval()
    assert [x.shape[-1] for x in large(torch.zeros(1, 3, 65, 65))] == [17, 9, 5, 3]


def test_conv5_at_stride_16_dilates_and_keeps_the_size() -> None:
    net = _meta(50, stride=16, deform=(None, None, None, "v1"))
    assert net.strides == (4, 8, 16, 16)
    for layer in net.layer4:
        assert layer.conv2.dilation == layer.conv2.padding == layer.conv2.conv_offset.dilation == (2, 2)
    assert net.layer4[0].conv2.stride == (1, 1) and net.layer4[0].downsample[0].stride == (1, 1)
    assert _size(net) == _size(_meta(50, deform=(None, None, None, "v1")))
    assert [x.shape[-1] for x in _small(stride=16).eval()(torch.zeros(1, 3, 64, 64))] == [32, 16, 8, 8]


def test_the_stride_lies_where_it_should() -> None:
    nets = {place: ResNet(26, width=8, deform=(None, None, None, "v2"), stride_in=place) for place in ("3x3", "1x1")}
    for place, net in nets.items():
        first = [(stage[0].conv1.stride[0], stage[0].conv2.stride[0]) for stage in net.stages()]
        assert first == [(1, 1), *[(1, 2) if place == "3x3" else (2, 1)] * 3]
        assert [tuple(x.shape[2:]) for x in net(torch.zeros(1, 3, 63, 95))] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert nets["3x3"].state_dict().keys() == nets["1x1"].state_dict().keys()
    # The formula of Caffe's block: every second pixel, then 3×3.
    block = nets["1x1"].eval().layer2[0]
    x = torch.randn(2, 32, 9, 12)
    y = F.relu(block.bn2(block.conv2(F.relu(block.bn1(F.conv2d(x[:, :, ::2, ::2], block.conv1.weight))))))
    torch.testing.assert_close(block(x), F.relu(block.bn3(block.conv3(y)) + block.downsample(x)))


def test_fixed_dilations_by_stage() -> None:
    net = _small(dilations=(1, 2, 3, 4)).eval()
    assert [net.get_submodule(f"layer{i}.1.conv2").dilation[0] for i in (1, 2, 3, 4)] == [1, 2, 3, 4]
    plain = _small().eval()
    assert _size(net) == _size(plain)
    x = torch.randn(1, 3, 64, 64)
    assert [a.shape for a in net(x)] == [b.shape for b in plain(x)]
    assert torch.equal(net(x)[0], plain(x)[0]) and not torch.equal(net(x)[1], plain(x)[1])


@pytest.mark.parametrize("depth", [18, 26])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_deformed_twin_starts_equal(depth: int, version: str) -> None:
    torch.manual_seed(0)
    plain = ResNet(depth, width=8, stem="small", stride=16)
    twin = ResNet(depth, width=8, stem="small", stride=16, deform=(None, version, version, version))
    left = twin.load_state_dict(plain.state_dict(), strict=False)
    assert not left.unexpected_keys and all(".conv_offset." in name for name in left.missing_keys)
    x = torch.randn(2, 3, 40, 48)
    for a, b in zip(twin(x), plain(x), strict=True):
        assert error(a, b) < 1e-4


def test_mask_scale_of_one_starts_elsewhere() -> None:
    plain, half = _small(), _small(deform=(None, None, None, "v2"), mask_scale=1.0)
    half.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 3, 32, 32)
    # Frozen normalization sees the halved sums, in evaluation mode.
    assert not torch.allclose(half.eval()(x)[3], plain.eval()(x)[3], rtol=1e-2)


def test_gradients_reach_stem_and_offset_branches() -> None:
    net = _small(deform=(None, "v1", "v2", "v2"))
    sum(x.square().mean() for x in net(torch.randn(2, 3, 48, 48))).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    slow = [group for group in parameter_groups(net, 1.0) if group["lr"] == pytest.approx(0.1)]
    assert len(slow[0]["params"]) == 2 * 8


def test_frozen_normalization_is_constant() -> None:
    live, frozen = _small(), _small(frozen_bn=True)
    live.train()
    for _ in range(2):
        live(torch.randn(2, 3, 32, 32))
    frozen.load_state_dict(live.state_dict())  # names and counters of live layers
    live.eval(), frozen.train()
    x = torch.randn(2, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    for a, b in zip(frozen(x), live(x), strict=True):
        assert error(a, b) < 1e-5
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.state_dict().items())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in frozen.modules())
    assert not any("bn" in name for name, _ in frozen.named_parameters())
    live.load_state_dict(frozen.state_dict(), strict=False)


def test_frozen_normalization_formula() -> None:
    norm = FrozenBatchNorm2d(2).double()
    norm.load_state_dict({"weight": torch.tensor([2.0, 3.0]), "bias": torch.tensor([1.0, -1.0])} | {
        "running_mean": torch.tensor([5.0, 0.5]), "running_var": torch.tensor([4.0, 0.25])
    })  # fmt: skip
    x = torch.tensor([7.0, 1.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    expected = [(7 - 5) / (4 + 1e-5) ** 0.5 * 2 + 1, (1 - 0.5) / (0.25 + 1e-5) ** 0.5 * 3 - 1]
    torch.testing.assert_close(norm(x).flatten(), torch.tensor(expected, dtype=torch.float64))


def test_frozen_stages() -> None:
    net = _small(frozen_bn=True, frozen_stages=2)
    fixed = {name.split(".")[0] for name, p in net.named_parameters() if not p.requires_grad}
    assert fixed == {"conv1", "layer1"}
    net(torch.randn(1, 3, 32, 32))[3].sum().backward()
    assert net.conv1.weight.grad is None and net.layer2[0].conv1.weight.grad is not None


def _file(path: Path, net: nn.Module, wrap: str | None = None, prefix: str = "", **more: Tensor) -> Path:
    state = {prefix + name: tensor for name, tensor in net.state_dict().items()}
    state |= {prefix + "fc.weight": torch.zeros(10, 64), prefix + "fc.bias": torch.zeros(10)} | more
    torch.save(state if wrap is None else {wrap: state, "epoch": 3}, path)
    return path


@pytest.mark.parametrize(
    ("name", "wrap", "prefix"),
    [
        ("resnet.pth", None, ""),
        ("resnet.pth.tar", "state_dict", "module."),
        ("resnet.bin", "model", ""),
        ("resnet.ckpt", "backbone", ""),
    ],
)
def test_loads_classifiers(tmp_path: Path, name: str, wrap: str | None, prefix: str) -> None:
    torch.manual_seed(1)
    source = ResNet(18, width=8, stem="small")
    path = _file(tmp_path / name, source, wrap, prefix)
    net = _small(deform=(None, None, None, "v2"), frozen_bn=True)
    report = load_imagenet(net, path)
    assert torch.equal(net.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert set(report.untouched) == {
        f"layer4.{i}.conv{j}.conv_offset.{k}" for i in (0, 1) for j in (1, 2) for k in ("weight", "bias")
    }
    assert {"fc.weight", "fc.bias"} <= set(report.dropped)
    assert report.tensors == len(net.state_dict()) - len(report.untouched)
    assert not any(net.get_parameter(name).any() for name in report.untouched)
    x = torch.randn(1, 3, 32, 32)
    for a, b in zip(net(x), source.eval()(x), strict=True):
        assert error(a, b) < 1e-4


def test_loads_into_the_backbone_of_a_detector_and_keeps_counters(tmp_path: Path) -> None:
    path = _file(tmp_path / "resnet.pth", ResNet(18, width=8, stem="small"))
    detector = nn.Module()
    detector.backbone = _small()
    detector.backbone.bn1.num_batches_tracked += 5
    report = load_imagenet(detector, path)
    assert "bn1.num_batches_tracked" in report.untouched and detector.backbone.bn1.num_batches_tracked == 5


def test_loads_the_backbone_of_another_detector(tmp_path: Path) -> None:
    source = _small()
    detector = {f"backbone.{name}": tensor for name, tensor in source.state_dict().items()} | {
        "fc1.weight": torch.ones(3)
    }
    torch.save({"format": 1, "recipe": {}, "model": detector}, tmp_path / "best.pt")
    net = ResNet(18, width=8, stem="small")
    load_imagenet(net, tmp_path / "best.pt")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), source.parameters(), strict=True))


def test_loads_the_backbone_of_a_bundled_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = ResNet(10, width=16, stem="small", deform=(None, "v2", "v2", "v2"))
    load_imagenet(net, "mdconv-c3-c5-mdpool")
    theirs = Predictor.load("mdconv-c3-c5-mdpool").model.backbone
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), theirs.parameters(), strict=True))
    # A file of that name comes first, and another network says what does not fit.
    monkeypatch.chdir(tmp_path)
    torch.save(ResNet(18, width=8, stem="small").state_dict(), tmp_path / "mdconv-c3-c5-mdpool")
    load_imagenet(_small(), "mdconv-c3-c5-mdpool")
    (tmp_path / "mdconv-c3-c5-mdpool").unlink()
    with pytest.raises(ValueError, match=r"^load_imagenet: mdconv-c3-c5-mdpool does not fit a ResNet-18"):
        load_imagenet(_small(), "mdconv-c3-c5-mdpool")


def test_loads_safetensors(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    source, net = _small(), ResNet(18, width=8, stem="small")
    save_file(source.state_dict(), tmp_path / "resnet.safetensors")
    load_imagenet(net, tmp_path / "resnet.safetensors")
    assert torch.equal(net.conv1.weight, source.conv1.weight)


@pytest.mark.parametrize("text", ["", "no weights here, but some words"])
def test_a_file_that_is_no_safetensors(text: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors.torch")
    (tmp_path / "a.safetensors").write_text(text)
    with pytest.raises(ValueError, match=r"^load_imagenet: .*a\.safetensors is no safetensors file: "):
        load_imagenet(_small(), tmp_path / "a.safetensors")


def test_safetensors_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("safetensors"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"needs the package safetensors: pip install safetensors$"):
        load_imagenet(_small(), tmp_path / "resnet.safetensors")


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    path = _file(tmp_path / "resnet.pth", ResNet(26, width=8, stem="small"), extra=torch.zeros(1))
    with pytest.raises(ValueError, match=r"does not fit a ResNet-18 .* has, unexpectedly, .* take the file of this"):
        load_imagenet(_small(), path)
    path = _file(tmp_path / "wide.pth", ResNet(18, width=16, stem="small"))
    with pytest.raises(ValueError, match=r"it has in another shape \d+ \(conv1.weight, bn1.weight, .*…\)"):
        load_imagenet(_small(), path)
    torch.save({"conv1.weight": _small().conv1.weight}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"it lacks \d+ \(bn1.weight"):
        load_imagenet(_small(), tmp_path / "part.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds no state dict"):
        load_imagenet(_small(), tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("no weights here")
    with pytest.raises(ValueError, match=r"text\.pth is not a file of weights"):
        load_imagenet(_small(), tmp_path / "text.pth")
    torch.save({1: torch.zeros(1)}, tmp_path / "numbers.pth")
    with pytest.raises(ValueError, match=r"numbers\.pth holds no state dict, a dictionary from names to tensors$"):
        load_imagenet(_small(), tmp_path / "numbers.pth")
    with pytest.raises(FileNotFoundError):
        load_imagenet(_small(), tmp_path / "absent.pth")
    with pytest.raises(TypeError, match="model must be a ResNet or have one as its backbone, got Linear"):
        load_imagenet(nn.Linear(1, 1), path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"depth": 34}, "depth must be one of 10, 18, 26, 50, 101, got 34"),
        ({"deform": (None, "v3", None, None)}, "deform must hold None, 'v1' or 'v2' for each of conv2 to conv5"),
        ({"deform": ("v1",)}, "deform must hold None, 'v1' or 'v2' for each of conv2 to conv5"),
        ({"stem": "tiny"}, "stem must be 'imagenet' or 'small', got 'tiny'"),
        ({"stride_in": "5x5"}, "stride_in must be '3x3', or '1x1' with bottlenecks"),
        ({"depth": 18, "stride_in": "1x1"}, "stride_in must be '3x3', or '1x1' with bottlenecks"),
        ({"stride": 8}, "stride must be 32 or 16, got 8"),
        ({"width": 0}, "width and in_channels must be at least 1, got 0 and 3"),
        ({"dilations": (1, 2)}, r"dilations must be four numbers of at least 1, got \(1, 2\)"),
        ({"frozen_stages": 2}, "frozen_stages must be 0 to 5 and needs frozen_bn=True, got 2 and False"),
    ],
)
def test_errors(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^ResNet: {sentence}"):
        _meta(**options)


def test_errors_of_input() -> None:
    with pytest.raises(ValueError, match=r"^ResNet: input must have 3 channels, got shape \(1, 4, 8, 8\)$"):
        _small()(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match=r"^ResNet: input must have shape \(N, C, H, W\), got \(3, 8, 8\)$"):
        _small()(torch.zeros(3, 8, 8))
