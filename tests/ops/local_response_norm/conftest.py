"""Local response normalization on each of its implementations."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["native", "reference"])
def implementation(request: pytest.FixtureRequest) -> str:
    return request.param
