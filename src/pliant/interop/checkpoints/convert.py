"""Convert the weights of another library, and load them into a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pliant.interop.checkpoints import detectors
from pliant.interop.checkpoints.files import read
from pliant.interop.checkpoints.names import SOURCES, layouts, rename, suspicion
from pliant.nn.deformable import DeformableConvolution, DeformablePool


@dataclass
class Conversion:
    """The result of converting a checkpoint.

    Args:
        source: the library that it came from.
        state: the converted weights.
        names: the new name of every name of the checkpoint, None where it is left over.
        made: names that the checkpoint did not have: zero biases for offset branches without a bias.
        layers: the settings that a model's deformable layers need to compute the same. For convolutions these are
            ``version``, ``offset_groups``, and, unless the library has no such layers, as timm and torchvision,
            ``mask_scale`` (version 2) and ``boundary``; for RoI pooling ``version``, ``hidden``,
            ``separate_mask_trunk`` and ``mask_scale`` (version 2).
        note: what the file does not hold and its user must know.
        detector: what makes the file a detector that :class:`pliant.models.Predictor` reads: the network's settings,
            classes, how images are resized. Empty if only parts of a network were converted.
    """

    source: str
    state: dict[str, Tensor]
    names: dict[str, str | None]
    made: list[str] = field(default_factory=list)
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    note: str = ""
    detector: dict[str, Any] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, Any]:
        """Return what :func:`write` stores beside the weights."""
        return {"source": self.source, "layers": self.layers, "note": self.note, "detector": self.detector}

    def report(self) -> str:
        """Return one line per name, with what became of it, and one per deformable layer."""
        kept = [old for old, new in self.names.items() if new == old]
        renamed = [(old, new) for old, new in self.names.items() if new is not None and new != old]
        left = [old for old, new in self.names.items() if new is None]
        lines = [
            f"{len(self.names)} tensors of {self.source}: {len(kept)} kept, {len(renamed)} renamed, "
            f"{len(left)} left over, {len(self.made)} made"
        ]
        lines += [f"kept       {old}" for old in kept]
        lines += [f"renamed    {old} → {new}" for old, new in renamed]
        lines += [f"left over  {old}" for old in left]
        lines += [f"made       {name}: zeros" for name in self.made]
        for name, settings in self.layers.items():
            lines.append(f"deformable {name}: " + ", ".join(f"{k} {v}" for k, v in settings.items()))
        if self.detector:
            model = self.detector["recipe"]["model"]
            said = ", ".join(f"{k} {v}" for k, v in model["options"].items())
            count = len(self.detector["classes"])
            lines.append(f"detector   Faster R-CNN, ResNet-{model['depth']}, {count} classes: {said}")
        return "\n".join([*lines, *([f"note: {self.note}"] if self.note else [])])


def convert(
    state: Mapping[str, Tensor],
    source: str,
    *,
    version: int | None = None,
    take: str = "",
    style: str | None = None,
    classes: Sequence[str] | None = None,
    eps: float = 1e-5,
) -> Conversion:
    """Convert the weights of another library to the names and layouts of `pliant`.

    Tensors of layers stay as they are: all these libraries order offsets and masks as we do, which is checked for every
    layer. Names are changed; the scale of the masks and the boundary, which differ, are recorded. A Faster R-CNN on a
    pyramid, of mmdetection, detectron2 or torchvision, is converted as a whole: its heads take our layout and order of
    classes, and all settings with which it detects the same are recorded.

    Args:
        state: names and tensors, as :func:`read` returns them.
        source: one of :data:`SOURCES`.
        version: of deformable layers whose number of channels fits both, such as 54 beside 96 input channels.
        take: a part of the model such as "backbone": only its weights are kept, and its name is removed.
        style: of a whole detector: "pytorch" (strides in the 3×3 convolutions, images RGB with ImageNet's mean and
            standard deviation) or "caffe" (strides in the 1×1 convolutions, images BGR with the mean subtracted); None:
            "caffe" for detectron2, else "pytorch".
        classes: of a whole detector: their names; None: COCO's, if there are as many.
        eps: of a whole detector: what its batch normalization adds to variances. torchvision's own weights for COCO of
            2019 (COCO_V1) are run with 0.

    Returns:
        The converted weights, what became of every name, and the settings of the deformable layers.

    Raises:
        ValueError: the source is unknown, an offset branch's channels or kernel do not fit its layer or fit two
            versions, two names become the same, or no name is left; an unknown style, another number of classes.
    """
    if source not in SOURCES:
        raise ValueError(f"convert: source must be one of {', '.join(SOURCES)}, got {source!r}")
    names = rename(source, state)
    if take:
        inside = f"{take.rstrip('.')}."
        names = {
            old: new.removeprefix(inside) if new is not None and new.startswith(inside) else None
            for old, new in names.items()
        }
    made = {new: state[old] for old, new in names.items() if new is not None}
    doubt = suspicion(source, state)
    if not made:
        some = ", ".join([repr(name) for name in state][:1] + ["…"] * (len(state) > 1))
        raise ValueError(
            f"convert: none of the {len(state)} names ({some}) is one of {source}'s{f' in {take!r}' if take else ''}"
            + (f"; {doubt}" if doubt else "")
        )
    notes = [note for note in (doubt, SOURCES[source].note) if note]
    result = Conversion(source, made, names, note="; ".join(notes))
    _join_masks(result)
    for branch in [name for name in made if name.endswith(".conv_offset.weight")]:
        layer = branch.removesuffix(".conv_offset.weight")
        if f"{layer}.weight" in made:
            _layer(result, layer, version)
    for branch in [name for name in made if re.fullmatch(r"(.+\.)?offset_fc\.0\.weight", name)]:
        _roi_layer(result, branch.removesuffix("offset_fc.0.weight"))
    if not take and detectors.has_heads(source, state):
        _whole(result, state, style, classes, eps)
    return result


def _join_masks(result: Conversion) -> None:
    """Append the branches that predict masks alone to those that predict offsets: first all offsets, then all masks."""
    for mask in [name for name in result.state if re.fullmatch(r"(.+\.)?conv_mask\.(weight|bias)", name)]:
        offset = mask.replace("conv_mask.", "conv_offset.")
        if offset not in result.state:
            raise ValueError(f"convert: there is a branch of masks, {mask}, without one of offsets")
        parts = result.state[offset], result.state.pop(mask)
        if parts[0].shape[1:] != parts[1].shape[1:] or parts[0].shape[0] != 2 * parts[1].shape[0]:
            shapes = " and ".join(str(tuple(part.shape)) for part in parts)
            raise ValueError(f"convert: offsets and masks of {offset} must be two to one, got shapes {shapes}")
        result.state[offset] = torch.cat(parts)
        result.names |= {old: offset for old, new in result.names.items() if new == mask}


def _whole(
    result: Conversion, state: Mapping[str, Tensor], style: str | None, classes: Sequence[str] | None, eps: float
) -> None:
    """Convert the heads, too, or say why they are left over."""
    try:
        found = detectors.convert(
            result.source, state, result.names, result.state, result.layers, style=style, classes=classes, eps=eps
        )
    except detectors.Unfit as error:
        result.note = "; ".join(filter(None, [f"only parts are converted, not the detector: {error}", result.note]))
        return
    result.state, result.names, result.layers = found.state, found.names, found.layers
    result.detector, result.note = found.about, found.note


def _layer(result: Conversion, layer: str, version: int | None) -> None:
    """Check the offset branch of a layer and record the layer's settings."""
    main, branch = result.state[f"{layer}.weight"], result.state[f"{layer}.conv_offset.weight"]
    source = SOURCES[result.source]
    found = [entry for entry in layouts(main, branch) if entry[0] in source.versions]
    if len(found) > 1 and version is not None:
        found = [entry for entry in found if entry[0] == version]
    channels, C, Kh, Kw = (*branch.shape, 0, 0, 0, 0)[:4]
    if not found:
        counts = " or ".join(f"{(v + 1) * Kh * Kw}·G" for v in source.versions)
        raise ValueError(
            f"convert: {layer}.conv_offset.weight has shape {tuple(branch.shape)} beside {tuple(main.shape)}; expected "
            f"the same kernel and {counts} channels, G dividing the {C} input channels"
        )
    if len(found) > 1:
        (_, one), (_, two) = found
        raise ValueError(
            f"convert: the {channels} channels of {layer}.conv_offset are {one} groups of version 1 or {two} of "
            "version 2; say which by version (--version)"
        )
    ((kind, G),) = found
    bias = f"{layer}.conv_offset.bias"
    if bias not in result.state:
        result.state[bias] = branch.new_zeros(channels)
        result.made.append(bias)
    elif result.state[bias].shape != (channels,):
        raise ValueError(f"convert: {bias} must have shape ({channels},), got {tuple(result.state[bias].shape)}")
    said = {"mask_scale": source.mask_scale if kind == 2 else None, "boundary": source.boundaries[kind - 1]}
    known = {setting: value for setting, value in said.items() if value is not None}
    result.layers[layer] = {"version": kind, "offset_groups": G, **known}


