"""What holds for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

# A number set from outside holds for every test, except where a test compares bit for bit with one thread.
ASKED = "PLIANT_TEST_THREADS"


@pytest.fixture(autouse=True, scope="session")
def _deterministic() -> None:
    """Refuse nondeterministic operators, fill every uninitialised tensor with NaN (C++ ones too), fix the threads."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(int(os.environ.get(ASKED, "2")))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread, whatever the session computes with."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def few_threads(request: pytest.FixtureRequest) -> None:
    """Compute with one thread unless another number is asked for: a second one only costs time on small maps."""
    if ASKED not in os.environ:
        request.getfixturevalue("one_thread")
