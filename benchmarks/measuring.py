"""What a problem is, how its contestants are timed, and the table of the result.

benchmarks/README.md says what the figures mean.
"""

from __future__ import annotations

import ctypes
import datetime
import functools
import gc
import json
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pliant.testing import error

WARM_UPS = 2
SHORTEST = 2e-3  # seconds: a shorter call is repeated within one sample


@dataclass(frozen=True)
class Setting:
    """How a case is run.

    Args:
        device: "cpu" or "cuda".
        precision: name of a floating dtype; "tf32" is float32 whose matrix products may round to TF32.
        backward: forward and backward, or forward alone.
        peers: what is timed beside pliant and its limit: "none", "torch" (PyTorch's own functions), or "all" (every
            other library that can be imported too).
    """

    device: str = "cpu"
    precision: str = "float32"
    backward: bool = False
    peers: str = "torch"

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the tensors."""
        found: torch.dtype = torch.float32 if self.precision == "tf32" else getattr(torch, self.precision)
        return found

    @property
    def implementation(self) -> str:
        """Return what is asked of pliant: what a user gets on the CPU; on a GPU no silent way to the reference."""
        return "auto" if self.device == "cpu" else "native"

    @property
    def mode(self) -> str:
        """Return what is timed, in words."""
        return "forward + backward" if self.backward else "forward"


class Contestant(Protocol):
    """What takes part in a run: a call in this process (:class:`Call`) or in another (:class:`revision.Remote`)."""

    @property
    def name(self) -> str: ...

    def seconds(self, count: int) -> float:
        """Return the time of `count` calls."""

    def memory(self) -> float | None:
        """Return by how many bytes a call raises the memory of its process at most, its output included."""

    def error(self, exact: Callable[[], tuple[Tensor, ...]]) -> float | None:
        """Return max|actual − exact|/max|exact| of the first image, the worst of output and gradients."""


@dataclass(frozen=True)
class Call:
    """A call without arguments in this process.

    `run` returns a tuple: the output, then the gradients, in the order of the problem's `exact`. A call that does not
    compute the operator, such as a copy, is not `checked` against it.
    """

    name: str
    run: Callable[[], Any]
    checked: bool = True

    def seconds(self, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            self.run()
        return time.perf_counter() - start

    def memory(self) -> float | None:
        reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
        if not reset.exists():
            return None
        self.run()  # the first call loads code and tables
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # memory that earlier calls freed would serve this one unseen
        reset.write_text("5")  # the peak is counted from here
        before = _resident(status, "VmRSS")
        result = self.run()
        after = _resident(status, "VmHWM")
        del result
        return after - before

    def error(self, exact: Callable[[], tuple[Tensor, ...]]) -> float | None:
        if not self.checked:
            return None
        return max(error(a[:1], e) for a, e in zip(self.run(), exact(), strict=True))


@dataclass(frozen=True)
class Problem:
    """One case in one setting, ready to be timed.

    Args:
        name: the case's.
        shape: the case in words.
        contestants: what is timed; the names of pliant's own begin with "pliant".
        limit: a weighted sum of the times of contestants, by their names.
        exact: computes the float64 reference: output and gradients of the first image.
    """

    name: str
    shape: str
    contestants: Sequence[Call]
    limit: dict[str, float]
    exact: Callable[[], tuple[Tensor, ...]]


@functools.cache
def _drawn(case: Any, op: tuple[str, ...], device: str) -> dict[str, Tensor]:
    # Drawn once: for large batches that takes the processor longer than everything else takes a GPU.
    return {name: x.to(device) for name, x in case.tensors(*op, channels_last=True).items()}


def inputs(case: Any, setting: Setting, *op: str) -> dict[str, Tensor]:
    """Return the tensors of a case of pliant.testing, channels_last; boxes stay in float32."""
    drawn = _drawn(case, op, setting.device)
    return {name: x if name in ("boxes", "rois") else x.to(setting.dtype) for name, x in drawn.items()}


@functools.cache
def _normal(shape: tuple[int, ...], device: str) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)


def gradient(shape: Sequence[int], setting: Setting) -> Tensor:
    """Return a contiguous gradient of the output, N(0, 1)."""
    return _normal(tuple(shape), setting.device).to(setting.dtype)


def call(
    function: Callable[..., Tensor],
    tensors: dict[str, Tensor],
    grad: Tensor,
    backward: bool,
    trained: Sequence[str],
    compared: int | None = None,
) -> Callable[[], tuple[Tensor, ...]]:
    """Return a call to time.

    Args:
        function: takes the tensors by their names.
        tensors: its arguments.
        grad: gradient of the output.
        backward: forward and backward, or forward alone, which returns the output.
        trained: the tensors whose gradients are computed.
        compared: how many of these, the first ones, are returned after the output; all by default.
    """
    leaves = {name: x.detach().requires_grad_(backward and name in trained) for name, x in tensors.items()}
    wanted = [leaves[name] for name in trained]

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (function(**leaves),)

    def both() -> tuple[Tensor, ...]:
        y = function(**leaves)
        # conv2d has no gradient of offset and mask. A contestant that is checked returns as many as the reference.
        found = torch.autograd.grad(y, wanted, grad, allow_unused=True)
        return (y.detach(), *(g for g in found[:compared] if g is not None))

    return both if backward else forward


def measure(contestants: Sequence[Contestant], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of one call, `repeats` times for every contestant, taken in turns: A B C A B C …"""
    calls = {}
    for c in contestants:
        for _ in range(WARM_UPS):
            once = c.seconds(1)
        calls[c.name] = max(1, round(SHORTEST / once))
    samples: dict[str, list[float]] = {c.name: [] for c in contestants}
    for _ in range(repeats):
        for c in contestants:
            samples[c.name].append(c.seconds(calls[c.name]) / calls[c.name])
    return samples


