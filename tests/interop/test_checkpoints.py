"""Checkpoints written in the layout of every library load into our networks, which then compute the same."""

from __future__ import annotations

import copy
import itertools
import pickle
import re
import shutil
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pliant import app
from pliant.interop import checkpoints, mmcv
from pliant.models import ResNet
from pliant.nn import DeformConv2d, DeformRoIPool

State = dict[str, Tensor]


def _network(deform: str = "v2", offset_groups: int = 1, **options: Any) -> ResNet:
    """Return a ResNet-26 whose parameters and statistics are all random, also those that start at 0 or 1."""
    torch.manual_seed(0)
    net = ResNet(26, deform=(None, deform, None, deform), offset_groups=offset_groups, width=8, stem="small", **options)
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.2)
    return net.eval()


def _blocks() -> list[tuple[int, int]]:
    return [(stage, block) for stage in (1, 2, 3, 4) for block in (0, 1)]


# The layout in which each library would write our network, by hand and not by inverting the converter.


def _mmdet(state: State) -> State:
    return {f"backbone.{name}": tensor for name, tensor in state.items()}


def _mmdet_before_version_2(state: State) -> State:
    return {name.replace("conv2.conv_offset.", "conv2_offset."): t for name, t in _mmdet(state).items()}


def _detectron2(state: State) -> State:
    written: State = {"backbone.bottom_up.stem.conv1.weight": state["conv1.weight"]}
    norms = {"backbone.bottom_up.stem.conv1.norm": "bn1"}
    for stage, block in _blocks():
        ours, theirs = f"layer{stage}.{block}", f"backbone.bottom_up.res{stage + 1}.{block}"
        for i in (1, 2, 3):
            written[f"{theirs}.conv{i}.weight"] = state[f"{ours}.conv{i}.weight"]
            norms[f"{theirs}.conv{i}.norm"] = f"{ours}.bn{i}"
        for part in ("weight", "bias"):
            if f"{ours}.conv2.conv_offset.{part}" in state:
                written[f"{theirs}.conv2_offset.{part}"] = state[f"{ours}.conv2.conv_offset.{part}"]
        if block == 0:
            written[f"{theirs}.shortcut.weight"] = state[f"{ours}.downsample.0.weight"]
            norms[f"{theirs}.shortcut.norm"] = f"{ours}.downsample.1"
    for theirs, ours in norms.items():
        for part in ("weight", "bias", "running_mean", "running_var"):
            written[f"{theirs}.{part}"] = state[f"{ours}.{part}"]
    return written


def _dcnv2(state: State) -> State:
    return {name.replace("conv_offset.", "conv_offset_mask."): tensor for name, tensor in state.items()}


def _msra(state: State) -> State:
    written: State = {"conv1_weight": state["conv1.weight"]}
    norms = {"bn_conv1": "bn1"}
    for stage, block in _blocks():
        # Stage 4 of ResNet-101 has blocks a, b1, b2 …; the others a, b, c.
        ours, theirs = f"layer{stage}.{block}", f"{stage + 1}{'a' if block == 0 else 'b1' if stage == 3 else 'b'}"
        for i, letter in ((1, "a"), (2, "b"), (3, "c")):
            written[f"res{theirs}_branch2{letter}_weight"] = state[f"{ours}.conv{i}.weight"]
            norms[f"bn{theirs}_branch2{letter}"] = f"{ours}.bn{i}"
        for part in ("weight", "bias"):
            if f"{ours}.conv2.conv_offset.{part}" in state:
                written[f"res{theirs}_branch2b_offset_{part}"] = state[f"{ours}.conv2.conv_offset.{part}"]
        if block == 0:
            written[f"res{theirs}_branch1_weight"] = state[f"{ours}.downsample.0.weight"]
            norms[f"bn{theirs}_branch1"] = f"{ours}.downsample.1"
    for theirs, ours in norms.items():
        for a, b in (
            ("gamma", "weight"),
            ("beta", "bias"),
            ("moving_mean", "running_mean"),
            ("moving_var", "running_var"),
        ):
            written[f"{theirs}_{a}"] = state[f"{ours}.{b}"]
    return written


