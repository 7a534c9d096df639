"""The edges: no image, hostile coordinates, memory formats, more than 2³¹ elements, checked values."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pliant.ops.table import Operator
from pliant.testing import TOLERANCE, error

from .contract import (
    DIFFERENTIABLE,
    IMPLEMENTATIONS,
    OPERATORS,
    Problem,
    Tensors,
    channels_last,
    differentiate,
    each,
    each_operator,
    leaves,
    problems,
)

on_each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


@on_each_implementation
@each(problems(cases=1))
def test_an_empty_batch(problem: Problem, implementation: str) -> None:
    expected = problem.call(problem.tensors(), implementation)
    problem = replace(problem, case=problem.case.empty())
    tensors = problem.tensors()
    given = leaves(tensors, problem.gradients)
    output = problem.call(given, implementation)
    assert output.shape == (0, *expected.shape[1:])
    if problem.gradients:
        wanted = [given[name] for name in problem.gradients]
        first = torch.autograd.grad(output.square().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted, allow_unused=True)
        for name, *gradients in zip(problem.gradients, first, second, strict=True):
            for g in gradients:
                assert g is None or torch.equal(g, torch.zeros_like(tensors[name])), name


HOSTILE = (math.nan, math.inf, -math.inf, 3e38, -3e38, 1e30, 1e19, -1e12, 1e9, 2.0**31, -(2.0**33), 1e5, 1e-45)


def _spoilt(problem: Problem, tensors: Tensors, which: str, values: tuple[float, ...]) -> Tensors:
    """Return the tensors with every seventh value of one of them hostile."""
    spoilt = {name: t.clone() for name, t in tensors.items()}
    view = problem.op.beside(spoilt)[which]
    places = torch.arange(view.numel()).view(view.shape) % 7 == 3
    assert places.any()
    wild = torch.tensor(values, dtype=torch.float64).to(view.dtype).repeat(view.numel())[: int(places.sum())]
    view[places] = wild
    return spoilt


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@each([p for p in problems(cases=2) if not p.without])
def test_hostile_values_beside_the_map(problem: Problem, dtype: torch.dtype) -> None:
    tensors = problem.tensors(dtype)
    for which in problem.op.beside(tensors):
        # A factor that is not finite makes what it multiplies NaN or infinite; a coordinate reads nothing.
        factor = which in ("mask", "attention_weights")
        given = _spoilt(problem, tensors, which, (math.nan,) if factor else HOSTILE)
        found, expected = (differentiate(problem, given, i) for i in IMPLEMENTATIONS)
        for name in ("output",) if factor else found:
            if not factor:
                assert found[name].isfinite().all(), (which, name)
            if found[name].is_floating_point():
                # In the same dtype: in float64 a position beside a border may lie on its other side.
                assert error(found[name], expected[name]) <= TOLERANCE[dtype], (which, name)
            else:
                assert torch.equal(found[name], expected[name])


@on_each_implementation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each([p for p in problems(cases=2) if p.gradients and p.op.follows])
def test_output_and_gradient_have_the_format_of_the_map(
    problem: Problem, dtype: torch.dtype, implementation: str
) -> None:
    tensors = problem.tensors(dtype)
    name = next(iter(tensors))
    for last in (False, True):
        given = {**tensors, name: channels_last(tensors[name]) if last else tensors[name]}
        found = differentiate(problem, given, implementation)
        for value in (found["output"], found[name]) if implementation == "native" else (found["output"],):
            assert (channels_last(value) if last else value.contiguous()).stride() == value.stride()


@each_operator([op for op in OPERATORS if op.huge is not None])
def test_more_than_two_to_the_31_elements_on_meta(op: Operator) -> None:
    problem = Problem(op, op.huge)
    # Fake tensors say which shapes would be drawn.
    with FakeTensorMode(allow_non_fake_inputs=True):
        drawn = {name: (t.shape, t.dtype) for name, t in problem.tensors().items()}
    tensors = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in drawn.items()}
    given = leaves(tensors, op.gradients)
    output = problem.call(given)
    assert max(t.numel() for t in (output, *tensors.values())) > 2**31
    output.sum().backward()
    for name in op.gradients:
        gradient = given[name].grad
        assert gradient is not None
        assert (gradient.shape, gradient.dtype) == (tensors[name].shape, tensors[name].dtype)


@on_each_implementation
@each_operator(DIFFERENTIABLE)
def test_broadcast_tensors(op: Operator, implementation: str) -> None:
    problem = Problem(op, op.cases[0])
    tensors = problem.tensors(torch.float64)
    views: Tensors = {n: t[:1].expand_as(t) if n in op.gradients else t for n, t in tensors.items()}
    copies: Tensors = {n: t.contiguous() for n, t in views.items()}
    found: Tensors = differentiate(problem, views, implementation)
    for name, expected in differentiate(problem, copies, implementation).items():
        value: Tensor = found[name]
        assert error(value, expected) < 1e-12, name
