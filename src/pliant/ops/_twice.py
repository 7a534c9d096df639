"""Second derivatives of operators whose first derivative is a kernel: by way of the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def differentiate(
    function: Callable[..., Tensor],
    grad: Tensor,
    tensors: Sequence[Tensor | None],
    wanted: int,
    above: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Differentiate the gradients of `function`, which is differentiable any number of times.

    Args:
        function: from `tensors` to the output.
        grad: the output's gradient, from which the first derivatives were computed.
        tensors: what `function` is differentiated in; None stays None.
        wanted: one bit for every tensor of which the first derivative was computed.
        above: the gradients of those first derivatives, None where there is none.

    Returns:
        The gradients of `grad` and of each tensor.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Own nodes for every tensor: where a third derivative is asked for they stay tied to the saved ones.
        saved = [None if t is None else t.view_as(t) if again else t.detach() for t in (grad, *tensors)]
        present = [t for t in saved if t is not None]
        for t in present:
            if not t.requires_grad:
                t.requires_grad_()
        output = function(*saved[1:])
        asked = [(t, g) for i, (t, g) in enumerate(zip(saved[1:], above, strict=True)) if wanted >> i & 1]
        pairs = [(t, g) for t, g in asked if t is not None and g is not None]
        first = torch.autograd.grad(output, [t for t, _ in pairs], saved[0], create_graph=True)
        second = torch.autograd.grad(first, present, [g for _, g in pairs], create_graph=again, allow_unused=True)
    found = iter(second)
    return [None if t is None else next(found) for t in saved]
