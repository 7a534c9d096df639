"""What is timed, how, and the table of it: see benchmarks/README.md for what the figures mean."""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from pliant.testing import error

WARM_UPS = 2
SHORTEST = 2e-3  # seconds: a shorter call is repeated within one sample


class Contestant(Protocol):
    """What takes part in a run: here (:class:`Call`) or in another process (:class:`revision.Remote`)."""

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
    """A call without arguments, timed here.

    `run` returns the output, or with gradients (output, gradient, …) in the order of the problem's `exact`. What does
    not compute the operator is not `checked`.
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
        self.run()  # the first call reads code and tables
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed would serve this one unseen
        reset.write_text("5")  # the peak begins here
        before = _resident(status, "VmRSS")
        result = self.run()
        after = _resident(status, "VmHWM")
        del result
        return after - before

    def error(self, exact: Callable[[], tuple[Tensor, ...]]) -> float | None:
        if not self.checked:
            return None
        result = self.run()
        actual = result if isinstance(result, tuple) else (result,)
        return max(error(a[:1], e) for a, e in zip(actual, exact(), strict=True))


@dataclass(frozen=True)
class Problem:
    """One case: contestants, the limit as a weighted sum of their times, and the exact result for the first image."""

    name: str
    shape: str
    contestants: Sequence[Contestant]
    limit: dict[str, float]
    exact: Callable[[], tuple[Tensor, ...]]


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


def rows(problem: Problem, repeats: int) -> list[dict[str, Any]]:
    """Return one row for every contestant, the yardsticks first."""
    exact = problem.exact()
    errors = {c.name: c.error(lambda: exact) for c in problem.contestants}
    memory = {c.name: c.memory() for c in problem.contestants}
    samples = measure(problem.contestants, repeats)
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
    lines = [title, f"  {'':28}{'median ms':>11}{'quartiles':>21}{'min':>10}{'/limit':>9}{'MB':>8}  error"]
    for r in rows:
        spread = f"{r['q1_ms']:.3f} … {r['q3_ms']:.3f}"
        deviation = "" if r["error"] is None else f"{r['error']:.1e}"
        memory = "" if r["memory_mb"] is None else f"{r['memory_mb']:.1f}"
        figures = f"{r['median_ms']:11.3f}{spread:>21}{r['min_ms']:10.3f}{r['ratio_to_limit']:9.2f}{memory:>8}"
        lines.append(f"  {r['contestant']:28}{figures}  {deviation}")
    return "\n".join(lines)


def _resident(status: Path, field: str) -> float:
    found = re.search(rf"{field}:\s*(\d+) kB", status.read_text())
    assert found is not None
    return 1024.0 * int(found[1])
