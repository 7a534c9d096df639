"""Kernels and references agree with the reference in float64: outputs and gradients, in every dtype and layout."""

from __future__ import annotations

import pytest
import torch

from pliant.testing import TOLERANCE, error

from .contract import DIFFERENTIABLE, IMPLEMENTATIONS, LAYOUTS, Problem, Tensors, above, differentiate, each, problems

PROBLEMS = problems()


def _exact(problem: Problem, tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """Return output and gradients by the reference in float64, of the same rounded inputs."""
    work = torch.float32 if problem.op.jumps and dtype != torch.float64 else torch.float64
    wide = {name: t.to(work) if t.is_floating_point() else t for name, t in tensors.items()}
    # In low precision the gradient above is rounded too, to the same numbers.
    return differentiate(problem, wide, "reference", grad=lambda output: above(output.to(dtype)).to(work))


def _agree(found: Tensors, expected: Tensors, tensors: Tensors, dtype: torch.dtype, layout: str) -> None:
    for name, value in found.items():
        if value.is_floating_point():
            assert value.dtype == (dtype if name == "output" else tensors[name].dtype), (layout, name)
            assert error(value, expected[name]) < TOLERANCE[dtype], (layout, name)
        else:
            assert torch.equal(value, expected[name]), (layout, name)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@each(PROBLEMS)
def test_kernel_matches_the_reference(problem: Problem, dtype: torch.dtype) -> None:
    if dtype not in problem.op.dtypes:
        pytest.skip("there is no such kernel")
    drawn = problem.tensors(dtype)
    expected = _exact(problem, drawn, dtype)
    for layout, change in LAYOUTS.items():
        tensors = change(drawn)
        _agree(differentiate(problem, tensors, "native"), expected, tensors, dtype, layout)
    for layout in ("contiguous", "sliced"):
        tensors = LAYOUTS[layout](drawn)
        _agree(differentiate(problem, tensors, "reference"), expected, tensors, dtype, f"reference, {layout}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each(PROBLEMS)
def test_eager_short_cut_gives_the_bits_of_the_kernel(problem: Problem, dtype: torch.dtype) -> None:
    # implementation="auto" passes by torch's dispatcher where it can, "native" does not.
    drawn = problem.tensors(dtype)
    for layout, change in LAYOUTS.items():
        tensors = change(drawn)
        expected = differentiate(problem, tensors, "native")
        for name, value in differentiate(problem, tensors, "auto").items():
            assert torch.equal(value, expected[name]), (layout, name)
            assert value.stride() == expected[name].stride(), (layout, name)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each([p for p in problems(DIFFERENTIABLE, 2) if p.op.wide and not p.without])
def test_float32_tensors_beside_low_precision(problem: Problem, dtype: torch.dtype, implementation: str) -> None:
    for wide in [(name,) for name in problem.op.wide] + [problem.op.wide]:
        exact, low = problem.tensors(), problem.tensors(dtype)
        tensors = {name: exact[name] if name in wide else t for name, t in low.items()}
        found = differentiate(problem, tensors, implementation)
        _agree(found, _exact(problem, tensors, dtype), tensors, dtype, "+".join(wide))
