"""Count the instructions of every kernel under callgrind, and compare them with counts.json: noise cannot fail it.

python benchmarks/instructions/count.py            compare; status 1 where a count left ±5 %
python benchmarks/instructions/count.py --write    write counts.json anew

Counted is what executes inside pliant's own library, in one thread, on small shapes; torch's matrix products and
allocation are not. The kernels run at each instruction level that valgrind knows, baseline and v3, whatever the machine
has, so machines agree; valgrind has no AVX-512, so v4 is not counted. Compilers do not agree, and counts of another
compiler than the one in counts.json are printed without a verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from pliant import _native

HERE = Path(__file__).resolve().parent
COUNTS = HERE / "counts.json"
TOLERANCE = 0.05
LEVELS = ("baseline", "v3")


def compiler() -> str:
    """Return the compiler's name and version."""
    told = subprocess.run([os.environ.get("CXX", "c++"), "--version"], capture_output=True, text=True, check=True)
    return told.stdout.splitlines()[0]


def counted(library: str) -> dict[str, int]:
    """Compile the driver, run it under callgrind at each level and return the instructions of every case."""
    root = Path(torch.__file__).parent
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        driver = f"{folder}/driver"
        command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O1", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
        command += ["-isystem", f"{root}/include", str(HERE / "driver.cpp"), "-o", driver]
        _run([*command, f"-L{root}/lib", "-ltorch_cpu", f"-Wl,-rpath,{root}/lib", "-ldl"])
        for level in LEVELS:
            dumps = f"{folder}/{level}"
            grind = ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={dumps}"]
            _run([*grind, driver, library], PLIANT_LEVEL=level)
            # The file without a number is what ran after the last case.
            files = sorted(Path(folder).glob(f"{level}.*"), key=lambda path: int(path.suffix[1:]))
            for file in files:
                name, count = own(file.read_text(), library)
                found[f"{level} {name}"] = count
    return found


def own(dump: str, library: str) -> tuple[str, int]:
    """Return the name of a callgrind dump and the instructions executed in a library itself, not in what it calls."""
    named = re.search(r"^desc: Trigger: Client Request: (.*)$", dump, re.MULTILINE)
    assert named is not None
    objects: dict[str, str] = {}
    inside = called = False
    total = 0
    for line in dump.splitlines():
        if found := re.match(r"ob=\((\d+)\)(?: (.*))?$", line):
            number, path = found.groups()
            objects.setdefault(number, path or "")
            inside = objects[number] == library
        elif found := re.match(r"cob=\((\d+)\) (.*)$", line):
            objects.setdefault(*found.groups())
        elif line.startswith("calls="):
            called = True  # the next line counts what was called
        elif re.match(r"[+\-*\d]", line):
            if inside and not called:
                total += int(line.split()[-1])
            called = False
    return named[1], total


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write counts.json anew")
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        parser.error("there is no valgrind here (Debian: apt install valgrind)")
    if _native.path is None:
        parser.error(f"there are no kernels to count: {_native.reason}")
    made_by, counts = compiler(), counted(str(Path(_native.path).resolve()))
    if options.write:
        COUNTS.write_text(json.dumps({"compiler": made_by, "counts": counts}, indent=1) + "\n")
    held = json.loads(COUNTS.read_text())
    failed = 0
    print(f"{'instructions':54}{'now':>12}{'held':>12}{'change':>9}")
    for name, now in counts.items():
        before = held["counts"].get(name)
        change = now / before - 1 if before else None
        failed += change is None or abs(change) > TOLERANCE
        print(f"{name:54}{now:12,}{before or 0:12,}" + ("     new" if change is None else f"{100 * change:+8.1f}%"))
    missing = sorted(held["counts"].keys() - counts.keys())
    if missing:
        print("no longer counted: " + ", ".join(missing))
    if held["compiler"] != made_by:
        print(f"No verdict: {COUNTS.name} is of {held['compiler']!r}, this is {made_by!r}.")
        return 0
    if failed or missing:
        print(f"{failed} left ±{100 * TOLERANCE:.0f} %. If that is meant, write them anew (--write) and say why.")
    return 1 if failed or missing else 0


def _run(command: list[str], **environment: str) -> None:
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=alone)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}")


if __name__ == "__main__":
    sys.exit(main())
