"""What holds for the tests of data."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pliant.data import drawing


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Compute on one thread: on a busy machine these small images would take ten times as long on two."""
    with drawing.one_thread():
        yield
