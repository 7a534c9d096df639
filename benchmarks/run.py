"""Time every operator beside its limit and its peers: see benchmarks/README.md for what the figures mean.

benchmarks/run.py [--op deform_conv2d|…|networks] [--cases S1,S2] [--threads 1,2] [--backward]
                  [--peers none|torch|all] [--base REVISION] [--repeats N] [--out FILE]
"""

from __future__ import annotations

import argparse
import os
import platform
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

import pliant
from measuring import Setting, report, rows, save, table
from pliant import _native
from problems import PROBLEMS
from revision import checked_out

SHORT = {"lrn": "local_response_norm"}


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
    parser = argparse.ArgumentParser(
        prog="pliant bench", description="Time every operator beside its limit and its peers."
    )
    parser.add_argument(
        "--op",
        type=lambda s: SHORT.get(s, s),
        choices=PROBLEMS,
        metavar="OP",
        help=f"one operator instead of all: {', '.join(PROBLEMS)}; lrn for short",
    )
    parser.add_argument("--cases", type=lambda s: s.split(","), help="names of pliant.testing, such as S1,S2 or A1")
    parser.add_argument("--threads", type=lambda s: [int(n) for n in s.split(",")], default=[1], help="such as 1,2")
    parser.add_argument("--backward", action="store_true", help="forward + backward instead of forward")
    parser.add_argument("--repeats", type=int, default=9, help="samples of every contestant, at least 3; default 9")
    parser.add_argument(
        "--peers", choices=("none", "torch", "all"), default="torch",
        help="what is timed beside pliant and its limit: nothing, PyTorch's own functions (default), or every other "
        "library that is installed too",
    )  # fmt: skip
    parser.add_argument("--base", metavar="REVISION", help="another revision of pliant to time beside it, such as HEAD")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file too")
    options = parser.parse_args()
    if options.repeats < 3:
        parser.error("--repeats must be at least 3")
    known = [case.name for cases, _ in PROBLEMS.values() for case in cases]
    for name in options.cases or ():
        if name not in known:
            parser.error(f"--cases: there is no {name}, only {', '.join(dict.fromkeys(known))}")
    return options


def main() -> None:
    options = arguments()
    if _native.path is None:
        raise SystemExit(f"benchmarks: there are no kernels to time, {_native.reason}")
    setting = Setting(backward=options.backward, peers=options.peers)
    found = report(machine()) | {"mode": setting.mode, "results": []}
    with ExitStack() as stack:
        base = stack.enter_context(checked_out(options.base)) if options.base else None
        for op in [options.op] if options.op else PROBLEMS:
            cases, build = PROBLEMS[op]
            for case in cases:
                if options.cases and case.name not in options.cases:
                    continue
                for threads in options.threads:
                    torch.manual_seed(0)
                    torch.set_num_threads(threads)
                    problem = build(case, setting)
                    asked = {"op": op, "case": case.name, "backward": options.backward, "threads": threads}
                    other = base.contestants(**asked) if base else []
                    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
                    lines = rows(problem, options.repeats, other)
                    limit = " + ".join(f"{weight:g} {name}" for name, weight in problem.limit.items())
                    head = f"{op} {problem.name} {problem.shape}, {setting.mode}, threads: {threads}, limit: {limit}"
                    print("\n" + table(head, lines), flush=True)
                    entry = {"op": op, "case": problem.name, "shape": problem.shape, "threads": threads}
                    found["results"].append(entry | {"limit": problem.limit, "load_before": load, "rows": lines})
                    save(found, options.out)


if __name__ == "__main__":
    main()
