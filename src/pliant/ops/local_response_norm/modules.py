"""The local response normalization layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pliant.ops.local_response_norm.local_response_norm import check_arguments, local_response_norm, window


class LocalResponseNorm(nn.Module):
    """Normalize each value by the energy of its neighbours: `torch.nn.LocalResponseNorm` with more options.

    ``y_i = x_i·(k + alpha/n·Σ_{j∈W(i)} x_j²)^−beta``, as :func:`pliant.ops.local_response_norm`, which says what
    happens at the edges. The layer has no parameters.

    Args:
        size: elements in the window, at least 1; odd for ``region="spatial"``.
        alpha: weight of the mean square.
        beta: exponent.
        k: added to the mean square.
        region: "channel" or "spatial".
        even: "left" (PyTorch) or "right" (ONNX, cuDNN), for even sizes.

    Shape:
        (N, C, ...) → the same; for "spatial" (N, C, ..., H, W).

    Raises:
        TypeError: `size` is not an int, `alpha`, `beta` or `k` not a number.
        ValueError: `size` below 1, or even for "spatial"; an unknown region or `even`.

    Source: Krizhevsky, Sutskever, Hinton, NIPS 2012, section 3.3.

    >>> LocalResponseNorm(5, alpha=5e-4, k=2.0)  # AlexNet's constants: alpha is 1e-4 per element
    LocalResponseNorm(5, alpha=0.0005, beta=0.75, k=2.0)
    """

    def __init__(
        self,
        size: int,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 1.0,
        *,
        region: str = "channel",
        even: str = "left",
    ) -> None:
        super().__init__()
        check_arguments("LocalResponseNorm", size, alpha, beta, k, region, even)
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k
        self.region, self.even = region, even

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            # TorchScript compiles no checks, and the operator alone.
            spatial = self.region == "spatial"
            before, after, count = window(self.size, spatial, self.even == "right")
            numbers = (float(self.alpha) / count, float(self.beta), float(self.k))
            output: Tensor = torch.ops.pliant.local_response_norm(input, 1, before, after, spatial, *numbers)
            return output
        return local_response_norm(input, self.size, self.alpha, self.beta, self.k, region=self.region, even=self.even)

    def extra_repr(self) -> str:
        text = f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
        if self.region != "channel":
            text += f", region={self.region!r}"
        return text + (f", even={self.even!r}" if self.even != "left" else "")
