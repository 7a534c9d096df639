"""The operator on each of its implementations."""

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
def one_thread() -> Iterator[None]:
    """Small shapes on one thread; the tests of threads set their own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
