"""Time every operator beside its limit and its peers: see benchmarks/README.md for what the figures mean.

benchmarks/run.py [--op deform_conv2d|deform_roi_pool|lrn|nms|networks] [--cases S1,S2] [--threads 1,2] [--backward]
                  [--peers none|torch|all] [--base REVISION] [--repeats N] [--out FILE]
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import shlex
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import pliant
from measuring import Problem, rows, table
from pliant import _native
from revision import checked_out

OPERATORS = ("deform_conv2d", "deform_roi_pool", "lrn", "nms", "networks")


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
    parser.add_argument(
        "--peers", choices=("none", "torch", "all"), default="torch",
        help="beside pliant and its limit: what torch has (default), or whatever is installed, torch.compile too",
    )  # fmt: skip
    parser.add_argument("--base", metavar="REVISION", help="beside pliant, another revision of it, such as HEAD")
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
    if _native.path is None:
        raise SystemExit(f"benchmarks: the kernels are not there to be timed, {_native.reason}")
    report: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "mode": "forward + backward" if options.backward else "forward",
        "results": [],
    }
    print(json.dumps(report["machine"], indent=2))
    with ExitStack() as stack:
        base = stack.enter_context(checked_out(options.base)) if options.base else None
        for op in (options.op,) if options.op else OPERATORS:
            module = importlib.import_module(f"problems_{op}")
            for case in module.CASES:
                if options.cases and case.name not in options.cases:
                    continue
                for threads in options.threads:
                    torch.manual_seed(0)
                    torch.set_num_threads(threads)
                    problem: Problem = module.problem(case, options.backward, options.peers)
                    if base is not None:
                        other = base.contestants(op=op, case=case.name, backward=options.backward, threads=threads)
                        problem = replace(problem, contestants=[*problem.contestants, *other])
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
