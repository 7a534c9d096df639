"""Build, check and time every operator on a GPU in one call of at most eight minutes: see benchmarks/README.md.

benchmarks/gpu.py [--out FILE] [--minutes 7.5] [--only conv,lrn,boxes] [--repeats 15]

It needs torch for GPUs and nothing else; torchvision and deformops are timed where they are installed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import pliant
from gpu_checks import checks
from gpu_problems import PRECISIONS, Contestant, Problem, box_problems, conv_problems, dtype_of, lrn_problems
from pliant.testing import TOLERANCE, error

LIMITS = {**{str(dtype).removeprefix("torch."): limit for dtype, limit in TOLERANCE.items()}, "tf32": 2e-3}
WARM_UPS = 3
ROOMS = ["conv", "lrn", "boxes"]


def measure(contestants: Sequence[Contestant], repeats: int) -> dict[str, list[float]]:
    """Return seconds of device time of one call, taken in turns: A B C A B C …

    The device first sleeps, so that the calls are queued before the clock starts: launching is not what is timed. The
    second-level cache is swept before each, since a network's other layers would have.
    """
    sweep = torch.empty(1 << 28, dtype=torch.int8, device="cuda")
    for c in contestants:
        for _ in range(WARM_UPS):
            c.run()
    samples: dict[str, list[float]] = {c.name: [] for c in contestants}
    for _ in range(repeats):
        for c in contestants:
            sweep.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(2_000_000)
            start.record()
            c.run()
            end.record()
            end.synchronize()
            samples[c.name].append(start.elapsed_time(end) * 1e-3)
    return samples


def launching(contestant: Contestant) -> float:
    """Return seconds that the processor needs for one call: what bounds small networks outside of CUDA graphs."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        contestant.run()
    elapsed = (time.perf_counter() - start) / 20
    torch.cuda.synchronize()
    return elapsed


def rows(problem: Problem, repeats: int) -> list[dict[str, Any]]:
    """Return one row for every contestant."""
    dtype_of(problem.precision)
    contestants = list(problem.contestants())
    exact = problem.exact()
    found, able = [], []
    for c in contestants:
        row: dict[str, Any] = {"contestant": c.name}
        try:
            result = c.run()
            torch.cuda.synchronize()
            if c.checked:
                pairs = zip(result, exact, strict=True)
                row["error"] = max(error(a[:1], e) for a, e in pairs)
                limit = LIMITS["float32" if c.name.endswith("float32") else problem.precision]
                # Written so that a NaN fails.
                row["right"] = bool(row["error"] <= limit)
            able.append(c)
        except Exception as reason:
            # A peer that cannot is a line of the table, not the end of it.
            row["failed"] = _first_line(reason)
        found.append(row)
    del exact
    samples = measure(able, repeats)
    medians = {name: statistics.median(times) for name, times in samples.items()}
    own = medians.get("pliant")
    for row in found:
        name = row["contestant"]
        if name in samples:
            low, _, high = statistics.quantiles(samples[name], n=4, method="inclusive")
            row |= {"median_us": 1e6 * medians[name], "q1_us": 1e6 * low, "q3_us": 1e6 * high}
            row |= {"times_pliant": medians[name] / own} if own else {}
        if name == "pliant" and name in samples:
            row["launching_us"] = 1e6 * launching(next(c for c in able if c.name == name))
    return found


def table(problem: Problem, found: list[dict[str, Any]]) -> str:
    """Return rows as plain text: microseconds, and how many times pliant's own."""
    lines = [f"{problem.op} {problem.case}, batch ×{problem.batch}, {problem.precision}, {problem.mode}"]
    for r in found:
        if "failed" in r:
            lines.append(f"  {r['contestant']:22} {r['failed']}")
            continue
        deviation = "" if "error" not in r else f"{r['error']:.1e}{'' if r['right'] else '  WRONG'}"
        figures = f"{r['median_us']:10.1f} µs {r.get('times_pliant', 0):7.2f}×"
        lines.append(f"  {r['contestant']:22}{figures}  {deviation}")
    return "\n".join(lines)


