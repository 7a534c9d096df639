"""Triton's kernels without a GPU: interpreted on CPU tensors, or compiled ahead of time; one process can do one.

`make test-triton` runs both, TRITON_INTERPRET set to 1 and to 0. Without it nothing here is collected.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

MODE = os.environ.get("TRITON_INTERPRET")
collect_ignore_glob = {"1": ["*compiled*"], "0": ["*interpreted*"]}.get(MODE or "", ["test_*"])

if MODE == "1":
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    # The tests are no package.
    sys.path.insert(0, str(Path(__file__).parent))
    import watched

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
def reversed_grid(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a call after which the interpreter runs the programs of a grid from the last to the first."""
    builder = interpreter.interpreter_builder
    forward = builder.set_grid_idx

    def backward(*index: int) -> None:
        forward(*(n - 1 - i for n, i in zip(builder.grid_dim, index, strict=True)))

    return lambda: monkeypatch.setattr(builder, "set_grid_idx", backward)


class Compiled(NamedTuple):
    """What a kernel became: registers a thread, bytes a thread spills, bytes a block shares, its assembly."""

    registers: int
    spilled: int
    shared: int
    assembly: str


# Whatever a launch on such a device would compile: Triton's own path, with a driver that only knows its target.
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
    "gfx1100": ("hip", "gfx1100", 32),
}


class _Driver:
    """A device that is not there, numbered by its architecture."""

    def __init__(self, name: str) -> None:
        from triton.backends.compiler import GPUTarget

        self.name, self.target = name, GPUTarget(*TARGETS[name])

    def get_current_device(self) -> str:
        return self.name

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str], Compiled]:
    """Return a call that compiles a launch for an architecture."""
    from triton.runtime import driver

    def compile(launch: Any, architecture: str) -> Compiled:
        monkeypatch.setattr(driver, "_active", _Driver(architecture))
        options = launch.options(architecture.startswith("sm"))
        kernel = launch.kernel.run(grid=launch.grid, warmup=True, **launch.arguments, **options)
        if architecture.startswith("gfx"):
            assembly = kernel.asm["amdgcn"]
            registers, spilled = (int(re.search(rf"\.{what}: +(\d+)", assembly)[1]) for what in _AMD)
        else:
            assembly = kernel.asm["ptx"]
            registers, spilled = _resources(kernel.asm["cubin"])
        return Compiled(registers, spilled, kernel.metadata.shared, assembly)

    return compile


_AMD = ("vgpr_count", "vgpr_spill_count")


def _resources(cubin: bytes) -> tuple[int, int]:
    """Return registers and stack bytes of a thread: Triton's kernels have a stack only where they spill."""
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.check_output([cuobjdump, "--dump-resource-usage", file.name], text=True)
    registers, stack, local = (int(re.search(rf"{what}:(\d+)", text)[1]) for what in ("REG", "STACK", "LOCAL"))
    return registers, stack + local
