"""The names that other libraries give to parameters of pliant's networks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

# Pairs of a pattern for the whole name and the new name; the first match counts.
Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Source:
    """Another library's layout.

    Args:
        rules: how names change.
        keeps: whether names without a rule stay as they are. Otherwise they are left over, as names of parts such as
            heads, which have another meaning here.
        mask_scale: of its modulated layers; None if the library has none: those in a file are then another library's or
            ours.
        versions: of its deformable layers.
        boundaries: "zeros" or "clamp", for version 1 and for version 2; None as for `mask_scale`.
        note: what the file does not hold and its user must know.
        mark: what some name holds wherever the layout is this one, if other names of it are those of any network.
    """

    rules: Rules
    keeps: bool
    mask_scale: float | None = 1.0
    versions: tuple[int, ...] = (1, 2)
    boundaries: tuple[str, str] | tuple[None, None] = ("zeros", "zeros")
    note: str = ""
    mark: str = ""


_RESNET = r"(?:conv1|bn1|fc|layer[1-4]\.\d+\.(?:conv[123](?:\.conv_offset)?|bn[123]|downsample\.[01]))\.\w+"
_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
# Levels of a pyramid are counted from 0, the finest; detectron2's names have the log2 of the stride.
_PYRAMID = (
    r"neck\.lateral_convs\.(\d)\.conv\.(\w+)",
    r"neck\.fpn_convs\.(\d)\.conv\.(\w+)",
)

MMCV: Rules = (
    # Before version 2 of mmcv's packs, the branch lay beside its layer.
    (r"(.+)_offset\.(weight|bias)", r"\1.conv_offset.\2"),
)
MMDET: Rules = (
    (r"((?:backbone\.)?layer[1-4]\.\d+\.conv\d)_offset\.(weight|bias)", r"\1.conv_offset.\2"),
    (rf"((?:backbone\.)?{_RESNET})", r"\1"),
    (_PYRAMID[0], r"neck.lateral.\1.\2"),
    (_PYRAMID[1], r"neck.output.\1.\2"),
    (r"(.+\.roi_layers\.\d\.(?:offset_fc|mask_fc)\.\d\.\w+)", r"\1"),
)
_D2 = r"(backbone\.)?(?:bottom_up\.)?"
DETECTRON2: Rules = (
    (rf"{_D2}stem\.conv1\.weight", r"\1conv1.weight"),
    (rf"{_D2}stem\.conv1\.norm\.{_NORM}", r"\1bn1.\2"),
    *(
        rule
        for stage in (2, 3, 4, 5)
        for rule in (
            (rf"{_D2}res{stage}\.(\d+)\.conv2_offset\.(weight|bias)", rf"\1layer{stage - 1}.\2.conv2.conv_offset.\3"),
            (rf"{_D2}res{stage}\.(\d+)\.conv([123])\.weight", rf"\1layer{stage - 1}.\2.conv\3.weight"),
            (rf"{_D2}res{stage}\.(\d+)\.conv([123])\.norm\.{_NORM}", rf"\1layer{stage - 1}.\2.bn\3.\4"),
            (rf"{_D2}res{stage}\.(\d+)\.shortcut\.weight", rf"\1layer{stage - 1}.\2.downsample.0.weight"),
            (rf"{_D2}res{stage}\.(\d+)\.shortcut\.norm\.{_NORM}", rf"\1layer{stage - 1}.\2.downsample.1.\3"),
            (rf"backbone\.fpn_lateral{stage}\.(weight|bias)", rf"neck.lateral.{stage - 2}.\1"),
            (rf"backbone\.fpn_output{stage}\.(weight|bias)", rf"neck.output.{stage - 2}.\1"),
        )
    ),
)
DCNV2: Rules = ((r"(.+)\.conv_offset_mask\.(weight|bias)", r"\1.conv_offset.\2"),)
# The names in BiRefNet's block, called `dec_att`, or of the block alone; its masks have a branch of their own, which
# `convert` joins to that of the offsets.
_ASPP = r"((?:.+\.)?dec_att\.|)"
_PARTS = (
    (r"atrous_conv\.regular_conv\.weight", "0.weight"),
    (r"atrous_conv\.offset_conv\.(weight|bias)", r"0.conv_offset.{}"),
    (r"atrous_conv\.modulator_conv\.(weight|bias)", r"0.conv_mask.{}"),
    (rf"bn\.{_NORM}", r"1.{}"),
)
BIREFNET: Rules = (
    *((rf"{_ASPP}aspp1\.{old}", rf"\1branches.0.{new.format(chr(92) + '2')}") for old, new in _PARTS),
    *(
        (rf"{_ASPP}aspp_deforms\.{i}\.{old}", rf"\1branches.{i + 1}.{new.format(chr(92) + '2')}")
        for i in range(8)
        for old, new in _PARTS
    ),
    (rf"{_ASPP}global_avg_pool\.(\d)\.(\w+)", r"\1pooled.\2.\3"),
    (rf"{_ASPP}conv1\.weight", r"\1merge.0.weight"),
    (rf"{_ASPP}bn1\.{_NORM}", r"\1merge.1.\2"),
)
TORCHVISION: Rules = (
    (r"backbone\.body\.(.+)", r"backbone.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"neck.lateral.\1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"neck.output.\1.\2"),
    # Parts of a detector, which a classifier lacks.
    (r"(?:rpn|roi_heads)\..+", ""),
)

_BLOCK = r"([2-5])([a-z])(\d*)"
_STATISTICS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}
_BRANCHES = {
    "1": ("downsample.0", "downsample.1"),
    **{b: (f"conv{i}", f"bn{i}") for i, b in enumerate(("2a", "2b", "2c"), 1)},
}


def msra(name: str) -> str | None:
    """Return our name for a parameter of the authors' ResNet, None for other parts.

    ``res4b22_branch2b_offset_weight`` is ``layer3.22.conv2.conv_offset.weight``.
    """
    if name == "conv1_weight":
        return "conv1.weight"
    norm = re.fullmatch(r"bn_conv1_(\w+)", name)
    if norm:
        return f"bn1.{_STATISTICS[norm[1]]}" if norm[1] in _STATISTICS else None
    block = re.fullmatch(rf"(res|bn){_BLOCK}_branch(1|2a|2b|2c)_(offset_)?(\w+)", name)
    if block:
        kind, stage, letter, number, branch, offset, what = block.groups()
        # Blocks are a, b, c …, or a, b1, b2 … in stages with many.
        index = int(number) if number else ord(letter) - ord("a")
        conv, bn = (f"layer{int(stage) - 1}.{index}.{part}" for part in _BRANCHES[branch])
        if kind == "bn":
            return f"{bn}.{_STATISTICS[what]}" if what in _STATISTICS else None
        return f"{conv}.{'conv_offset.' if offset else ''}{what}" if what in ("weight", "bias") else None
    # The authors' example of version 2 names its layers X_conv2, where X depends on the network.
    layer = re.fullmatch(r"(.+)_conv2(_offset)?_(weight|bias)", name)
    return f"{layer[1]}.conv2.{'conv_offset.' if layer[2] else ''}{layer[3]}" if layer else None


_CAFFE = 'strides lie in the 1×1 convolutions of its blocks: ResNet(stride_in="1x1")'
SOURCES: dict[str, Source] = {
    "mmdet": Source(MMDET, keeps=False, note='check the configuration: with style="caffe" ' + _CAFFE),
    "mmcv": Source(MMCV, keeps=True),
    "detectron2": Source(
        DETECTRON2,
        keeps=False,
        note="check the configuration: with STRIDE_IN_1X1, its default, "
        + _CAFFE
        + "; images are BGR, mean (103.53, 116.28, 123.675), by default",
    ),
    "dcnv2": Source(
        DCNV2,
        keeps=True,
        versions=(2,),
        note="its offset branches have no dilation: layers with one compute other offsets here",
    ),
    "birefnet": Source(
        BIREFNET,
        keeps=True,
        mask_scale=2.0,
        versions=(2,),
        note="its deformable blocks are DeformASPP(…, kernel_sizes=(1, 1, 3, 7))",
        mark="modulator_conv",
    ),
    "msra": Source(
        (),
        keeps=False,
        mask_scale=2.0,
        boundaries=("clamp", "zeros"),
        note=_CAFFE + "; images are RGB, mean (123.15, 115.90, 103.06) subtracted, not divided",
    ),
    "timm": Source((), keeps=True, mask_scale=None, boundaries=(None, None)),
    "torchvision": Source(TORCHVISION, keeps=True, mask_scale=None, boundaries=(None, None)),
}


def rename(source: str, state: Mapping[str, Tensor]) -> dict[str, str | None]:
    """Return our name for every name of `state`, None where it is left over.

    Raises:
        ValueError: two names become the same.
    """
    names: dict[str, str | None] = {}
    taken: dict[str, str] = {}
    for old in state:
        new = msra(old) if source == "msra" else _apply(SOURCES[source], old)
        if source == "mmcv" and new != old and not _is_branch(old, state):
            new = old  # the name ends like a branch's, but belongs to something else
        if new is not None and new in taken:
            raise ValueError(f"{source}: {taken[new]} and {old} both become {new}")
        names[old] = new
        if new is not None:
            taken[new] = old
    return names


def suspicion(source: str, state: Mapping[str, Tensor]) -> str:
    """Return a sentence that says which library's names a checkpoint has if they are not those of `source`, else ""."""

    def changed(name: str, old: str) -> bool:
        new = msra(old) if name == "msra" else _apply(SOURCES[name], old)
        if new == old or (new is None and not SOURCES[name].keeps):
            return False
        return name != "mmcv" or _is_branch(old, state)

    possible = [name for name, of in SOURCES.items() if any(of.mark in old for old in state)]
    found = {name: [old for old in state if name in possible and changed(name, old)] for name in SOURCES}
    most = max(found, key=lambda name: len(found[name]))
    if found[source] or not found[most]:
        return ""
    return f"names as in {most}: {len(found[most])} of {len(state)}, such as {found[most][0]} (--from {most})"