LAYOUTS: dict[str, tuple[str, Callable[[State], State], str]] = {
    "mmdet": ("mmdet", _mmdet, "backbone"),
    "mmdet before version 2": ("mmdet", _mmdet_before_version_2, "backbone"),
    "mmdet backbone alone": ("mmdet", dict, ""),
    "mmcv": ("mmcv", dict, ""),
    "mmcv before version 2": ("mmcv", _mmdet_before_version_2, "backbone"),
    "detectron2": ("detectron2", _detectron2, "backbone"),
    "dcnv2": ("dcnv2", _dcnv2, ""),
    "msra": ("msra", _msra, ""),
    "timm": ("timm", dict, ""),
    "torchvision": ("torchvision", lambda state: {f"backbone.body.{n}": t for n, t in state.items()}, "backbone"),
}


def _save_params(path: Path, state: State, magic: int) -> None:
    """Write a float32 parameter file of MXNet in one of its formats; the prefix of a name is its group, arg or aux."""
    data = struct.pack("<QQQ", 0x112, 0, len(state))
    for tensor in state.values():
        if magic:
            data += struct.pack("<I", magic)
            data += struct.pack("<i", 0) if magic > 0xF993FAC8 else b""
            data += struct.pack(f"<I{tensor.dim()}q", tensor.dim(), *tensor.shape)
        else:
            data += struct.pack(f"<I{tensor.dim()}I", tensor.dim(), *tensor.shape)
        data += struct.pack("<iii", 1, 0, 0) + tensor.contiguous().numpy().tobytes()
    data += struct.pack("<Q", len(state))
    for name in state:
        full = f"{'aux' if 'moving' in name else 'arg'}:{name}".encode()
        data += struct.pack("<Q", len(full)) + full
    path.write_bytes(data)


VERSIONS = [("v2", 1), ("v2", 4), ("v1", 1), ("v1", 4)]
# The DCNv2 forks have no version 1.
CASES = [(layout, *version) for layout in LAYOUTS for version in VERSIONS if (layout, version[0]) != ("dcnv2", "v1")]


@pytest.mark.parametrize(("layout", "deform", "offset_groups"), CASES)
def test_every_layout_and_back(layout: str, deform: str, offset_groups: int, tmp_path: Path) -> None:
    source, write, part = LAYOUTS[layout]
    net = _network(deform, offset_groups)
    state = write(net.state_dict())
    if source == "msra":
        _save_params(tmp_path / "in.params", state, 0xF993FAC9)
    else:
        torch.save({"state_dict": state, "meta": {"epoch": 12}}, tmp_path / "in.pth")
    before = [name for name, layer in net.named_modules() if isinstance(layer, DeformConv2d)]
    # timm and torchvision do not define these, so they are the model's own.
    own = source in ("timm", "torchvision")
    clamped = source == "msra" and deform == "v1"
    scale, boundary = 2.0 if own or source == "msra" else 1.0, "clamp" if clamped else "zeros"
    for layer in net.modules():
        if isinstance(layer, DeformConv2d):
            layer.mask_scale, layer.boundary = scale, boundary

    suffix = {"v1": "pth", "v2": "safetensors"}[deform]
    arguments = ["convert", str(tmp_path / ("in.params" if source == "msra" else "in.pth"))]
    arguments += [str(tmp_path / f"out.{suffix}"), "--from", source, "--take", part]
    assert app.main(arguments) == 0

    other = _network(deform, offset_groups)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    missing = checkpoints.load(other, tmp_path / f"out.{suffix}")
    assert all(name.endswith("num_batches_tracked") for name in missing)
    assert [name for name, layer in other.named_modules() if isinstance(layer, DeformConv2d)] == before
    layers = [layer for layer in other.modules() if isinstance(layer, DeformConv2d)]
    assert {layer.boundary for layer in layers} == {boundary}
    assert deform == "v1" or {layer.mask_scale for layer in layers} == {scale}
    x = torch.randn(1, 3, 40, 40)
    for a, b in zip(other(x), net(x), strict=True):
        assert torch.equal(a, b)
    recorded = checkpoints.read(tmp_path / f"out.{suffix}").record["layers"]
    assert recorded.keys() == set(before)
    assert all(("boundary" in settings) != own for settings in recorded.values())