def _roi_layer(result: Conversion, prefix: str) -> None:
    """Check the trunks of a layer that pools RoIs and record the layer's settings.

    mmcv's version 1 has one trunk, its version 2 two: `offset_fc`, and `mask_fc` with one hidden layer.
    """
    (offset, hidden), (mask, before) = (_trunk(result.state, f"{prefix}{name}") for name in ("offset_fc", "mask_fc"))
    modulated = f"{prefix}mask_fc.0.weight" in result.state
    features = result.state[f"{prefix}offset_fc.0.weight"].shape[1]
    bins = mask if modulated else offset // 2
    if not bins or offset != 2 * bins or features % bins or (modulated and before != hidden[:1]):
        raise ValueError(
            f"convert: {prefix}offset_fc has {features} inputs and {offset} outputs"
            + (f" beside a mask_fc of {mask} outputs after {before}" if modulated else "")
            + "; expected two outputs and as many inputs as channels per bin, and a mask_fc with one output per bin "
            "after one hidden layer as wide as the first of offset_fc"
        )
    scale = {"mask_scale": 1.0} if modulated else {}
    kind = {"version": 2 if modulated else 1, "hidden": hidden, "separate_mask_trunk": modulated, **scale}
    result.layers[prefix.removesuffix(".")] = kind


