"""Local response normalization on each of its implementations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(params=["native", "reference"])
def implementation(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The tests of threads set their own number."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