NAMES = {
    ("mmdet", "backbone.layer3.5.conv2.conv_offset.weight"): "backbone.layer3.5.conv2.conv_offset.weight",
    ("mmdet", "backbone.layer3.5.conv2_offset.bias"): "backbone.layer3.5.conv2.conv_offset.bias",
    ("mmdet", "neck.lateral_convs.2.conv.weight"): "neck.lateral.2.weight",
    ("mmdet", "neck.fpn_convs.0.conv.bias"): "neck.output.0.bias",
    ("mmdet", "roi_head.bbox_head.fc_cls.weight"): None,
    ("mmdet", "rpn_head.rpn_conv.weight"): None,
    ("detectron2", "backbone.bottom_up.res4.22.conv2_offset.weight"): "backbone.layer3.22.conv2.conv_offset.weight",
    ("detectron2", "backbone.res5.2.conv3.norm.running_var"): "backbone.layer4.2.bn3.running_var",
    ("detectron2", "res2.0.shortcut.norm.weight"): "layer1.0.downsample.1.weight",
    ("detectron2", "stem.conv1.norm.bias"): "bn1.bias",
    ("detectron2", "backbone.fpn_lateral4.weight"): "neck.lateral.2.weight",
    ("detectron2", "backbone.fpn_output2.bias"): "neck.output.0.bias",
    ("detectron2", "roi_heads.box_head.fc1.weight"): None,
    ("dcnv2", "dla.ida_0.proj_1.conv.conv_offset_mask.bias"): "dla.ida_0.proj_1.conv.conv_offset.bias",
    ("dcnv2", "base.level0.0.weight"): "base.level0.0.weight",
    ("msra", "res3b3_branch2b_offset_weight"): "layer2.3.conv2.conv_offset.weight",
    ("msra", "res4b22_branch2b_weight"): "layer3.22.conv2.weight",
    ("msra", "res5c_branch2b_offset_bias"): "layer4.2.conv2.conv_offset.bias",
    ("msra", "bn5a_branch2b_moving_var"): "layer4.0.bn2.running_var",
    ("msra", "bn2a_branch1_gamma"): "layer1.0.downsample.1.weight",
    ("msra", "bn_conv1_moving_mean"): "bn1.running_mean",
    ("msra", "stage3_unit2_conv2_offset_weight"): "stage3_unit2.conv2.conv_offset.weight",
    ("msra", "stage3_unit2_conv2_weight"): "stage3_unit2.conv2.weight",
    ("msra", "rfcn_cls_offset_t_weight"): None,
    ("msra", "offset_p5_bias"): None,
    ("msra", "bn5a_branch2b_momentum"): None,
    ("timm", "layer1.0.downsample.1.running_mean"): "layer1.0.downsample.1.running_mean",
    ("torchvision", "layer4.2.conv3.weight"): "layer4.2.conv3.weight",
    ("torchvision", "backbone.body.layer4.2.bn3.bias"): "backbone.layer4.2.bn3.bias",
    ("torchvision", "backbone.fpn.inner_blocks.3.0.weight"): "neck.lateral.3.weight",
    ("torchvision", "backbone.fpn.layer_blocks.1.bias"): "neck.output.1.bias",
    ("torchvision", "roi_heads.box_predictor.cls_score.weight"): None,
}


@pytest.mark.parametrize(("source", "name"), NAMES, ids=str)
def test_a_name(source: str, name: str) -> None:
    known = dict.fromkeys(("layer1.0.conv1.weight", "conv1_weight", "stem.conv1.weight"), torch.zeros(4))
    state = {**known, name: torch.zeros(4)}
    assert checkpoints.convert(state, source).names[name] == NAMES[source, name]


