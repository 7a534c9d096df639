"""The two operators with bins of whole pixels on each of their implementations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

from pliant import ops

Operator = Callable[..., torch.Tensor]


@pytest.fixture(params=["reference", "native"])
def of(request: pytest.FixtureRequest) -> SimpleNamespace:
    """The operators, bound to one implementation."""
    return SimpleNamespace(
        **{
            name: functools.partial(getattr(ops, name), implementation=request.param)
            for name in ("roi_pool", "ps_roi_pool")
        }
    )


@pytest.fixture(params=["roi_pool", "ps_roi_pool"])
def pool(request: pytest.FixtureRequest, of: SimpleNamespace) -> Operator:
    """Either operator."""
    return getattr(of, request.param)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small shapes on one thread; the tests of threads set their own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