def rows(problem: Problem, repeats: int, beside: Sequence[Contestant] = ()) -> list[dict[str, Any]]:
    """Return one row per contestant: those of the problem, then those `beside`."""
    contestants = [*problem.contestants, *beside]
    exact = problem.exact()
    errors = {c.name: c.error(lambda: exact) for c in contestants}
    memory = {c.name: c.memory() for c in contestants}
    samples = measure(contestants, repeats)
    medians = {name: statistics.median(times) for name, times in samples.items()}
    limit = sum(weight * medians[name] for name, weight in problem.limit.items())
    result = []
    for name, times in samples.items():
        low, _, high = statistics.quantiles(times, n=4, method="inclusive")
        row: dict[str, Any] = {"contestant": name}
        found = {"median_ms": medians[name], "min_ms": min(times), "q1_ms": low, "q3_ms": high}
        row |= {key: round(1e3 * value, 5) for key, value in found.items()}
        row |= {"ratio_to_limit": round(medians[name] / limit, 3), "error": errors[name], "samples": len(times)}
        peak = memory[name]
        result.append(row | {"memory_mb": None if peak is None else round(peak / 2**20, 1)})
    return result


def table(title: str, rows: list[dict[str, Any]]) -> str:
    """Return rows as plain text."""
    width = max(28, *(len(r["contestant"]) for r in rows))
    lines = [title, f"  {'':{width}}{'median ms':>11}{'quartiles':>21}{'min':>10}{'/limit':>9}{'MB':>8}  error"]
    for r in rows:
        spread = f"{r['q1_ms']:.3f} … {r['q3_ms']:.3f}"
        deviation = "" if r["error"] is None else f"{r['error']:.1e}"
        memory = "" if r["memory_mb"] is None else f"{r['memory_mb']:.1f}"
        figures = f"{r['median_ms']:11.3f}{spread:>21}{r['min_ms']:10.3f}{r['ratio_to_limit']:9.2f}{memory:>8}"
        lines.append(f"  {r['contestant']:{width}}{figures}  {deviation}")
    return "\n".join(lines)


def report(machine: dict[str, Any]) -> dict[str, Any]:
    """Print the machine, and return the beginning of a report: what its figures depend on."""
    print(json.dumps(machine, indent=2), flush=True)
    now = datetime.datetime.now(datetime.timezone.utc)
    command = shlex.join(["python", *sys.argv])
    return {"command": command, "date": now.isoformat(timespec="seconds"), "machine": machine}


def save(report: dict[str, Any], path: Path | None) -> None:
    """Write a report to a JSON file, if there is a path."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def _resident(status: Path, field: str) -> float:
    found = re.search(rf"{field}:\s*(\d+) kB", status.read_text())
    assert found is not None
    return 1024.0 * int(found[1])
