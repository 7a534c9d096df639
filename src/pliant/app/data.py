"""The data of a command; what is wrong in its files is told, a line for each fault."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import TypeVar

from pliant.data import Detection

TOLD = 20  # faults of a file; an annotation file can have as many as annotations
Data = TypeVar("Data", bound=Detection | None)


def told(build: Callable[[], Data], aloud: bool = True) -> Data:
    """Return the data that `build` reads, and print the faults that it knows of."""
    with warnings.catch_warnings():
        # Of the same faults, the first one alone.
        warnings.filterwarnings("ignore", message="coco: ")
        data = build()
    problems = getattr(data, "problems", [])
    if aloud:
        for problem in problems[:TOLD]:
            print(problem, file=sys.stderr)
        if len(problems) > TOLD:
            print(f"… and {len(problems) - TOLD} more like these", file=sys.stderr)
    return data
