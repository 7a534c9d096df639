"""The data of a command; every fault in its files is printed as one line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import TypeVar

from pliant.data import Detection

TOLD = 20  # most faults printed per file; every annotation can be one
Data = TypeVar("Data", bound=Detection | None)


def told(build: Callable[[], Data], aloud: bool = True) -> Data:
    """Return the data that `build` reads, and print the faults found in it."""
    with warnings.catch_warnings():
        # The warning repeats the first of the faults printed below.
        warnings.filterwarnings("ignore", message="(coco|categories): ")
        data = build()
    problems = getattr(data, "problems", [])
    if aloud:
        for problem in problems[:TOLD]:
            print(problem, file=sys.stderr)
        if len(problems) > TOLD:
            print(f"… and {len(problems) - TOLD} more like these", file=sys.stderr)
    return data