def _trunk(state: Mapping[str, Tensor], name: str) -> tuple[int, list[int]]:
    """Return the number of outputs of fully connected layers with ReLU between them, and their hidden widths."""
    widths: list[int] = []
    while (weight := state.get(f"{name}.{2 * len(widths)}.weight")) is not None:
        if weight.dim() != 2 or (widths and weight.shape[1] != widths[-1]):
            layer = f"{name}.{2 * len(widths)}"
            raise ValueError(f"convert: {layer}.weight has shape {tuple(weight.shape)}, which does not fit its trunk")
        widths.append(weight.shape[0])
    return (widths[-1], widths[:-1]) if widths else (0, [])


def load(model: nn.Module, path: str | Path) -> list[str]:
    """Load a converted file into a model, and set its deformable layers as the record says.

    `mask_scale` and `boundary` of the model's layers are set where the record has them; the other settings determine
    shapes and must be right already. An error leaves the model unchanged.

    Args:
        model: has the parameters of the file, and deformable layers where the file has them.
        path: a file that `pliant convert` or :func:`write` wrote.

    Returns:
        The names of the model that are not in the file: new offset branches and batch counters only.

    Raises:
        ValueError: the file has no record, or does not fit the model; the sentence says what differs.
    """
    state, _, record = read(path)
    if "layers" not in record:
        raise ValueError(f"load: {path} has no record of its layers; convert it first (pliant convert)")
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in wanted]
    other = [name for name in state if name in wanted and state[name].shape != wanted[name].shape]
    needed = [n for n in missing if ".conv_offset." not in n and not n.endswith("num_batches_tracked")]
    heads = {name.partition(".")[0] for name in needed}
    if needed and heads <= {"rpn", "fc1", "fc2", "classifier", "regressor", "pool"}:
        raise ValueError(
            f"load: {path} has no heads, which the model needs ({', '.join(sorted(heads))}): convert the whole "
            f"detector, pliant convert IN OUT --from {record.get('source')} without --take, or load the parts it has"
        )
    for names, what in ((needed, "lacks"), (unknown, "has beside the model"), (other, "has in another shape")):
        if names:
            some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            raise ValueError(f"load: {path} does not fit the model, it {what} {len(names)} of the tensors: {some}")
    layers: dict[nn.Module, dict[str, Any]] = {}
    for name, settings in record["layers"].items():
        layer = model.get_submodule(name)
        pools = "hidden" in settings
        alike = isinstance(layer, DeformablePool) and hasattr(layer, "hidden")
        if not (alike if pools else isinstance(layer, DeformableConvolution)):
            what = "pools RoIs" if pools else "is deformable"
            raise ValueError(f"load: {name} {what} in {path}, in the model it is a {type(layer).__name__}")
        for setting in ("version",) if pools else ("version", "offset_groups"):
            if getattr(layer, setting) != settings[setting]:
                raise ValueError(
                    f"load: {name} has {setting}={getattr(layer, setting)}, in {path} it has {settings[setting]}"
                )
        layers[layer] = settings
    for layer, settings in layers.items():
        for setting in ("mask_scale", "boundary"):
            if setting in settings:
                setattr(layer, setting, settings[setting])
    with torch.no_grad():
        model.load_state_dict(state, strict=False)
    return missing
