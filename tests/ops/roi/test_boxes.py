"""Boxes, for every RoI operator: lists, images that are not there, wild ones beside tame ones, one alone."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch

from pliant.ops.table import OPERATORS, Operator

from ..contract import IMPLEMENTATIONS, Problem, Tensors, differentiate, each_operator, leaves

ROI = [op for op in OPERATORS if op.family == "roi"]
on_each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
FAR = (math.nan, math.inf, -math.inf, 3e38, -3e38, 1e30, 1e19, -1e12, 2.0**31, 1e5)


def _problem(op: Operator, dtype: torch.dtype = torch.float32, **more: Any) -> tuple[Problem, Tensors, str]:
    """Return the first problem of an operator, its tensors, and what it calls its boxes."""
    problem = Problem(op, op.cases[0])
    tensors = problem.tensors(dtype, **more)
    return problem, tensors, "rois" if "rois" in tensors else "boxes"


@on_each_implementation
@each_operator(ROI)
def test_boxes_as_a_list(op: Operator, implementation: str) -> None:
    problem, tensors, boxes = _problem(op)
    order = tensors[boxes][:, 0].argsort(stable=True)
    tensors = {name: t if name == "input" else t[order] for name, t in tensors.items()}
    listed = [tensors[boxes][tensors[boxes][:, 0] == n, 1:] for n in range(len(tensors["input"]))]
    expected = problem.call(tensors, implementation)
    assert torch.equal(problem.call({**tensors, boxes: listed}, implementation), expected)
    # Images without boxes, and no boxes at all.
    none = {name: t if name == "input" else t[:0] for name, t in tensors.items()}
    assert problem.call({**none, boxes: [b[:0] for b in listed]}, implementation).shape == (0, *expected.shape[1:])


@each_operator(ROI)
def test_a_list_of_boxes_compiles(op: Operator) -> None:
    torch._dynamo.reset()
    problem, tensors, name = _problem(op)
    boxes = tensors[name][:, 1:]
    given = {**tensors, name: [boxes[:2], boxes[2:]]}
    assert torch.equal(torch.compile(problem.call, backend="aot_eager", fullgraph=True)(given), problem.call(given))


@on_each_implementation
@each_operator(ROI)
def test_boxes_where_there_is_no_image(op: Operator, implementation: str) -> None:
    problem, tensors, name = _problem(op)
    given = {**tensors, "input": tensors["input"][:0]}
    sentence = f"^{op.name}: {name}\\[0, 0\\] must be the index of one of the 0 images, got [01]$"
    with pytest.raises(ValueError, match=sentence):
        problem.call(given, implementation)
    with pytest.raises(ValueError, match=f"^{op.name}: {name} must hold one tensor for each image, got none; pass a t"):
        problem.call({**given, name: []}, implementation)


@pytest.mark.parametrize("index", [2.0, -1.0, 1e9, math.nan, math.inf, -0.5])
@on_each_implementation
@each_operator(ROI)
def test_an_image_that_is_not_there_is_an_error_on_the_cpu(op: Operator, implementation: str, index: float) -> None:
    problem, tensors, name = _problem(op)
    tensors[name][3, 0] = index
    sentence = f"^{op.name}: {name}\\[3, 0\\] must be the index of one of the 2 images, got "
    with pytest.raises(ValueError, match=sentence):
        problem.call(tensors, implementation)


@pytest.mark.parametrize("index", [2.0, -1.0, 1e9, math.inf, -math.inf, math.nan, -0.5])
@each_operator(ROI)
def test_compiled_code_gives_zeros_for_an_image_that_is_not_there(op: Operator, index: float) -> None:
    # Nobody looks at values there.
    torch._dynamo.reset()
    problem, tensors, name = _problem(op)
    expected = problem.call(tensors)
    assert expected[3].any()
    expected[3] = 0
    tensors[name][3, 0] = index
    given = leaves(tensors, op.gradients)
    output = torch.compile(problem.call, backend="eager", fullgraph=True)(given)
    assert torch.equal(output, expected)
    output[3].sum().backward()
    for leaf in op.gradients:
        assert not given[leaf].grad.any()


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@on_each_implementation
@each_operator(ROI)
def test_wild_boxes_leave_tame_ones_alone(op: Operator, implementation: str, dtype: torch.dtype, last: bool) -> None:
    problem, tensors, boxes = _problem(op, dtype, channels_last=last)
    wild = tensors[boxes].new_zeros(4 * len(FAR), 5)
    for i, (far, k) in enumerate(product(FAR, range(1, 5))):
        wild[i, 3:] = 3
        wild[i, k] = far
    count = len(wild)
    more = {n: t[:1].expand(count, *t.shape[1:]) for n, t in tensors.items()} | {boxes: wild}
    both = {n: t if n == "input" else torch.cat([t, more[n]]) for n, t in tensors.items()}
    found, tame = (differentiate(problem, given, implementation, grad=torch.ones_like) for given in (both, tensors))
    nowhere = ~wild.isfinite().all(1)
    assert all(t.isfinite().all() for t in found.values())
    for name in found.keys() - {"input"}:
        assert torch.equal(found[name][:-count], tame[name]), name
        assert not found[name][-count:][nowhere].any(), name


@each_operator(ROI)
def test_a_box_alone_gives_the_bits_it_gives_among_others(op: Operator) -> None:
    problem, tensors, _ = _problem(op)
    together = problem.call(tensors, "native")
    for r in range(len(together)):
        alone = {n: t if n == "input" else t[r : r + 1] for n, t in tensors.items()}
        assert torch.equal(problem.call(alone, "native")[0], together[r])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@on_each_implementation
@each_operator(ROI)
def test_boxes_may_be_as_narrow_as_the_map(op: Operator, implementation: str, dtype: torch.dtype) -> None:
    problem, tensors, boxes = _problem(op, dtype)
    narrow = tensors[boxes].to(dtype)
    output = problem.call({**tensors, boxes: narrow}, implementation)
    assert torch.equal(output, problem.call({**tensors, boxes: narrow.float()}, implementation))
