"""Checks of shapes, dtypes and devices, and the wording of their errors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LOW = (torch.bfloat16, torch.float16)
# Sizes from here on are refused: their products would leave 64 bits.
LIMIT = 2**31
# Samples per bin and direction, likewise: their positions would no longer differ in float32, and a call takes minutes.
SAMPLES = 2**16
SPELLED = {LIMIT: "2³¹", SAMPLES: "2¹⁶"}


def pair(op: str, name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """Return `value` as (vertical, horizontal), each at least `least`."""
    if type(value) is int and least <= value < LIMIT:
        return value, value
    vertical, horizontal = numbers(op, name, value, least, 2)
    return vertical, horizontal


def numbers(op: str, name: str, value: int | Sequence[int], least: int, count: int) -> tuple[int, ...]:
    """Return `value` as one number for each of `count` axes, each at least `least`."""
    if type(value) is int and least <= value < LIMIT:
        return (value,) * count
    given = tuple(value) if isinstance(value, Sequence) else (value,) * count
    if len(given) != count or not all(isinstance(v, int | torch.SymInt) and not isinstance(v, bool) for v in given):
        several = {1: "a sequence of one", 2: "a pair of ints", 3: "three ints"}[count]
        raise TypeError(f"{op}: {name} must be an int or {several}, got {value!r}")
    if any(v < least for v in given):
        raise ValueError(f"{op}: {name} must be at least {least}, got {value!r}")
    if any(type(v) is int and v >= LIMIT for v in given):
        raise ValueError(f"{op}: {name} must be less than 2³¹, got {value!r}")
    return given


def shape(op: str, name: str, tensor: Tensor, letters: str, expected: tuple[int, ...], hint: str = "") -> None:
    """Raise ValueError unless `tensor` has the `expected` shape, written in symbols as `letters`."""
    if tensor.dim() != len(expected) or any(a != b for a, b in zip(tensor.shape, expected, strict=True)):
        wanted, got = tuple(int(n) for n in expected), tuple(int(n) for n in tensor.shape)
        # A single format string: torch.compile traces it with symbolic sizes, but not the concatenation of strings.
        hint = f" {hint}" if hint else ""
        raise ValueError(f"{op}: {name} must have shape {letters} = {wanted}, got {got}.{hint}")


def rank(op: str, name: str, tensor: Tensor, letters: str) -> None:
    """Raise ValueError unless `tensor` has as many dimensions as `letters` names."""
    if tensor.dim() != len(letters.split()):
        spelled = ", ".join(letters.split())
        raise ValueError(f"{op}: {name} must have shape ({spelled}), got {tuple(int(n) for n in tensor.shape)}")


def tensors(op: str, **named: object) -> None:
    """Raise TypeError unless every value is a tensor."""
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")


def device(op: str, first: str, tensor: Tensor, **others: Tensor | None) -> None:
    """Raise ValueError unless every tensor is on the device of the first."""
    for name, other in others.items():
        if other is not None and other.device != tensor.device:
            raise ValueError(f"{op}: {name} is on {other.device}, {first} on {tensor.device}; move one of them")


def dtype(op: str, name: str, tensor: Tensor, allowed: Sequence[torch.dtype] = DTYPES) -> None:
    """Raise TypeError unless the dtype of `tensor` is one of `allowed`."""
    if tensor.dtype not in allowed:
        spelled = " or ".join(str(d).removeprefix("torch.") for d in allowed)
        raise TypeError(f"{op}: {name} must be {spelled}, got {str(tensor.dtype).removeprefix('torch.')}")


def autocast(kind: str, tensor: Tensor | None) -> Tensor | None:
    """Cast a tensor to autocast's low precision where it is on for a device type; float64 stays, as in PyTorch."""
    if tensor is None or kind == "meta" or not torch.is_autocast_enabled(kind):
        return tensor
    return tensor.to(torch.get_autocast_dtype(kind)) if tensor.dtype in (torch.float32, *LOW) else tensor


def wide(predicted: Tensor) -> Tensor:
    """Return the prediction of a layer's branch, in float32 under autocast: coordinates need the precision."""
    if has_torch_function_unary(predicted):
        result: Tensor = handle_torch_function(wide, (predicted,), predicted)
        return result
    kind = predicted.device.type
    low = kind != "meta" and torch.is_autocast_enabled(kind)
    return predicted.float() if low and predicted.dtype in LOW else predicted


def layer(
    name: str, argument: str, tensor: Tensor, letters: str, channels: int, own: torch.nn.Module, axis: int = 1
) -> None:
    """Raise unless the input of a layer is a tensor of the rank that `letters` names, with its channels and dtype.

    Channels lie along `axis`. The dtype is that of the weight of `own`, if that is a plain parameter; under autocast it
    may be another one.
    """
    if isinstance(tensor, torch.fx.Proxy):
        # torch.fx records calls without values; the operators check theirs when the graph runs.
        return
    tensors(name, **{argument: tensor})
    rank(name, argument, tensor, letters)
    if tensor.shape[axis] != channels:
        got = tuple(int(n) for n in tensor.shape)
        raise ValueError(f"{name}: {argument} must have {channels} channels, got shape {got}")
    weight, kind = own._parameters.get("weight"), tensor.device.type
    if weight is not None and weight.dtype != tensor.dtype and (kind == "meta" or not torch.is_autocast_enabled(kind)):
        given, has = (str(t.dtype).removeprefix("torch.") for t in (tensor, weight))
        raise TypeError(f"{name}: {argument} is {given}, the layer {has}; convert one of them")


def not_scripted(layer: torch.nn.Module) -> torch.nn.Module:
    """Raise when `torch.jit.script` asks a layer for what it is to compile: as its ``__prepare_scriptable__``."""
    name = type(layer).__name__
    raise TypeError(f"{name}: torch.jit.script cannot compile it; use torch.jit.trace, torch.export or torch.compile")
