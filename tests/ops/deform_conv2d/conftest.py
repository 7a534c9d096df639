"""The operator on each of its implementations, on memory that is NaN until somebody writes it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch

from pliant.ops import deform_conv2d



@pytest.fixture(params=["reference", "native"])
def deform(request: pytest.FixtureRequest) -> Callable[..., torch.Tensor]:
    """`deform_conv2d` bound to one implementation."""
    return functools.partial(deform_conv2d, implementation=request.param)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Deterministic mode fills every fresh tensor with NaN, those of the kernels too."""
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
    torch.set_num_threads(threads)
