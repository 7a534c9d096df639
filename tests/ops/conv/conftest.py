"""Deformable convolution on each of its implementations."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

from pliant.ops import deform_conv2d


@pytest.fixture(params=["reference", "native"])
def deform(request: pytest.FixtureRequest) -> Callable[..., torch.Tensor]:
    """`deform_conv2d` bound to one implementation."""
    return functools.partial(deform_conv2d, implementation=request.param)
