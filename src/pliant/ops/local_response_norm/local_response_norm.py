"""Local response normalization: the public functions, their checks, and the declaration."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from pliant import _check
from pliant.ops import _declare
from pliant.ops.local_response_norm import reference

_OP = "local_response_norm"
REGIONS = ("channel", "spatial")
EVEN = ("left", "right")


def local_response_norm(
    input: Tensor,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    region: str = "channel",
    even: str = "left",
    implementation: str = "auto",
) -> Tensor:
    """Normalize each value by the energy of its neighbours: PyTorch's, Caffe's and ONNX's convention.

    ``y_i = x_i·(k + alpha/n·Σ_{j∈W(i)} x_j²)^−beta``, where n is the number of elements in the window: `size`, or size²
    with ``region="spatial"``. For TensorFlow's convention, a sum instead of a mean, see :func:`lrn`.

    At the edges, elements outside the tensor are 0 and counted. The divisor may be 0 only where ``k = 0`` and the whole
    window is 0: 0/0 is NaN there. Every window is summed anew, never updated from its neighbour;
    sums are float32 (float64 for float64 input), so that squares of float16 values above 256 do not overflow. Under
    autocast the operator runs in the low precision.

    Args:
        input: (N, C, ...), at least two dimensions; for "spatial" (N, C, ..., H, W), at least four. Contiguous and
            channels_last tensors are read without copies; the output has input's memory format.
        size: elements in the window, at least 1; odd for "spatial". Larger than the tensor is allowed.
        alpha: weight of the mean square.
        beta: exponent; 0.5, 0.75 and 1 are the fastest.
        k: added to the mean square. Caffe ignores its k in the spatial region: ``k=1`` reproduces it.
        region: "channel", `size` neighbours along dimension 1, or "spatial", size × size neighbours in the last two
            dimensions (Caffe's WITHIN_CHANNEL).
        even: the longer side of an even channel window: "left" is ``[i − size//2, i + (size−1)//2]``, as
            in PyTorch; "right" is its mirror, as in ONNX and cuDNN.
        implementation: "auto", "native" (the compiled kernel or an error) or "reference" (plain PyTorch).

    Returns:
        input's shape and dtype. Differentiable any number of times: the first derivative is a kernel, higher ones go
        through the reference. Forward and backward are deterministic bit for bit, for any number of threads.

    Raises:
        TypeError: `input` is not a tensor of float32, float64, bfloat16 or float16, `size` not an int, `alpha`, `beta`
            or `k` not a number.
        ValueError: too few dimensions, ``size < 1``, an even `size` with "spatial", an unknown region, side or
            implementation.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012,
    section 3.3. Arguments of torch.nn.functional.local_response_norm.

    >>> x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    >>> local_response_norm(x, 3, alpha=3.0, beta=1.0, k=0.0).flatten()
    tensor([0.2000, 0.1429, 0.1034, 0.1600])
    """
    if has_torch_function_variadic(input):
        return _declare.handed_over(local_response_norm, locals())
    _check.tensors(_OP, input=input)
    check_arguments(_OP, size, alpha, beta, k, region, even)
    spatial = region == "spatial"
    least, letters = (4, "(N, C, ..., H, W)") if spatial else (2, "(N, C, ...)")
    _check_input(_OP, input, least, letters)
    before, after, count = window(int(size), spatial, even == "right")
    numbers = float(alpha / count), float(beta), float(k)
    return _run(implementation, input, 1, before, after, spatial, *numbers)


def lrn(
    input: Tensor,
    depth_radius: int = 5,
    bias: float = 1.0,
    alpha: float = 1.0,
    beta: float = 0.5,
    *,
    implementation: str = "auto",
) -> Tensor:
    """Normalize each value by the energy of its neighbours in the last dimension: TensorFlow's convention.

    ``y_i = x_i·(bias + alpha·Σ_{j=i−r}^{i+r} x_j²)^−beta`` with ``r = depth_radius``: alpha multiplies the sum, not the
    mean. ``lrn(x, r, bias, alpha, beta)`` of a channels-last array is ``local_response_norm(x, 2·r + 1,
    (2·r + 1)·alpha, beta, bias)`` of the same array with its channels in dimension 1.

    At the edges the window is cut off. The divisor may be 0 only where ``bias = 0`` and the whole window is 0: 0/0 is
    NaN there. Precision, sums, autocast and determinism are those of :func:`local_response_norm`.

    Args:
        input: (..., C), at least one dimension.
        depth_radius: r, neighbours on each side, at least 0. Larger than C is allowed.
        bias: added to the sum of squares.
        alpha: weight of the sum of squares.
        beta: exponent; 0.5, 0.75 and 1 are the fastest.
        implementation: "auto", "native" (the compiled kernel or an error) or "reference" (plain PyTorch).

    Returns:
        input's shape, dtype and memory format.

    Raises:
        TypeError: `input` is not a tensor of float32, float64, bfloat16 or float16, `depth_radius` not an int, `bias`,
            `alpha` or `beta` not a number.
        ValueError: no dimension, ``depth_radius < 0``, an unknown implementation.
        RuntimeError: ``implementation="native"`` where there is no kernel.

    Source: tf.nn.local_response_normalization (tf.nn.lrn); AlexNet's own constants are ``lrn(x, 2, 2.0, 1e-4, 0.75)``.

    >>> x = torch.arange(1.0, 33.0).view(2, 2, 2, 4)
    >>> y = lrn(x, depth_radius=2, bias=0, alpha=1, beta=1)
    >>> y[0, 0, 0]
    tensor([0.0714, 0.0667, 0.1000, 0.1379])
    >>> y[1, 1, 1]
    tensor([0.0107, 0.0081, 0.0083, 0.0111])
    """
    if has_torch_function_variadic(input):
        return _declare.handed_over(lrn, locals())
    op = "lrn"
    _check.tensors(op, input=input)
    _integer(op, "depth_radius", depth_radius, 0)
    _numbers(op, bias=bias, alpha=alpha, beta=beta)
    _check_input(op, input, 1, "(..., C)")
    r = int(depth_radius)
    numbers = float(alpha), float(beta), float(bias)
    return _run(implementation, input, input.dim() - 1, r, r, False, *numbers, called=op)


def window(size: int, spatial: bool, right: bool) -> tuple[int, int, int]:
    """Return how many elements of a window lie before and after its middle, and how many it has.

    TorchScript compiles this function as part of the layer.
    """
    if spatial:
        return size // 2, size // 2, size * size
    if right:
        return (size - 1) // 2, size // 2, size
    return size // 2, (size - 1) // 2, size


def check_arguments(op: str, size: int, alpha: float, beta: float, k: float, region: str, even: str) -> None:
    """Raise unless all arguments but the input are those of :func:`local_response_norm`; the layer calls it too."""
    _integer(op, "size", size, 1)
    _numbers(op, alpha=alpha, beta=beta, k=k)
    if region not in REGIONS:
        raise ValueError(f"{op}: region must be one of {REGIONS}, got {region!r}")
    if even not in EVEN:
        raise ValueError(f"{op}: even must be one of {EVEN}, got {even!r}")
    if region == "spatial" and size % 2 == 0:
        raise ValueError(f"{op}: size must be odd with region='spatial', got {int(size)}")


def _integer(op: str, name: str, value: object, least: int) -> None:
    if not isinstance(value, int | torch.SymInt) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {int(value)}")


def _numbers(op: str, **named: object) -> None:
    for name, value in named.items():
        if not isinstance(value, int | float | torch.SymInt | torch.SymFloat):
            raise TypeError(f"{op}: {name} must be a number, got {value!r}")


def _check_input(op: str, input: Tensor, least: int, letters: str) -> None:
    if input.dim() < least:
        raise ValueError(f"{op}: input must have shape {letters}, got {tuple(int(n) for n in input.shape)}")
    _check.dtype(op, "input", input)


def _shape(input: Tensor, *window: object) -> torch.Size:
    """Return the shape of the output; the public functions check, as their arguments differ."""
    return input.shape


def _triton() -> ModuleType:
    from pliant.ops.local_response_norm import triton

    return triton


# The backward computes the sums again from the input, which is faster than reading them from memory.
_run = _declare.declare(
    _OP,
    "Tensor input, int dim, int before, int after, bool spatial, float a, float beta, float k",
    _shape,
    reference.local_response_norm,
    _triton,
    gradients=("input",),
    elementwise=True,
    also=("lrn",),
)
