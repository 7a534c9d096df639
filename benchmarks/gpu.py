"""Build, check and time every operator on a GPU in one call of at most eight minutes: see benchmarks/README.md.

benchmarks/gpu.py [--out FILE] [--minutes 7.5] [--only conv,lrn,boxes] [--repeats 15]

It needs torch for GPUs and nothing else; torchvision and deformops are timed where they are installed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import pliant
from gpu_checks import checks
from measuring import Call, Problem, Setting, report, save
from pliant.testing import DEFORM_CONV_SPEED, LRN_SPEED, NMS_SPEED, ROI_SPEED, TOLERANCE, error
from problems import PROBLEMS

# float32 twice: with IEEE's rounding, and rounded to TF32 where the matrix units read it.
PRECISIONS = ("bfloat16", "float32", "tf32", "float16")
LIMITS = {**{str(dtype).removeprefix("torch."): limit for dtype, limit in TOLERANCE.items()}, "tf32": 2e-3}
WARM_UPS = 3
PARTS = ["conv", "lrn", "boxes"]


@dataclass(frozen=True)
class Entry:
    """One block of the table: an operator, a case of pliant.testing and how often its own batch `case` holds."""

    op: str
    case: Any
    setting: Setting
    batch: int = 1

    def problem(self) -> Problem:
        """Draw the tensors, and let the matrix units round float32 to TF32 or not."""
        rounding = "tf32" if self.setting.precision == "tf32" else "ieee"
        torch.backends.cuda.matmul.fp32_precision = rounding
        torch.backends.cudnn.conv.fp32_precision = rounding
        _, build = PROBLEMS[self.op]
        return build(self.case, self.setting)

    def words(self) -> dict[str, Any]:
        """Return what identifies the entry in the JSON file."""
        setting = self.setting
        found = {"op": self.op, "case": self.case.name, "batch": self.batch}
        return found | {"precision": setting.precision, "mode": setting.mode}


def entries(parts: Sequence[str]) -> list[Entry]:
    """Return everything that is timed, the most important first."""
    conv = list(_conv()) if "conv" in parts else []
    # The other operators stand after bfloat16, before the other precisions.
    first = len(conv) // len(PRECISIONS)
    found = conv[:first]
    found += _lrn() if "lrn" in parts else ()
    found += _boxes() if "boxes" in parts else ()
    return found + conv[first:]


def _setting(precision: str, backward: bool) -> Setting:
    return Setting("cuda", precision, backward, peers="all")


def _conv() -> Iterator[Entry]:
    """Yield S1 to S8, first what is promised most about: bfloat16, large batches."""
    for precision in PRECISIONS:
        for batch in (16, 1):
            for backward in (False, True):
                for case in DEFORM_CONV_SPEED:
                    whole = replace(case, input=(batch * case.input[0], *case.input[1:]))
                    yield Entry("deform_conv2d", whole, _setting(precision, backward), batch)


def _lrn() -> Iterator[Entry]:
    """Yield A1 and A2 with 8 times their batch, which is 256."""
    for precision in ("float32", "bfloat16"):
        for backward in (False, True):
            for case in LRN_SPEED[:2]:
                whole = replace(case, input=(8 * case.input[0], *case.input[1:]))
                yield Entry("local_response_norm", whole, _setting(precision, backward), 8)


def _boxes() -> Iterator[Entry]:
    """Yield pooling of 1000 RoIs, and suppression among 2000 and 20000 boxes."""
    pooled = replace(ROI_SPEED[0], name="R1, 1000 RoIs", rois=1000)
    for precision in ("bfloat16", "float32"):
        for backward in (False, True):
            for op in ("deform_roi_pool", "roi_align", "roi_pool"):
                yield Entry(op, pooled, _setting(precision, backward))
    for case in (NMS_SPEED[0], NMS_SPEED[2]):
        yield Entry("nms", case, _setting("float32", False))


def measure(contestants: Sequence[Call], repeats: int) -> dict[str, list[float]]:
    """Return seconds of device time of one call, taken in turns: A B C A B C …

    The device sleeps first, so that the calls are queued before the clock starts and launching is not timed. The
    second-level cache is overwritten before each call, as other layers of a network would do.
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


