"""Local response normalization: the public functions, and what torch must know about them."""

from __future__ import annotations

from torch import Tensor

from pliant.ops.local_response_norm import reference


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
    """Normalize each value by its neighbours' energy, PyTorch's convention."""
    if region == "spatial":
        return reference.within_channel(input, size, alpha / size**2, beta, k)
    before, after = size // 2, (size - 1) // 2
    if even == "right":
        before, after = after, before
    return reference.local_response_norm(input, 1, before, after, alpha / size, beta, k)


def lrn(
    input: Tensor,
    depth_radius: int = 5,
    bias: float = 1.0,
    alpha: float = 1.0,
    beta: float = 0.5,
    *,
    implementation: str = "auto",
) -> Tensor:
    """Normalize each value by its neighbours' energy over the last dimension, TensorFlow's convention."""
    return reference.local_response_norm(input, -1, depth_radius, depth_radius, alpha, beta, bias)
