"""Put deformable layers into a trained network in place of its convolutions, and back."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from pliant import _check
from pliant.ops.conv.modules import DeformConv1d, DeformConv2d, DeformConv3d, DeformConvTranspose2d, SlicedConv2d

Where = str | Sequence[str] | Callable[[str, nn.Module], bool]
_Layer = TypeVar("_Layer", bound=nn.Module)
_Plain = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d
_Deformable = DeformConv1d | DeformConv2d | DeformConv3d | DeformConvTranspose2d
# Convolutions and the layers that replace them.
_PAIRS: tuple[tuple[type[_Plain], type[_Deformable]], ...] = (
    (nn.Conv1d, DeformConv1d),
    (nn.Conv2d, DeformConv2d),
    (nn.Conv3d, DeformConv3d),
    (nn.ConvTranspose2d, DeformConvTranspose2d),
)


def deformify(
    model: nn.Module,
    where: Where,
    *,
    version: int = 2,
    offset_groups: int = 1,
    mask_scale: float = 2.0,
    boundary: str = "zeros",
) -> nn.Module:
    """Replace chosen convolutions of a model by deformable layers that keep their weights.

    Version 1, and version 2 with ``mask_scale=2``, leave the model's output as it was: the new offset branches start at
    zero, so offsets are 0 and masks 1. `weight` and `bias` remain the same parameters, frozen ones remain frozen, and
    their names in the state dict do not change; ``NAME.conv_offset.weight`` and ``.bias`` are new. No random number is
    drawn. If an error is raised, the model is unchanged.

    `nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d` and `nn.ConvTranspose2d` layers with a kernel of more than one tap are
    replaced, but not the offset branches of deformable layers that the model already has. Groups (also depthwise
    convolutions), dilation and ``padding="same"`` are preserved. A convolution that occurs several times in the model
    is replaced everywhere by one layer.

    Args:
        model: any module; it is changed in place.
        where: the name of a part ("layer4" means everything in it), a pattern of names ("layer[34].*.conv2", where "*"
            also matches dots), "last 3" (in the order in which the model lists its modules), a sequence of these, or a
            function of name and convolution that returns True for those to replace.
        version: 1 (offsets) or 2 (offsets and mask).
        offset_groups: G, groups of channels with separate offsets; divides the input channels of every layer, of
            transposed ones the output channels.
        mask_scale: factor of the sigmoid. With 1.0 (the paper's text, mmcv, detectron2) the output before the bias
            starts at half of the convolution's.
        boundary: "zeros" or "clamp".

    Returns:
        The model, or the new layer if `model` itself is the convolution that is replaced.

    Raises:
        TypeError: `where` is none of these, or `model` is not a module.
        ValueError: the model is traced or scripted; `where` matches nothing; or a chosen layer cannot be replaced: its
            padding mode is not zeros, it is a subclass with its own forward, its weight is computed (weight norm,
            pruning, a parametrization) or uninitialised (lazy), it has hooks, or `offset_groups` does not divide its
            channels. The message names the layer.

    Source: Zhu et al., CVPR 2019, section 4.1, replaces the 3×3 convolutions of conv3 to conv5; the mask scale is that
    of MXNet's example.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8))
    >>> x = torch.randn(1, 3, 9, 9)
    >>> before = model(x)
    >>> torch.allclose(deformify(model, "last 1")(x), before, atol=1e-5)
    True
    >>> model[2].conv_offset.out_channels
    27
    """
    op = "deformify"
    _open(op, model)
    branches = {layer.conv_offset for layer in model.modules() if isinstance(layer, _Deformable)}
    places = _places(
        model, (m for m in model.modules() if isinstance(m, _Plain) and m not in branches and max(m.kernel_size) > 1)
    )
    swaps: list[tuple[list[str], nn.Module]] = []
    for conv in _chosen(op, places, where, "convolutions with a kernel of more than one tap"):
        name = _quoted(places[conv])
        obstacle = _obstacle(conv)
        if obstacle:
            raise ValueError(f"{op}: layer {name} {obstacle}")
        try:
            # On the meta device nothing is allocated or drawn: all of it is replaced below.
            layer = _deformable(
                conv,
                version=version,
                offset_groups=offset_groups,
                mask_scale=mask_scale,
                boundary=boundary,
                device="meta",
                dtype=conv.weight.dtype,
            )
        except ValueError as error:
            raise ValueError(f"{op}: layer {name}: {str(error).partition(': ')[2]}") from None
        for kept in ("weight", "bias"):
            setattr(layer, kept, getattr(conv, kept))
        layer.conv_offset.to_empty(device=conv.weight.device)
        for parameter in layer.conv_offset.parameters():
            nn.init.zeros_(parameter)
        swaps.append((places[conv], layer.train(conv.training)))
    return _swap(model, swaps)


def undeformify(model: nn.Module, where: Where | None = None) -> nn.Module:
    """Replace deformable layers that do not move their samples by plain convolutions, without changing the output.

    This is possible if the weights of a layer's offset branch and the biases of its offsets are 0. Masks are then the
    same at every position, ``mask_scale·sigmoid(bias)`` for each group and tap, and are multiplied into the weight. If
    all masks are 1, the convolution has the layer's own parameters, otherwise a new weight. If an error is raised, the
    model is unchanged.

    Args:
        model: any module; it is changed in place.
        where: as in :func:`deformify`, but for the deformable convolutions in the model; None takes all.

    Returns:
        The model, or the new convolution if `model` itself is the layer that is replaced.

    Raises:
        TypeError: `where` is none of these, or `model` is not a module.
        ValueError: the model is traced or scripted; `where` matches nothing; or a chosen layer moves its samples, has
            hooks, or takes a guide. The message names the layer.

    >>> layer = DeformConv2d(4, 6, 3, padding=1)
    >>> undeformify(layer)
    Conv2d(4, 6, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    """
    op = "undeformify"
    _open(op, model)
    places = _places(model, (m for m in model.modules() if isinstance(m, _Deformable)))
    swaps: list[tuple[list[str], nn.Module]] = []
    for layer in _chosen(op, places, (lambda name, layer: True) if where is None else where, "deformable convolutions"):
        name = _quoted(places[layer])
        offsets = len(layer.axes) * layer.offset_groups * math.prod(layer.kernel_size)
        weight, bias = layer.conv_offset.weight.detach(), layer.conv_offset.bias
        moves = weight.is_meta or bool(weight.any()) or (bias is not None and bool(bias.detach()[:offsets].any()))
        if moves:
            raise ValueError(f"{op}: layer {name} moves its samples, no plain convolution equals it")
        if layer.guide_channels is not None:
            raise ValueError(f"{op}: layer {name} takes a guide, no plain convolution does")
        if _hooked(layer) or _hooked(layer.conv_offset):
            raise ValueError(f"{op}: layer {name} has hooks, which would be lost; remove them first")
        conv = _plain(layer, device="meta", dtype=layer.weight.dtype)
        conv.weight, conv.bias = _folded(layer), layer.bias
        swaps.append((places[layer], conv.train(layer.training)))
    return _swap(model, swaps)


def _open(op: str, model: nn.Module) -> None:
    """Raise if the model has no layers that could be replaced."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be an nn.Module, got a {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            f"{op}: a traced or scripted model has no layers to replace; replace them before tracing or scripting"
        )


def _places(model: nn.Module, layers: Iterable[_Layer]) -> dict[_Layer, list[str]]:
    """Return all names of each layer in the model, in the model's order."""
    places: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(name)
    return {layer: places[layer] for layer in layers}


def _chosen(op: str, places: dict[_Layer, list[str]], where: Where, noun: str) -> list[_Layer]:
    """Return the layers that `where` matches, in the model's order; each part of it must match at least one."""
    if callable(where):
        return _some(
            op, [m for m, names in places.items() if any(where(name, m) for name in names)], where, noun, places
        )
    parts = [where] if isinstance(where, str) else where
    if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
        raise TypeError(
            f"{op}: where must be a name, a pattern, 'last n', several of these, or a function, got {where!r}"
        )
    chosen: set[_Layer] = set()
    for part in parts:
        last = re.fullmatch(r"last (\d+)", part)
        if last:
            count = int(last[1])
            if not 1 <= count <= len(places):
                raise ValueError(f"{op}: where={part!r} asks for {count}, the model has {len(places)} {noun}")
            chosen |= set(list(places)[-count:])
        else:
            chosen |= set(_some(op, [m for m, names in places.items() if _named(names, part)], part, noun, places))
    return _some(op, [layer for layer in places if layer in chosen], where, noun, places)


def _named(names: list[str], part: str) -> bool:
    """Return whether one of the names is `part`, lies in it, or matches it as a pattern."""
    if any(letter in part for letter in "*?["):
        return any(fnmatch.fnmatchcase(name, part) for name in names)
    return any(name == part or name.startswith(f"{part}.") for name in names)


def _some(op: str, layers: list[_Layer], where: object, noun: str, places: dict[_Layer, list[str]]) -> list[_Layer]:
    if not places:
        raise ValueError(f"{op}: the model has no {noun}")
    if not layers:
        names = [names[0] for names in places.values()]
        some = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        raise ValueError(f"{op}: where={where!r} chooses none of the model's {noun}: {some}")
    return layers


def _deformable(conv: _Plain, **options: Any) -> _Deformable:
    """Return a deformable layer of the geometry of a convolution."""
    (layer,) = (deformable for plain, deformable in _PAIRS if isinstance(conv, plain))
    padding = conv.padding
    if isinstance(padding, str):
        padding = "same" if padding == "same" else (0,) * len(conv.kernel_size)
    own: dict[str, Any] = {
        "kernel_size": conv.kernel_size,
        "stride": conv.stride,
        "padding": padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
        "bias": conv.bias is not None,
    }
    if isinstance(conv, nn.ConvTranspose2d):
        own["output_padding"] = conv.output_padding
    return layer(conv.in_channels, conv.out_channels, **own, **options)


def _plain(layer: _Deformable, **options: Any) -> _Plain:
    """Return a convolution of the geometry of a deformable layer."""
    (kind,) = (plain for plain, deformable in _PAIRS if isinstance(layer, deformable))
    conv: Callable[..., _Plain] = SlicedConv2d.if_needed if kind is nn.Conv2d else kind
    own: dict[str, Any] = {
        "kernel_size": layer.kernel_size,
        "stride": layer.stride,
        "padding": "same" if any(layer.extra) else layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
        "bias": layer.bias is not None,
    }
    if isinstance(layer, DeformConvTranspose2d):
        own["output_padding"] = layer.output_padding
    return conv(layer.in_channels, layer.out_channels, **own, **options)


def _obstacle(conv: _Plain) -> str:
    """Return why a convolution cannot be replaced, or ""."""
    kind = type(conv)
    (own,) = (plain for plain, _ in _PAIRS if isinstance(conv, plain))
    if isinstance(conv.weight, nn.parameter.UninitializedParameter):
        return "is lazy and has no weight yet; run the model once first"
    if any(conv._parameters.get(name) is not getattr(conv, name, None) for name in ("weight", "bias")):
        return "computes its weight or bias (weight norm, pruning, a parametrization); make them plain parameters first"
    methods = ("forward", "_conv_forward", "_output_padding")
    if any(getattr(kind, name, None) is not getattr(own, name, None) for name in methods):
        return f"is a {kind.__name__} with a forward of its own, which a deformable layer would not follow"
    if conv.padding_mode != "zeros":
        return f"has padding_mode={conv.padding_mode!r}, but a deformable layer pads only with zeros"
    if _hooked(conv):
        return "has hooks, which would be lost; remove them first"
    if conv.weight.dtype not in _check.DTYPES:
        dtype = str(conv.weight.dtype).removeprefix("torch.")
        return f"computes in {dtype}, which deformable convolution does not support"
    return ""


def _hooked(module: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return any(getattr(module, kind) for kind in (*kinds, "_load_state_dict_pre_hooks"))


def _folded(layer: _Deformable) -> nn.Parameter:
    """Return the weight that a layer without offsets convolves with: its own if every mask is 1."""
    if layer.version == 1:
        return layer.weight
    G, groups, kernel = layer.offset_groups, layer.groups, layer.kernel_size
    first, second = layer.weight.shape[:2]
    bias = layer.conv_offset.bias
    with torch.no_grad():
        masks = G * math.prod(kernel)
        logits = layer.weight.new_zeros(masks) if bias is None else bias[len(layer.axes) * masks :]
        mask = layer.mask_scale * logits.sigmoid()
        if bool((mask == 1).all()):
            return layer.weight
        # Every channel that moves has its offset group's masks: input channels, or of a transposed layer the output's.
        # Those of convolution group j are the second dimension of the j-th part of the first.
        factor = mask.view(G, *kernel).repeat_interleave(groups * second // G, 0).view(groups, 1, second, *kernel)
        weight = (layer.weight.view(groups, first // groups, second, *kernel) * factor).view(first, second, *kernel)
    return nn.Parameter(weight, requires_grad=layer.weight.requires_grad)


def _swap(model: nn.Module, swaps: list[tuple[list[str], nn.Module]]) -> nn.Module:
    for names, layer in swaps:
        for name in names:
            if name == "":
                return layer
            model.set_submodule(name, layer)
    return model


def _quoted(names: list[str]) -> str:
    return repr(names[0]) if names[0] else "(the model itself)"