def launching(contestant: Call) -> float:
    """Return seconds that the processor needs for one call: the limit of small networks outside of CUDA graphs."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        contestant.run()
    elapsed = (time.perf_counter() - start) / 20
    torch.cuda.synchronize()
    return elapsed


def rows(entry: Entry, repeats: int) -> list[dict[str, Any]]:
    """Return one row per contestant."""
    problem = entry.problem()
    exact = problem.exact()
    found, able = [], []
    for c in problem.contestants:
        row: dict[str, Any] = {"contestant": c.name}
        try:
            result = c.run()
            torch.cuda.synchronize()
            if c.checked:
                pairs = zip(result, exact, strict=True)
                row["error"] = max(error(a[:1], e) for a, e in pairs)
                limit = LIMITS["float32" if c.name.endswith("float32") else entry.setting.precision]
                # Written so that a NaN fails.
                row["right"] = bool(row["error"] <= limit)
            able.append(c)
        except Exception as reason:
            # The row says why; the other contestants are timed all the same.
            row["failed"] = _first_line(reason)
        found.append(row)
    del exact
    samples = measure(able, repeats)
    medians = {name: statistics.median(times) for name, times in samples.items()}
    # Times are relative to the layout that pliant computes in.
    own = next((c for c in able if c.name in ("pliant channels_last", "pliant")), None)
    for row in found:
        name = row["contestant"]
        if name in samples:
            low, _, high = statistics.quantiles(samples[name], n=4, method="inclusive")
            row |= {"median_us": 1e6 * medians[name], "q1_us": 1e6 * low, "q3_us": 1e6 * high}
            row |= {"times_pliant": medians[name] / medians[own.name]} if own else {}
        if own and name == own.name:
            row["launching_us"] = 1e6 * launching(own)
    return found


def table(entry: Entry, found: list[dict[str, Any]]) -> str:
    """Return rows as plain text: microseconds, and how many times pliant's own."""
    setting = entry.setting
    lines = [f"{entry.op} {entry.case.name}, batch ×{entry.batch}, {setting.precision}, {setting.mode}"]
    for r in found:
        if "failed" in r:
            lines.append(f"  {r['contestant']:22} {r['failed']}")
            continue
        deviation = "" if "error" not in r else f"{r['error']:.1e}{'' if r['right'] else '  WRONG'}"
        figures = f"{r['median_us']:10.1f} µs {r.get('times_pliant', 0):7.2f}×"
        lines.append(f"  {r['contestant']:22}{figures}  {deviation}")
    return "\n".join(lines)


def build(entry: Entry) -> str:
    """Run pliant's kernels of a problem once, in a process of its own, so that Triton's cache on disk holds them.

    Returns what went wrong, or nothing. The table says it again at the problem's turn.
    """
    try:
        for c in entry.problem().contestants:
            if c.name.startswith("pliant"):
                c.run()
        torch.cuda.synchronize()
    except Exception as reason:
        return f"{entry.op} {entry.case.name} {entry.setting.precision}: {_first_line(reason)}"
    return ""


def _first_line(reason: Exception) -> str:
    return f"{type(reason).__name__}: {next(iter(str(reason).splitlines()), '')}"[:300]


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
    parser.add_argument("--only", type=lambda s: s.split(","), default=PARTS, help=",".join(PARTS))
    parser.add_argument("--repeats", type=int, default=15, help="samples of every contestant; default 15")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no GPU that torch can use: nothing is measured")
        return 1
    start = time.perf_counter()

    def left() -> float:
        return 60 * options.minutes - (time.perf_counter() - start)

    done = report(machine())
    everything = entries(options.only)
    # One problem per shape and precision compiles what its batches need; forward + backward includes the forward.
    first = [entry for entry in everything if entry.setting.backward or entry.op == "nms"]
    with multiprocessing.get_context("spawn").Pool(min(8, os.cpu_count() or 1)) as pool:
        said = pool.map(build, first, chunksize=1)
    done["build_s"] = round(time.perf_counter() - start, 1)
    done["build_failed"] = [sentence for sentence in said if sentence]
    print("\n".join(["", *done["build_failed"], f"built in {done['build_s']} s", ""]), flush=True)
    done["checks"] = checks()
    done["results"], done["left_out"] = [], []
    for entry in everything:
        if left() < 0:
            done["left_out"].append(entry.words())
            continue
        try:
            found = rows(entry, options.repeats)
        except Exception as reason:
            # For example too little memory for the exact result: the remaining entries are measured all the same.
            found = [{"contestant": "pliant", "failed": _first_line(reason)}]
            torch.cuda.empty_cache()
        print("\n" + table(entry, found), flush=True)
        done["results"].append(entry.words() | {"rows": found})
        save(done, options.out)
    own = [row for e in done["results"] for row in e["rows"] if row["contestant"].startswith("pliant")]
    wrong = [row for row in own if not row.get("right")]
    failed = [name for name, text in done["checks"].items() if not text.startswith("ok")]
    print(f"\n{len(done['results'])} timed, {len(done['left_out'])} left out for lack of time")
    print(f"{len(wrong)} of pliant's results wrong, checks failed: {', '.join(failed) or 'none'}")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return 1 if wrong or failed else 0


if __name__ == "__main__":
    sys.exit(main())