def _pair(channels: int, C: int = 96, *, kernel: int = 3, groups: int = 1) -> State:
    return {
        "x.weight": torch.zeros(8, C // groups, 3, 3),
        "x.conv_offset.weight": torch.zeros(channels, C, kernel, kernel),
        "x.conv_offset.bias": torch.zeros(channels),
    }


@pytest.mark.parametrize(
    ("channels", "C", "version", "groups"),
    [(18, 96, 1, 1), (27, 96, 2, 1), (72, 256, 1, 4), (108, 256, 2, 4), (216, 64, 2, 8), (54, 64, 2, 2), (54, 9, 1, 3)],
)
def test_versions_and_groups_are_read_from_the_channels(channels: int, C: int, version: int, groups: int) -> None:
    done = checkpoints.convert(_pair(channels, C), "mmcv")
    expected: dict[str, Any] = {"version": version, "offset_groups": groups, "boundary": "zeros"}
    assert done.layers["x"] == expected | ({"mask_scale": 1.0} if version == 2 else {})


def test_channels_that_allow_both_versions_ask() -> None:
    sentence = "the 54 channels of x.conv_offset are 3 groups of version 1 or 2 of version 2; say which by version"
    with pytest.raises(ValueError, match=rf"^convert: {sentence} \(--version\)$"):
        checkpoints.convert(_pair(54), "mmcv")
    assert checkpoints.convert(_pair(54), "mmcv", version=1).layers["x"]["offset_groups"] == 3
    assert checkpoints.convert(_pair(54), "mmcv", version=2).layers["x"]["offset_groups"] == 2
    forks = {name.replace("conv_offset", "conv_offset_mask"): tensor for name, tensor in _pair(54).items()}
    assert checkpoints.convert(forks, "dcnv2").layers["x"]["offset_groups"] == 2


@pytest.mark.parametrize(
    ("state", "source"),
    [
        (_pair(20), "mmcv"),
        (_pair(9), "mmcv"),
        (_pair(18, kernel=1), "mmcv"),
        (_pair(36, 7), "mmcv"),
        (_pair(18), "dcnv2"),
    ],
)
def test_branches_that_do_not_fit(state: State, source: str) -> None:
    with pytest.raises(ValueError, match=r"^convert: x.conv_offset.weight has shape .*; expected the same kernel and "):
        checkpoints.convert(state, source)


def test_a_branch_without_a_bias_gets_zeros_and_a_wrong_one_is_refused() -> None:
    state = _pair(27, groups=96)
    del state["x.conv_offset.bias"]
    done = checkpoints.convert(state, "mmcv")
    assert done.made == ["x.conv_offset.bias"]
    assert torch.equal(done.state["x.conv_offset.bias"], torch.zeros(27))
    assert "made       x.conv_offset.bias: zeros" in done.report()
    state["x.conv_offset.bias"] = torch.zeros(18)
    with pytest.raises(ValueError, match=r"^convert: x.conv_offset.bias must have shape \(27,\), got \(18,\)$"):
        checkpoints.convert(state, "mmcv")


def test_other_things_that_end_in_offset_keep_their_names() -> None:
    state = {"conv.weight": torch.zeros(8, 8, 3, 3), "conv_offset.weight": torch.zeros(18, 4, 1, 1)}
    state |= {
        "fc.weight": torch.zeros(2, 2),
        "fc_offset.weight": torch.zeros(2, 2),
        "shape_offset.bias": torch.zeros(3),
    }
    done = checkpoints.convert(state, "mmcv")
    assert done.names == {name: name for name in state}
    assert done.layers == {}


def test_the_report_says_everything(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    state = _mmdet_before_version_2(_network().state_dict())
    state["rpn_head.rpn_conv.weight"] = torch.zeros(1)
    torch.save({"state_dict": {**state, "hyper": 3}, "optimizer": {"lr": 0.1}}, tmp_path / "in.pth")
    words = ["convert", str(tmp_path / "in.pth"), str(tmp_path / "out.pth"), "--from", "mmdet"]
    assert app.main(words) == 0
    summary, *few = capsys.readouterr().out.splitlines()
    assert few[0] == "left over  rpn_head.rpn_conv.weight" and few[-2] == "left over  hyper: not a tensor"
    assert few[1].startswith("note: ") and len(few) == 4
    assert few[-1] == f"4 deformable layers. Written to {tmp_path / 'out.pth'}; --verbose prints every name."
    assert app.main([*words, "--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == summary
    assert lines[0] == f"{len(state)} tensors of mmdet: {len(state) - 9} kept, 8 renamed, 1 left over, 0 made"
    new = "backbone.layer2.0.conv2.conv_offset.weight"
    assert f"renamed    backbone.layer2.0.conv2_offset.weight → {new}" in lines
    assert "kept       backbone.conv1.weight" in lines
    assert "left over  rpn_head.rpn_conv.weight" in lines
    assert "left over  hyper: not a tensor" in lines
    assert "deformable backbone.layer4.1.conv2: version 2, offset_groups 1, mask_scale 1.0, boundary zeros" in lines
    assert sum(line.startswith(("kept", "renamed", "left over")) for line in lines) == len(state) + 1
    assert lines[-3].startswith("note: check the configuration")


class Elsewhere:
    """A class that a pickle would have to import."""


def test_pickles_that_need_more_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": Elsewhere()}, path)
    with pytest.raises(ValueError, match=r"in.pth: needs \S*Elsewhere beside tensors and numbers, which loading"):
        checkpoints.read(path)
    assert app.main(["convert", str(path), str(tmp_path / "out.pth"), "--from", "mmcv"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out.pth").exists()
    path = tmp_path / "in.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": np.zeros(1)}, "evil": Elsewhere()}))
    with pytest.raises(
        ValueError, match=r"in.pkl: needs \S+Elsewhere beside arrays and numbers, which loading would run$"
    ):
        checkpoints.read(path)
    path.write_bytes(pickle.dumps({"model": {"a": np.array([print], dtype=object)}}))
    with pytest.raises(ValueError, match=r"in.pkl: needs builtins.print beside arrays and numbers"):
        checkpoints.read(path)


SUSPICIONS = {
    ("dcnv2", "mmcv"): "names as in dcnv2: 8 of 182, such as layer2.0.conv2.conv_offset_mask.weight (--from dcnv2)",
    ("detectron2", "timm"): "names as in detectron2: 153 of 153, such as backbone.bottom_up.stem.conv1.weight (--from",
    ("torchvision", "mmcv"): "names as in torchvision: 182 of 182, such as backbone.body.conv1.weight (--from torch",
    ("mmcv before version 2", "dcnv2"): "names as in mmdet: 8 of 182, such as backbone.layer2.0.conv2_offset.weight (",
    ("msra", "mmcv"): "names as in msra: 153 of 153, such as conv1_weight (--from msra)",
    ("timm", "torchvision"): "",
    ("mmdet", "mmcv"): "",
}


@pytest.mark.parametrize(("layout", "source"), SUSPICIONS)
def test_names_of_another_library_are_noticed(layout: str, source: str) -> None:
    state = LAYOUTS[layout][1](_network().state_dict())
    note = checkpoints.convert(state, source).note
    sentence = SUSPICIONS[layout, source]
    assert note.startswith(sentence) if sentence else "names as in" not in note
    if layout == "detectron2":
        with pytest.raises(ValueError, match=r"weight', …\) is one of mmdet's; names as in detectron2: 153 of 153"):
            checkpoints.convert(state, "mmdet")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_that_cannot_be_written(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = tmp_path / f"in.{suffix}"
    checkpoints.write(given, {"conv1.weight": torch.zeros(1)})
    before = given.read_bytes()
    (tmp_path / f"folder.{suffix}").mkdir()
    for name, sentence in (
        (f"folder.{suffix}", ": is a folder"),
        (f"in.{suffix}", f" would overwrite {given}, which is read; write to another place"),
    ):
        assert app.main(["convert", str(given), str(tmp_path / name), "--from", "timm"]) == 2
        assert capsys.readouterr().err == f"pliant convert: {tmp_path / name}{sentence}\n"
    assert given.read_bytes() == before
    assert app.main(["convert", str(given), str(tmp_path / "new" / "folder" / given.name), "--from", "timm"]) == 0
    capsys.readouterr()
    shutil.rmtree(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"folder.{suffix}", f"in.{suffix}"]
    # No partial file is left behind, and the file that was there is unchanged.
    nothing: Any = lambda: None  # noqa: E731 - neither pickle nor JSON can write it
    with pytest.raises(OSError, match=rf"^{re.escape(str(given))}: could not be written: "):
        checkpoints.write(given, {"a": torch.zeros(1)}, {"layers": nothing})
    assert given.read_bytes() == before


def test_a_converted_file_is_not_converted_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Converting again would lose its record: mask_scale and boundary.
    _converted(tmp_path / "a.pth", _network())
    assert app.main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.pth"), "--from", "timm"]) == 2
    sentence = "is converted already, from mmcv; checkpoints.load reads it"
    assert capsys.readouterr().err == f"pliant convert: {tmp_path / 'a.pth'}: {sentence}\n"
    assert not (tmp_path / "b.pth").exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickled_arrays_of_detectron2(protocol: int, tmp_path: Path) -> None:
    net = _network()
    arrays = OrderedDict((name, tensor.numpy()) for name, tensor in _detectron2(net.state_dict()).items())
    arrays["backbone.bottom_up.stem.conv1.weight"] = arrays["backbone.bottom_up.stem.conv1.weight"].astype(">f4")
    file = {"model": arrays, "__author__": "someone", "matching_heuristics": True, "scale": np.float32(3)}
    (tmp_path / "in.pkl").write_bytes(pickle.dumps(file, protocol))
    state, others, _ = checkpoints.read(tmp_path / "in.pkl")
    assert others == ()
    done = checkpoints.convert(state, "detectron2", take="backbone")
    for name, tensor in done.state.items():
        assert torch.equal(tensor, net.state_dict()[name])


@pytest.mark.parametrize("magic", [0, 0xF993FAC8, 0xF993FAC9, 0xF993FACA])
def test_parameter_files_of_mxnet(magic: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {"conv1_weight": torch.randn(4, 3, 2, 2), "bn_conv1_moving_var": torch.rand(4)}
    path = tmp_path / "in.params"
    _save_params(path, state, magic)
    read = checkpoints.read(path).state
    assert list(read) == list(state)
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    with pytest.raises(ValueError, match=r"in.params: ends in the middle of an array, or is damaged$"):
        checkpoints.read(path)
    path.write_bytes(b"nothing of the kind, but long enough")
    with pytest.raises(ValueError, match=r"in.params: is not a parameter file of MXNet$"):
        checkpoints.read(path)


def test_what_wraps_the_weights(tmp_path: Path) -> None:
    weights = {"a.weight": torch.ones(2), "b": torch.zeros(1)}
    for i, file in enumerate((
        weights,
        {"model": weights, "iteration": 3},
        {"params": {}, "params_ema": weights},
        OrderedDict(state_dict={f"module.{name}": tensor for name, tensor in weights.items()}),
        {"net": weights, "epoch": 3},
        {"checkpoint": {"generator": weights}},
        {"weights": weights, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": [{"lr": 1.0}]}},
        {"model": {"ema": weights}, "optimizer_states": [{"state": {}}]},
    )):  # fmt: skip
        path = tmp_path / f"{i}.pt"
        torch.save(file, path)
        state = checkpoints.read(path).state
        assert list(state) == list(weights)
        assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())


def test_several_dictionaries_of_weights_keep_their_names_apart(tmp_path: Path) -> None:
    parts = {"encoder": {"a": torch.ones(2)}, "decoder": {"a": torch.zeros(1), "b": torch.zeros(1)}}
    torch.save({**parts, "epoch": 3}, tmp_path / "in.ckpt")
    assert list(checkpoints.read(tmp_path / "in.ckpt").state) == ["encoder.a", "decoder.a", "decoder.b"]
    state = checkpoints.convert(checkpoints.read(tmp_path / "in.ckpt").state, "mmcv", take="decoder").state
    assert list(state) == ["a", "b"]


@pytest.mark.parametrize("name", ["in.pkl", "in.pth.tar", "in.ckpt", "in.bin", "in", "in.safetensors", "in.params"])
@pytest.mark.parametrize("kind", ["torch", "torch 1.5", "safetensors", "pickle", "mxnet"])
def test_the_content_decides_and_not_the_suffix(name: str, kind: str, tmp_path: Path) -> None:
    weights, path = {"a.weight": torch.arange(3.0)}, tmp_path / name
    if kind == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(weights, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"a.weight": weights["a.weight"].numpy()}))
    elif kind == "mxnet":
        _save_params(path, weights, 0xF993FAC9)
    else:
        torch.save({"state_dict": weights}, path, _use_new_zipfile_serialization=kind == "torch")
    state = checkpoints.read(path).state
    assert list(state) == ["a.weight"] and torch.equal(state["a.weight"], weights["a.weight"])


def test_files_that_are_none(tmp_path: Path) -> None:
    for name, content, sentence in (
        ("a.pth", b"not a pickle", "is not a file that torch.save wrote, or is damaged"),
        ("a.pkl", b"not a pickle", "is not a pickle, or is damaged|needs .* beside arrays"),
        ("a.safetensors", b"not safe", "is not a safetensors file"),
        ("a.params", b"no parameters", "is not a parameter file of MXNet"),
        ("a.onnx", b"", "is not a file that torch.save wrote, or is damaged"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            checkpoints.read(tmp_path / name)
    for suffix in ("pth", "pkl", "params", "safetensors"):
        with pytest.raises(FileNotFoundError):
            checkpoints.read(tmp_path / f"missing.{suffix}")
        (tmp_path / f"folder.{suffix}").mkdir()
        with pytest.raises(IsADirectoryError, match=f"folder.{suffix}"):
            checkpoints.read(tmp_path / f"folder.{suffix}")
    # Where a file is cut short decides which error torch raises.
    torch.save({"a": torch.randn(4000)}, tmp_path / "whole.pth")
    for count in (1, 500, 5000):
        (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:count])
        with pytest.raises(ValueError, match=r"cut.pth: is not a file that torch.save wrote, or is damaged$"):
            checkpoints.read(tmp_path / "cut.pth")
    torch.save({"epoch": 3}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="holds no weights"):
        checkpoints.read(tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"the suffix must be one of .safetensors, .pth, .pt, got '.onnx'"):
        checkpoints.write(tmp_path / "c.onnx", {"a": torch.zeros(1)})


def test_safetensors_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(
        ModuleNotFoundError,
        match=r'needs the package safetensors: pip install "\.\[convert\]" in a clone of the repository$',
    ):
        checkpoints.write(tmp_path / "a.safetensors", {"a": torch.zeros(1)})


def test_shared_tensors_are_written_twice(tmp_path: Path) -> None:
    one = torch.randn(3, 4)
    checkpoints.write(tmp_path / "a.safetensors", {"a": one, "b": one, "c": one.T})
    state = checkpoints.read(tmp_path / "a.safetensors").state
    assert torch.equal(state["a"], one) and torch.equal(state["b"], one) and torch.equal(state["c"], one.T)


def _converted(path: Path, net: nn.Module, change: Callable[[State, dict[str, Any]], None] = lambda s, r: None) -> Path:
    done = checkpoints.convert(net.state_dict(), "mmcv")
    record = copy.deepcopy(done.record)
    change(done.state, record)
    checkpoints.write(path, done.state, record)
    return path


LOADS: dict[str, tuple[Callable[[State, dict[str, Any]], Any], str]] = {
    "lacks": (lambda s, r: s.pop("conv1.weight"), "does not fit the model, it lacks 1 of the tensors: conv1.weight"),
    "has": (
        lambda s, r: s.update(more=torch.zeros(1)),
        "does not fit the model, it has beside the model 1 of the tensors: more",
    ),
    "other": (
        lambda s, r: s.update({"bn1.bias": torch.zeros(3)}),
        "does not fit the model, it has in another shape 1 of the tensors: bn1.bias",
    ),
    "no record": (lambda s, r: r.clear(), "has no record of its layers; convert it first"),
    "version": (
        lambda s, r: r["layers"]["layer4.1.conv2"].update(version=1),
        r"layer4.1.conv2 has version=2, in .* it has 1$",
    ),
    "kind": (
        lambda s, r: r["layers"].update({"layer4.1.conv1": r["layers"]["layer4.1.conv2"]}),
        r"layer4.1.conv1 is deformable in .*, in the model it is a Conv2d$",
    ),
}


@pytest.mark.parametrize("wrong", LOADS)
def test_files_that_do_not_fit_leave_the_model_alone(wrong: str, tmp_path: Path) -> None:
    change, sentence = LOADS[wrong]
    path = _converted(tmp_path / "a.pth", _network(), change)
    net = _network()
    with torch.no_grad():
        net.conv1.weight.zero_()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=sentence):
        checkpoints.load(net, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert {layer.mask_scale for layer in net.modules() if isinstance(layer, DeformConv2d)} == {2.0}


def test_plain_weights_into_a_deformable_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = ResNet(26, width=8, stem="small").eval()
    path = _converted(tmp_path / "a.safetensors", plain)
    net = ResNet(26, width=8, stem="small", deform=(None, None, None, "v2")).eval()
    missing = checkpoints.load(net, path)
    assert missing == [f"layer4.{i}.conv2.conv_offset.{part}" for i in (0, 1) for part in ("weight", "bias")]
    x = torch.randn(1, 3, 32, 32)
    assert torch.allclose(net(x)[-1], plain(x)[-1], atol=1e-5)


ROI_PACKS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "one trunk": (mmcv.DeformRoIPoolPack, {"version": 1, "hidden": (16, 16)}),
    "two trunks": (
        mmcv.ModulatedDeformRoIPoolPack,
        {"version": 2, "hidden": (16, 16), "separate_mask_trunk": True},
    ),
}


@pytest.mark.parametrize("pack", ROI_PACKS)
@pytest.mark.parametrize("source", ["mmdet", "mmcv"])
def test_layers_that_pool_rois(pack: str, source: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind, settings = ROI_PACKS[pack]
    theirs = kind((2, 3), 4, 16, spatial_scale=0.5, sampling_ratio=2)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    extractor = "roi_head.bbox_roi_extractor.roi_layers.1"
    state = {f"{extractor}.{name}": tensor for name, tensor in theirs.state_dict().items()}
    done = checkpoints.convert(state, source, take=extractor)
    modulated = {"mask_scale": 1.0} if settings["version"] == 2 else {}
    recorded = {"separate_mask_trunk": False, **settings, "hidden": [16, 16], **modulated}
    assert done.layers == {"": recorded}
    assert checkpoints.convert(state, source).layers == {extractor: recorded}

    ours = DeformRoIPool((2, 3), 4, 0.5, 2, **settings)
    checkpoints.write(tmp_path / "a.pth", done.state, done.record)
    assert checkpoints.load(ours, tmp_path / "a.pth") == []
    x, rois = torch.randn(2, 4, 12, 12), torch.tensor([[0.0, 2, 3, 20, 11], [1, 0, 1, 7, 22]])
    torch.testing.assert_close(ours(x, rois), theirs(x, rois))

    other = nn.ModuleDict(dict(ours.named_children()))
    with pytest.raises(ValueError, match=r"pools RoIs in .*, in the model it is a ModuleDict$"):
        checkpoints.load(other, tmp_path / "a.pth")


def _roi_state(widths: Sequence[int], mask: Sequence[int] = ()) -> State:
    state = {}
    for name, trunk in (("offset_fc", widths), ("mask_fc", mask)):
        for i, (before, after) in enumerate(itertools.pairwise(trunk)):
            state |= {f"{name}.{2 * i}.weight": torch.zeros(after, before), f"{name}.{2 * i}.bias": torch.zeros(after)}
    return state


@pytest.mark.parametrize(
    ("widths", "mask", "sentence"),
    [
        ((24, 8, 9), (), "offset_fc has 24 inputs and 9 outputs; expected two outputs and as many"),
        ((25, 8, 12), (), "offset_fc has 25 inputs and 12 outputs; expected two outputs and as many"),
        ((24, 8, 12), (24, 8, 4), r"beside a mask_fc of 4 outputs after \[8\]; expected two outputs"),
        ((24, 8, 12), (24, 7, 6), r"beside a mask_fc of 6 outputs after \[7\]; expected two outputs"),
    ],
)
def test_layers_that_pool_rois_and_do_not_fit(widths: Sequence[int], mask: Sequence[int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        checkpoints.convert(_roi_state(widths, mask), "mmcv")


def test_trunks_that_break_off() -> None:
    state = _roi_state((24, 8, 12))
    state["offset_fc.2.weight"] = torch.zeros(12, 9)
    with pytest.raises(
        ValueError, match=r"^convert: offset_fc.2.weight has shape \(12, 9\), which does not fit its trunk$"
    ):
        checkpoints.convert(state, "mmcv")


def test_sources_and_parts_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"^convert: source must be one of mmdet, mmcv, .*, got 'caffe'$"):
        checkpoints.convert({"a": torch.zeros(1)}, "caffe")
    with pytest.raises(ValueError, match=r"^convert: none of the 1 names \('a'\) is one of mmdet's$"):
        checkpoints.convert({"a": torch.zeros(1)}, "mmdet")
    with pytest.raises(ValueError, match=r"^convert: none of the 1 names \('a'\) is one of mmcv's in 'head'$"):
        checkpoints.convert({"a": torch.zeros(1)}, "mmcv", take="head")
    both = {name: torch.zeros(1) for name in ("stem.conv1.weight", "bottom_up.stem.conv1.weight")}
    with pytest.raises(
        ValueError, match=r"^detectron2: stem.conv1.weight and bottom_up.stem.conv1.weight both become conv1"
    ):
        checkpoints.convert(both, "detectron2")
