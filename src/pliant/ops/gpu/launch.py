"""Launches of Triton kernels, which the operators run and the tests compile ahead of time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """A kernel, its grid, its arguments by name (constants in capitals), and options of the compiler."""

    kernel: Any
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    warps: int = 4
    stages: int = 1
    registers: int | None = None
    fused: bool = True

    @classmethod
    def of(
        cls,
        kernel: Any,
        grid: tuple[int, int, int],
        warps: int = 4,
        stages: int = 1,
        registers: int | None = None,
        fused: bool = True,
        **known: Any,
    ) -> Launch:
        """Return the launch of a kernel with those arguments of `known` that it names.

        `registers` is the limit per thread: without one, NVIDIA's assembler prefers to spill a few registers to running
        one program less at a time. `fused` allows fused multiply-adds.
        """
        return cls(kernel, grid, {name: known[name] for name in kernel.arg_names}, warps, stages, registers, fused)

    def options(self, nvidia: bool) -> dict[str, Any]:
        """Return the options of the compiler."""
        found = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": self.fused}
        return found | {"maxnreg": self.registers} if nvidia and self.registers else found

    def run(self, device: torch.device) -> None:
        """Launch the kernel on `device`, unless the grid is empty."""
        if all(self.grid):
            nvidia = device.type == "cuda" and torch.version.hip is None
            with _current(device):
                self.kernel[self.grid](**self.arguments, **self.options(nvidia))


def _current(device: torch.device) -> AbstractContextManager[object]:
    # Triton launches on the current device, wherever the tensors are; the interpreter has no device.
    return nullcontext() if device.type in ("cpu", "meta") else torch.get_device_module(device).device(device)


def processors(device: torch.device) -> int:
    """Return how many programs of a kernel a device runs at a time, at one per processor."""
    if device.type in ("cpu", "meta"):
        return 2
    found = torch.get_device_module(device).get_device_properties(device)
    return int(getattr(found, "multi_processor_count", 0) or getattr(found, "gpu_subslice_count", 0) or 64)


def empty(input: Tensor, size: Sequence[int]) -> Tensor:
    """Return a tensor of a size in input's memory format, with the strides that the fake kernels return."""
    format = torch._prims_common.suggest_memory_format(input)
    if format == torch.contiguous_format:
        return input.new_empty(size)
    return input.new_empty_strided(size, torch.empty(size, device="meta").to(memory_format=format).stride())


def destination(output: Tensor) -> dict[str, Any]:
    """Return the arguments of a kernel that stores `output` (N, C, H, W): its strides, and whether it is channels_last.

    Positions of a map count as one dimension. `output` is dense, whichever of its dimensions have size 1.
    """
    C, P = output.shape[1], output.shape[2:].numel()
    last = output.is_contiguous(memory_format=torch.channels_last)
    return {
        "output": output, "output_n": P * C, "output_c": 1 if last else P, "output_p": C if last else 1, "LAST": last
    }  # fmt: skip


def ceil(n: int, by: int) -> int:
    """Return how many blocks of `by` hold `n`."""
    return -(-n // by)


def power(n: int, least: int, most: int) -> int:
    """Return the smallest power of two that is at least `n`, within `least` and `most`."""
    return min(max(1 << (n - 1).bit_length(), least), most)
