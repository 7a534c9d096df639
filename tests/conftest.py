"""What holds for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# The number of threads, for every test except those that compare with one thread bit for bit.
ASKED = "PLIANT_TEST_THREADS"
# Where networks and images are so small that a second thread costs more than it saves.
SMALL = ("app/test_show.py", "app/test_train.py", "models/", "train/")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--minutes", type=float, default=0.0, help="how long ops/test_fuzz.py draws random calls")


@pytest.fixture(autouse=True, scope="session")
def _deterministic() -> None:
    """Refuse nondeterministic operators, fill every uninitialised tensor with NaN (C++ ones too), fix the threads."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(int(os.environ.get(ASKED, "2")))


@pytest.fixture(autouse=True, scope="module")
def _few_threads(request: pytest.FixtureRequest, _deterministic: None) -> Iterator[None]:
    """Compute with one thread in the tests of `SMALL`, unless another number is asked for."""
    before = torch.get_num_threads()
    if ASKED not in os.environ and request.path.relative_to(Path(__file__).parent).as_posix().startswith(SMALL):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread, whatever the session computes with."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
