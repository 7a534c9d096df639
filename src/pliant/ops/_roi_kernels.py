"""What torch must know about the RoI averages: schema, fake kernels, autograd.

The CPU kernels are in csrc/roi_average/, those for GPUs in _averaging_triton/, which the first call imports.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pliant import _native
from pliant.ops import _twice


def declare(
    op: str,
    geometry: str,
    moved: bool,
    shape: Callable[..., tuple[int, int, int, int]],
    reference: Callable[..., Tensor],
) -> Callable[..., Tensor]:
    """Declare an operator and its gradients to torch.

    Args:
        op: its name.
        geometry: the schema of what follows the tensors.
        moved: whether its tensors are input, rois, offset and mask, or the first two alone.
        shape: checks the operator's arguments and returns the output's shape.
        reference: computes the output from them, differentiable any number of times.

    Returns:
        what runs the operator, given an implementation (see ``_native.chosen``) and its arguments.
    """
    tensors = "Tensor input, Tensor rois" + (", Tensor? offset, Tensor? mask" if moved else "")
    # `wanted` holds one bit per gradient, in the order of the outputs; those not asked for come back empty.
    more, outputs = (", int wanted", "(Tensor input, Tensor offset, Tensor mask)") if moved else ("", "Tensor")
    _native.library.define(f"{op}({tensors}, {geometry}) -> Tensor")
    _native.library.define(f"{op}_backward(Tensor grad, {tensors}, {geometry}{more}) -> {outputs}")
    forward, backward = (getattr(torch.ops.pliant, name).default for name in (op, f"{op}_backward"))

    def split(arguments: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
        """Return input, rois, offset and mask, the last two None where there are none, and the geometry."""
        count = 4 if moved else 2
        return [*arguments[:count], *[None] * (4 - count)], [*arguments[count:]]

    def fake(*arguments: Any) -> Tensor:
        result: Tensor = arguments[0].new_empty(shape(*arguments))
        return result.to(memory_format=torch._prims_common.suggest_memory_format(arguments[0]))

    def fake_backward(grad: Tensor, *arguments: Any) -> Tensor | tuple[Tensor, ...]:
        (input, _, offset, mask), rest = split(arguments)
        form = torch._prims_common.suggest_memory_format(input)
        wanted = rest[-1] if moved else 1
        found = [
            t.new_empty(t.shape).to(memory_format=f) if t is not None and wanted >> i & 1 else input.new_empty(0)
            for i, (t, f) in enumerate(((input, form), *((t, torch.contiguous_format) for t in (offset, mask))))
        ]
        return tuple(found) if moved else found[0]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        given, ctx.geometry = split(inputs)
        ctx.save_for_backward(*given)

    def gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, rois, offset, mask = ctx.saved_tensors
        nothing = [None] * len(ctx.geometry)
        if not moved:
            wanted = ctx.needs_input_grad[0]
            return (backward(grad, input, rois, *ctx.geometry) if wanted else None, None, *nothing)
        needed = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
        bits = sum(1 << i for i, n in enumerate(needed) if n)
        found = backward(grad, input, rois, offset, mask, *ctx.geometry, bits) if bits else (None,) * 3
        d_input, d_offset, d_mask = (g if n else None for g, n in zip(found, needed, strict=True))
        return (d_input, None, d_offset, d_mask, *nothing)

    def setup_context_twice(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad, *arguments = inputs
        given, ctx.geometry = split(tuple(arguments))
        ctx.wanted = ctx.geometry.pop() if moved else 1
        ctx.save_for_backward(grad, *given)

    def twice(ctx: Any, *above: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, input, rois, offset, mask = ctx.saved_tensors

        def output(input: Tensor, offset: Tensor | None, mask: Tensor | None) -> Tensor:
            return reference(input, rois, *((offset, mask) if moved else ()), *ctx.geometry)

        above = above if moved else (*above, None, None)
        d_grad, d_input, d_offset, d_mask = _twice.differentiate(output, grad, (input, offset, mask), ctx.wanted, above)
        nothing = [None] * len(ctx.geometry)
        if not moved:
            return (d_grad, d_input, None, *nothing)
        return (d_grad, d_input, None, d_offset, d_mask, *nothing, None)

    for name, kernel, derivative, setup in (
        (op, fake, gradients, setup_context),
        (f"{op}_backward", fake_backward, twice, setup_context_twice),
    ):
        torch.library.register_fake(f"pliant::{name}", kernel, lib=_native.library)
        torch.library.register_autograd(f"pliant::{name}", derivative, setup_context=setup, lib=_native.library)

    def on_gpu(*arguments: Any) -> Tensor:
        from pliant.ops import _averaging_triton

        return _averaging_triton.forward(op, *arguments)

    def on_gpu_backward(*arguments: Any) -> Tensor | tuple[Tensor, ...]:
        from pliant.ops import _averaging_triton

        return _averaging_triton.backward(op, *arguments)

    _native.on_gpu(op, on_gpu)
    _native.on_gpu(f"{op}_backward", on_gpu_backward)

    def run(implementation: str, *arguments: Any) -> Tensor:
        if _native.chosen(op, implementation, arguments[0]):
            result: Tensor = forward(*arguments)
            return result
        form = torch._prims_common.suggest_memory_format(arguments[0])
        return reference(*arguments).contiguous(memory_format=form)

    return run
