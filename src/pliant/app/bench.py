"""``pliant bench``: time every operator against its limit and other libraries, from a checkout."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pliant
from pliant.app import about


def main(words: Sequence[str]) -> int:
    """Run ``benchmarks/run.py`` of the checkout that pliant is installed from, with the same arguments.

    Raises:
        ValueError: pliant is not installed from a checkout.
    """
    assert pliant.__file__ is not None
    script = Path(pliant.__file__).resolve().parents[2] / "benchmarks" / "run.py"
    if not script.is_file():
        absent = (
            "the benchmarks are not part of the installed package; run `make install` and `make bench` in a checkout "
            "of the repository"
        )
        if {"-h", "--help"} & set(words):
            print(f"{about('bench')}\n\n" + textwrap.fill(f"Here {absent}. Then this help lists all arguments.", 100))
            return 0
        raise ValueError(absent)
    return subprocess.run([sys.executable, str(script), *words]).returncode
