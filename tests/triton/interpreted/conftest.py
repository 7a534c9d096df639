"""Kernels run by Triton's interpreter: bfloat16 products as on a GPU, memory under watch, grids in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from . import watched

dot = interpreter.InterpreterBuilder.create_dot


def _widened(t: Any) -> Any:
    # NumPy has no bfloat16: the interpreter keeps its bits as integers and would multiply those.
    if t.dtype.scalar != tl.bfloat16:
        return t
    data = interpreter._convert_float(t.data, tl.bfloat16, tl.float32, None).view(np.float32)
    return interpreter.TensorHandle(data, tl.float32)


interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(self, _widened(a), _widened(b), *rest)
watched.watch()


@pytest.fixture
def atomic() -> Iterator[None]:
    """The input's gradient by atomics, as without torch.use_deterministic_algorithms."""
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(True)


@pytest.fixture
def reversed_grid(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a call after which the interpreter runs the programs of a grid from the last to the first."""
    builder = interpreter.interpreter_builder
    forward = builder.set_grid_idx

    def backward(*index: int) -> None:
        forward(*(n - 1 - i for n, i in zip(builder.grid_dim, index, strict=True)))

    return lambda: monkeypatch.setattr(builder, "set_grid_idx", backward)