def _apply(source: Source, name: str) -> str | None:
    for pattern, new in source.rules:
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(new) or None
    return name if source.keeps else None


def _is_branch(name: str, state: Mapping[str, Tensor]) -> bool:
    """Return whether ``X_offset.weight`` or ``.bias`` predicts the offsets of a convolution X."""
    layer = re.sub(r"_offset\.(weight|bias)", "", name)
    main, branch = state.get(f"{layer}.weight"), state.get(f"{layer}_offset.weight")
    return main is not None and branch is not None and bool(layouts(main, branch))


def layouts(main: Tensor, branch: Tensor) -> list[tuple[int, int]]:
    """Return the possible meanings, (version, offset groups), of an offset branch's channels beside convolution `main`.

    Version 1 has 2·G·K channels; version 2 has 3·G·K, all offsets, then all masks. G divides the input channels, and
    both kernels have the same size.
    """
    if main.dim() != 4 or branch.dim() != 4 or main.shape[2:] != branch.shape[2:]:
        return []
    channels, C, Kh, Kw = branch.shape
    counts = ((version, (version + 1) * Kh * Kw) for version in (1, 2))
    found = [(version, channels // count) for version, count in counts if channels % count == 0]
    return [(version, G) for version, G in found if G > 0 and C % G == 0 and C % main.shape[1] == 0]
