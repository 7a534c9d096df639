"""The four operators on each of their implementations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

from pliant import ops

NAMES = ("deform_roi_pool", "deform_psroi_pool", "roi_align", "ps_roi_align")
Operator = Callable[..., torch.Tensor]


@pytest.fixture(params=["reference", "native"])
def of(request: pytest.FixtureRequest) -> SimpleNamespace:
    """The operators, bound to one implementation."""
    return SimpleNamespace(
        **{name: functools.partial(getattr(ops, name), implementation=request.param) for name in NAMES}
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small shapes on one thread; the tests of threads set their own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
