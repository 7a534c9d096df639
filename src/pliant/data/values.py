"""Values of annotation files: whatever spells a number or a flag is one."""

from __future__ import annotations

import math
from typing import Any

FLAGS = {"true": True, "yes": True, "false": False, "no": False, "none": False, "null": False, "": False}


def number(value: Any) -> float | None:
    """Return a finite number, or None; a string that spells one is one, a bool is not.

    >>> number("2.5"), number(3), number("nan"), number(True), number([1])
    (2.5, 3.0, None, None, None)
    """
    value = _spelled(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def whole(value: Any) -> int | None:
    """Return an integer, or None; 3.0, "3" and "3.0" are one.

    >>> whole("3"), whole(3.0), whole(2.5), whole("cat"), whole("9007199254740993")
    (3, 3, None, None, 9007199254740993)
    """
    found = number(value)
    return int(_spelled(value)) if found is not None and found.is_integer() else None


def flag(value: Any) -> bool | None:
    """Return whether a flag is set, None if the value says neither; a missing flag, None, is not set.

    >>> flag("0"), flag("false"), flag(None), flag(1.0), flag("True"), flag("maybe")
    (False, False, False, True, True, None)
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in FLAGS:
        return FLAGS[value.strip().lower()]
    found = number(value)
    return None if found is None else found != 0


def _spelled(value: Any) -> Any:
    """Return the number that a string spells, and everything else as it is."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value
