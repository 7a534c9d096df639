"""Kernels compiled for GPUs that are not there: registers, spilled bytes, shared memory and assembly."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


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
