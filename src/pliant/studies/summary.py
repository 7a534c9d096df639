"""The summary that a study prints: the same for all studies but for what is said of the runs of one condition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Result = dict[str, Any]
Runs = dict[str, list[Result]]  # contestant → its runs under one condition, by seed


def summary(
    study: str,
    results: Sequence[Result],
    contestants: Sequence[str],
    key: str,
    conditions: Sequence[str],
    section: Callable[[str, Runs], list[str]],
) -> str:
    """Return the summary of a study.

    Args:
        study: its name on the command line.
        results: finished runs.
        contestants: in the order of the summary.
        key: of the condition in a run.
        conditions: in the order of the summary.
        section: from a condition and its runs to lines.
    """
    lines = []
    for condition in conditions:
        of = {c: [r for r in results if (r["contestant"], r[key]) == (c, condition)] for c in contestants}
        runs = {c: sorted(found, key=lambda r: int(r["seed"])) for c, found in of.items() if found}
        lines += [*section(condition, runs), ""] if runs else []
    if any(r["profile"] == "quick" for r in results):
        lines.append(f"This is the quick study: few epochs, one seed. `pliant study {study}` runs the full one.")
    return "\n".join(lines).rstrip() + "\n"
