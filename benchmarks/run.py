"""Time every operator beside its limit and its peers: see benchmarks/README.md for what the figures mean.

benchmarks/run.py [--op deform_conv2d|deform_roi_pool|lrn|nms] [--cases S1,S2] [--threads 1,2] [--backward]
                  [--repeats N] [--out FILE]
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pliant
from pliant import _native
from pliant.testing import error

OPERATORS = ("deform_conv2d", "deform_roi_pool", "lrn", "nms")
WARM_UPS = 2
SHORTEST = 2e-3  # seconds: a shorter call is repeated within one sample


@dataclass(frozen=True)
class Contestant:
    """What is timed: a call without arguments, and for what computes the operator, the tensors to check.

    `run` returns the output, or with gradients (output, gradient, …) in the order of the problem's `exact`.
    """

    name: str
    run: Callable[[], Any]
    checked: bool = True


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
            start = time.perf_counter()
            c.run()
            once = time.perf_counter() - start
        calls[c.name] = max(1, round(SHORTEST / once))
    samples: dict[str, list[float]] = {c.name: [] for c in contestants}
    for _ in range(repeats):
        for c in contestants:
            start = time.perf_counter()
            for _ in range(calls[c.name]):
                c.run()
            samples[c.name].append((time.perf_counter() - start) / calls[c.name])
    return samples


def errors(problem: Problem) -> dict[str, float]:
    """Return max|actual − exact|/max|exact| of the first image, the worst of output and gradients."""
    exact = problem.exact()
    found = {}
    for c in problem.contestants:
        if c.checked:
            result = c.run()
            actual = result if isinstance(result, tuple) else (result,)
            found[c.name] = max(error(a[:1], e) for a, e in zip(actual, exact, strict=True))
    return found


def rows(problem: Problem, repeats: int) -> list[dict[str, Any]]:
    """Return one row for every contestant, the yardsticks first."""
    deviation = errors(problem)
    samples = measure(problem.contestants, repeats)
    medians = {name: statistics.median(times) for name, times in samples.items()}
    limit = sum(weight * medians[name] for name, weight in problem.limit.items())
    result = []
    for name, times in samples.items():
        low, _, high = statistics.quantiles(times, n=4, method="inclusive")
        row = {"contestant": name, "median_ms": medians[name], "min_ms": min(times), "q1_ms": low, "q3_ms": high}
        row = {key: value if key == "contestant" else round(1e3 * value, 5) for key, value in row.items()}
        row |= {"ratio_to_limit": round(medians[name] / limit, 3), "error": deviation.get(name), "samples": len(times)}
        result.append(row)
    return result


def table(title: str, rows: list[dict[str, Any]]) -> str:
    """Return rows as plain text."""
    lines = [title, f"  {'':28}{'median ms':>11}{'quartiles':>21}{'min':>10}{'/limit':>9}  error"]
    for r in rows:
        spread = f"{r['q1_ms']:.3f} … {r['q3_ms']:.3f}"
        deviation = "" if r["error"] is None else f"{r['error']:.1e}"
        figures = f"{r['median_ms']:11.3f}{spread:>21}{r['min_ms']:10.3f}{r['ratio_to_limit']:9.2f}"
        lines.append(f"  {r['contestant']:28}{figures}  {deviation}")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return what a figure depends on besides the code."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "instruction_level": _native.instruction_level(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pliant": pliant.__version__,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--op", choices=OPERATORS, help="one operator instead of all")
    parser.add_argument("--cases", type=lambda s: s.split(","), help="names of pliant.testing, such as S1,S2 or A1")
    parser.add_argument("--threads", type=lambda s: [int(n) for n in s.split(",")], default=[1], help="such as 1,2")
    parser.add_argument("--backward", action="store_true", help="forward + backward instead of forward")
    parser.add_argument("--repeats", type=int, default=9, help="samples of every contestant, at least 3; default 9")
    parser.add_argument("--no-peers", action="store_true", help="only pliant and its limit")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    options = parser.parse_args()
    if options.repeats < 3:
        parser.error("--repeats must be at least 3")
    known = [case.name for op in OPERATORS for case in importlib.import_module(f"problems_{op}").CASES]
    for name in options.cases or ():
        if name not in known:
            parser.error(f"--cases: there is no {name}, only {', '.join(known)}")
    return options


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    report: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "mode": "forward + backward" if options.backward else "forward",
        "results": [],
    }
    print(json.dumps(report["machine"], indent=2))
    for op in (options.op,) if options.op else OPERATORS:
        module = importlib.import_module(f"problems_{op}")
        for case in module.CASES:
            if options.cases and case.name not in options.cases:
                continue
            for threads in options.threads:
                torch.set_num_threads(threads)
                problem: Problem = module.problem(case, options.backward, not options.no_peers)
                load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
                found = rows(problem, options.repeats)
                limit = " + ".join(f"{weight:g} {name}" for name, weight in problem.limit.items())
                head = f"{op} {problem.name} {problem.shape}, {report['mode']}, threads: {threads}, limit: {limit}"
                print("\n" + table(head, found), flush=True)
                entry = {"op": op, "case": problem.name, "shape": problem.shape, "threads": threads}
                report["results"].append(entry | {"limit": problem.limit, "load_before": load, "rows": found})
                if options.out:
                    options.out.parent.mkdir(parents=True, exist_ok=True)
                    options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
