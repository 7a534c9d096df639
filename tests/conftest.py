"""What holds for every test."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _deterministic() -> None:
    """Refuse nondeterministic operators, fill every uninitialised tensor with NaN (C++ ones too), fix the threads."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(2)
