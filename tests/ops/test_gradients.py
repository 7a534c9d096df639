"""Gradients: by finite differences, any number of times, only those asked for, in any layout, and nothing else kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks

from pliant.ops.table import Operator
from pliant.testing import TOLERANCE, error

from .contract import (
    DIFFERENTIABLE,
    IMPLEMENTATIONS,
    Problem,
    above,
    channels_last,
    differentiate,
    each,
    each_operator,
    leaves,
    problems,
    raw_calls,
)

SMALL = problems(DIFFERENTIABLE, small=True)
FIRST = [p for p in problems(DIFFERENTIABLE, 1) if not p.without]
LAST_SMALL = [Problem(op, op.small[-1]) for op in DIFFERENTIABLE]
# Above so many elements second derivatives are checked along random directions, below entry by entry.
FEW = 60

on_each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def _function(
    problem: Problem, implementation: str, fixed: Sequence[str] = ()
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """Return the operator as a function of its differentiable tensors but the fixed ones, and these in float64."""
    names = [name for name in problem.gradients if name not in fixed]
    tensors = leaves(problem.tensors(torch.float64), names)

    def function(*values: Tensor) -> Tensor:
        return problem.call({**tensors, **dict(zip(names, values, strict=True))}, implementation)

    return function, tuple(tensors[name] for name in names)


@pytest.mark.parametrize("operator", [op for op in DIFFERENTIABLE if op.integers], ids=lambda op: op.name)
def test_derivatives_where_they_are_one_sided(operator: Operator) -> None:
    """At whole pixels, on the borders of the map and beyond: kernels take the side that the references write out."""
    tensors, settings = operator.integers()
    for variant in operator.variants:
        found = []
        for implementation in ("native", "reference"):
            leaf = {name: t.clone().requires_grad_(name in operator.gradients) for name, t in tensors.items()}
            values = [leaf[name] for name in operator.gradients]
            output = operator.function(**leaf, **{**settings, **variant}, implementation=implementation)
            along = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape).requires_grad_()
            first = torch.autograd.grad(output, values, along, create_graph=True)
            total = torch.stack([g.square().sum() for g in first]).sum()
            found.append([output, *first, *torch.autograd.grad(total, [*values, along], materialize_grads=True)])
        assert all(error(a, e) <= TOLERANCE[torch.float64] for a, e in zip(*found, strict=True))
        # A sample at a whole pixel has a derivative, except where it is the pixel: the test would pass if all were 0.
        derivatives = found[0][1 : 1 + len(operator.gradients)]
        assert variant == {"method": "discrete"} or all((g != 0).double().mean() > 0.1 for g in derivatives)


@on_each_implementation
@each(SMALL)
def test_gradcheck(problem: Problem, implementation: str) -> None:
    # No drawn position lies as near to a kink, at an integer, as the step of finite differences is long.
    function, values = _function(problem, implementation)
    assert gradcheck(function, values)


@on_each_implementation
@each(SMALL)
def test_gradgradcheck(problem: Problem, implementation: str) -> None:
    function, values = _function(problem, implementation)
    # Squared, since some operators are linear, with second derivatives of zero.
    fast = sum(t.numel() for t in values) > FEW
    assert gradgradcheck(lambda *given: function(*given) ** 2, values, fast_mode=fast)


@on_each_implementation
@each([p for p in LAST_SMALL if len(p.gradients) > 1])
def test_gradgradcheck_with_one_tensor_fixed(problem: Problem, implementation: str) -> None:
    for fixed in problem.gradients:
        function, values = _function(problem, implementation, [fixed])
        assert gradgradcheck(lambda *given, f=function: f(*given) ** 2, values, fast_mode=True), fixed


@each([p for p in SMALL if not p.without and p.case in p.op.small[1:]])
def test_third_derivative(problem: Problem) -> None:
    def third(implementation: str) -> list[Tensor]:
        function, values = _function(problem, implementation)
        (first,) = torch.autograd.grad((function(*values) ** 4).sum(), values[0], create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), values[-1], create_graph=True)
        found = torch.autograd.grad(second.square().sum(), values, allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for g, t in zip(found, values, strict=True)]

    expected = third("reference")
    assert any(g.any() for g in expected)
    for actual, right in zip(third("native"), expected, strict=True):
        assert error(actual, right) < 1e-10


@pytest.mark.parametrize("implementation", ["auto", *IMPLEMENTATIONS])
@each(FIRST)
def test_only_those_asked_for(problem: Problem, implementation: str) -> None:
    tensors = problem.tensors()
    every = differentiate(problem, tensors, implementation)
    for count in (1, 2):
        for names in combinations(problem.gradients, count):
            given = leaves(tensors, names)
            output = problem.call(given, implementation)
            output.backward(above(output))
            for name, t in given.items():
                if name in names:
                    assert error(t.grad, every[name]) < 1e-6, name
                else:
                    assert t.grad is None, name


@each(FIRST)
def test_the_kernel_computes_only_those_asked_for(problem: Problem) -> None:
    tensors = problem.tensors()
    for count in range(1, len(problem.gradients) + 1):
        for names in combinations(problem.gradients, count):
            forward, *backward = raw_calls(problem, tensors, names)
            assert len(forward.results[0]) == len(problem.call(tensors))
            # What is added per channel has its gradient from a sum, outside the kernel.
            summed = [name for name in names if len(tensors[name].shape) == 1]
            if summed == list(names):
                assert not backward
                continue
            (call,) = backward
            sizes = [tensors[name].shape for name in problem.gradients if len(tensors[name].shape) > 1]
            asked = [name in names for name in problem.gradients if len(tensors[name].shape) > 1]
            for found, size, wanted in zip(call.results, sizes, asked, strict=True):
                assert found.shape == (size if wanted else (0,)), names
                assert found.isfinite().all()


@pytest.mark.parametrize("implementation", ["auto", *IMPLEMENTATIONS])
@each_operator(DIFFERENTIABLE)
def test_no_gradient_flows_into_other_tensors(op: Operator, implementation: str) -> None:
    problem = Problem(op, op.cases[0])
    tensors = problem.tensors()
    every = leaves(tensors, [name for name, t in tensors.items() if t.is_floating_point()])
    problem.call(every, implementation).sum().backward()
    for name, t in every.items():
        assert (t.grad is not None and t.grad.any()) == (name in problem.gradients), name


@pytest.mark.parametrize("implementation", ["auto", *IMPLEMENTATIONS])
@each(problems(cases=1))
def test_nothing_is_kept_without_gradients(problem: Problem, implementation: str) -> None:
    kept: list[Tensor] = []
    tensors = problem.tensors()
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output = problem.call(tensors, implementation)
        assert output.grad_fn is None and not output.requires_grad
        with torch.no_grad():
            given = leaves(tensors, problem.gradients)
            assert not problem.call(given, implementation).requires_grad
    assert not kept


@on_each_implementation
@each(FIRST)
def test_any_layout_of_the_gradient_above(problem: Problem, implementation: str) -> None:
    tensors = problem.tensors(torch.float64)
    expected = differentiate(problem, tensors, implementation, grad=torch.ones_like)
    for layout in (
        lambda y: y.new_ones([1] * y.dim()).expand_as(y),
        lambda y: y.new_ones(y.mT.shape).mT,
        lambda y: y.new_ones(*y.shape, 2)[..., 0],
        lambda y: channels_last(torch.ones_like(y)),
    ):
        for name, found in differentiate(problem, tensors, implementation, grad=layout).items():
            assert error(found, expected[name]) < 1e-12, name


@on_each_implementation
@each(FIRST)
def test_second_derivative_at_integers_is_finite(problem: Problem, implementation: str) -> None:
    # Positions at whole pixels, where the first derivative jumps: a derivative of one smooth piece, not NaN.
    tensors = problem.tensors(torch.float64)
    for name, view in problem.op.beside(tensors).items():
        view.copy_(view.round())
        assert name in tensors
    given = leaves(tensors, problem.gradients)
    wanted = [given[name] for name in problem.gradients]
    first = torch.autograd.grad(problem.call(given, implementation).square().sum(), wanted, create_graph=True)
    for found in torch.autograd.grad(sum(g.square().sum() for g in first), wanted):
        assert found.isfinite().all()
