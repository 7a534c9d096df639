"""The RoI operators on each of their implementations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from pliant import ops
from pliant.ops.table import OPERATORS


@pytest.fixture(params=["reference", "native"])
def of(request: pytest.FixtureRequest) -> SimpleNamespace:
    """The operators, bound to one implementation."""
    names = [op.name for op in OPERATORS if op.family == "roi"]
    return SimpleNamespace(**{n: functools.partial(getattr(ops, n), implementation=request.param) for n in names})


@pytest.fixture(params=["roi_pool", "ps_roi_pool"])
def pool(request: pytest.FixtureRequest, of: SimpleNamespace) -> Callable[..., torch.Tensor]:
    """Either operator with bins of whole pixels."""
    return getattr(of, request.param)
