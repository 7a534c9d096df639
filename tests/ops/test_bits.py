"""The same bits every time: for any number of threads, and for an image alone or in a batch."""

from __future__ import annotations

import os

import pytest
import torch

from pliant import _native

from .contract import Problem, above, channels_last, differentiate, each, leaves, problems

# Larger than the cases themselves, so that threads have something to share.
LARGE = [p.grown(3) for p in problems() if not p.without and not p.variant]

# Products of pliant add in the same order for any number of threads. torch's, which run in float64, below AVX2 and when
# asked, may cut a sum by the number of threads that torch has.
PRODUCTS = os.environ.get("PLIANT_PRODUCTS")
OURS = PRODUCTS == "wide" or (_native.instruction_level() != "baseline" and PRODUCTS != "torch")

kinds = pytest.mark.parametrize(
    ("dtype", "last"),
    [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False), (torch.float64, False)],
    ids=str,
)


@kinds
@each(LARGE)
def test_any_number_of_threads(problem: Problem, dtype: torch.dtype, last: bool) -> None:
    tensors = problem.tensors(dtype, channels_last=last)
    same = {*problem.gradients} if problem.op.any_threads else set()
    if problem.op.any_threads or (OURS and dtype is not torch.float64):
        same.add("output")
    expected = differentiate(problem, tensors, "native")
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found, again = (differentiate(problem, tensors, "native") for _ in range(2))
        for name, value in found.items():
            assert torch.equal(value, again[name]), (name, threads)
            if name in same:
                assert torch.equal(value, expected[name]), (name, threads)


@kinds
@each([p for p in LARGE if p.gradients])
def test_an_image_alone_and_in_a_batch(problem: Problem, dtype: torch.dtype, last: bool) -> None:
    tensors = problem.tensors(dtype, channels_last=last)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        together = differentiate(problem, tensors, "native")
        images = problem.case.input[0]
        for image in (0, images // 2, images - 1):
            own, rows = problem.op.alone(tensors, image)
            if last:
                # One image is in both formats at once; its strides tell.
                first = next(iter(own))
                own[first] = channels_last(own[first])
            given = leaves(own, problem.gradients)
            output = problem.call(given, "native")
            assert torch.equal(output, together["output"][rows])
            output.backward(above(together["output"])[rows])
            for name in problem.gradients:
                if own[name] is not tensors[name]:
                    whole = together[name]
                    expected = whole[image : image + 1] if len(whole) == images else whole[rows]
                    assert torch.equal(given[name].grad, expected), name


@each(problems(cases=2))
def test_the_reference_repeats(problem: Problem) -> None:
    tensors = problem.tensors()
    expected = differentiate(problem, tensors, "reference")
    for name, value in differentiate(problem, tensors, "reference").items():
        assert torch.equal(value, expected[name]), name