# Compiling ahead, on every core: Triton's cache on disk then holds what the table runs.


def build(problem: Problem) -> None:
    """Run the kernels of a problem once, in a process of its own."""
    dtype_of(problem.precision)
    for c in problem.contestants():
        if c.name.startswith("pliant"):
            c.run()
    torch.cuda.synchronize()


def _build_by_number(arguments: tuple[int, argparse.Namespace]) -> str:
    """Return what went wrong, or nothing: the table says it too, where the problem has its turn."""
    number, options = arguments
    problem = problems(options)[number]
    try:
        build(problem)
    except Exception as reason:
        return f"{problem.op} {problem.case} {problem.precision}: {_first_line(reason)}"
    return ""


def _first_line(reason: Exception) -> str:
    return f"{type(reason).__name__}: {next(iter(str(reason).splitlines()), '')}"[:300]


def problems(options: argparse.Namespace) -> list[Problem]:
    """Return everything that is timed, the most important first."""
    found: list[Problem] = []
    if "conv" in options.only:
        found += conv_problems((16, 1), "cuda")
    # After bfloat16, before the rest.
    at = len(found) // len(PRECISIONS)
    more = [*lrn_problems("cuda")] if "lrn" in options.only else []
    found[at:at] = [*more, *box_problems("cuda")] if "boxes" in options.only else more
    return found


def machine() -> dict[str, Any]:
    """Return what a figure depends on besides the code."""
    triton = importlib.import_module("triton")
    peers = {}
    for name in ("torchvision", "deformops"):
        with contextlib.suppress(ImportError):
            peers[name] = getattr(importlib.import_module(name), "__version__", "unknown")
    return {
        "device": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "driver": torch.version.cuda or torch.version.hip,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "pliant": pliant.__version__,
        **peers,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    parser.add_argument("--minutes", type=float, default=7.5, help="begin nothing new after this time; default 7.5")
    parser.add_argument("--only", type=lambda s: s.split(","), default=ROOMS, help=",".join(ROOMS))
    parser.add_argument("--repeats", type=int, default=15, help="samples of every contestant; default 15")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no GPU that torch can use: nothing is measured")
        return 1
    start = time.perf_counter()

    def left() -> float:
        return 60 * options.minutes - (time.perf_counter() - start)

    report: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
    }
    print(json.dumps(report["machine"], indent=2), flush=True)
    everything = problems(options)
    # One problem of each shape and precision compiles what its batches need; forward + backward holds the forward.
    first = [i for i, p in enumerate(everything) if p.mode != "forward" or p.op == "nms"]
    with multiprocessing.get_context("spawn").Pool(min(8, os.cpu_count() or 1)) as pool:
        said = pool.map(_build_by_number, [(i, options) for i in first], chunksize=1)
    report["build_s"] = round(time.perf_counter() - start, 1)
    report["build_failed"] = [sentence for sentence in said if sentence]
    print("\n".join(["", *report["build_failed"], f"built in {report['build_s']} s", ""]), flush=True)
    report["checks"] = checks()
    report["results"], report["left_out"] = [], []
    for problem in everything:
        entry = {key: getattr(problem, key) for key in ("op", "case", "batch", "precision", "mode")}
        if left() < 0:
            report["left_out"].append(entry)
            continue
        try:
            found = rows(problem, options.repeats)
        except Exception as reason:
            # Such as memory that does not suffice for the exact result: what comes after is measured all the same.
            found = [{"contestant": "pliant", "failed": _first_line(reason)}]
            torch.cuda.empty_cache()
        print("\n" + table(problem, found), flush=True)
        report["results"].append(entry | {"rows": found})
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    wrong = [r for e in report["results"] for r in e["rows"] if r["contestant"] == "pliant" and not r.get("right")]
    failed = [name for name, text in report["checks"].items() if not text.startswith("ok")]
    print(f"\n{len(report['results'])} timed, {len(report['left_out'])} left out for lack of time")
    print(f"{len(wrong)} of pliant's results wrong, checks failed: {', '.join(failed) or 'none'}")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return 1 if wrong or failed else 0


if __name__ == "__main__":
    sys.exit(main())
