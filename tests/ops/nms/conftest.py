"""The operators on each of their implementations."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

from pliant.ops import batched_nms, nms


@pytest.fixture(params=["reference", "native"])
def implementation(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def suppress(implementation: str) -> Callable[..., torch.Tensor]:
    """`nms` bound to one implementation."""
    return functools.partial(nms, implementation=implementation)


@pytest.fixture
def suppress_by_class(implementation: str) -> Callable[..., torch.Tensor]:
    """`batched_nms` bound to one implementation."""
    return functools.partial(batched_nms, implementation=implementation)
