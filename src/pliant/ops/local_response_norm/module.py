"""The local response normalization layer."""

from __future__ import annotations

from torch import Tensor, nn

from pliant.ops.local_response_norm.op import local_response_norm


class LocalResponseNorm(nn.Module):
    """Normalize each value by its neighbours' energy."""

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, input: Tensor) -> Tensor:
        return local_response_norm(input, self.size, self.alpha, self.beta, self.k)
