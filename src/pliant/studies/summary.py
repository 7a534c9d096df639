"""The summary that a study prints: the same for all studies but for what is said of the runs of one condition."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

Result = dict[str, Any]
Runs = dict[str, list[Result]]  # contestant → its runs under one condition, by seed
WIDTH = 100  # columns of a terminal that a summary needs


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


def over_seeds(runs: Runs) -> str:
    """Return how many seeds stand behind the figures of a table; with one there is nothing to say.

    >>> over_seeds({"a": [{}, {}], "b": [{}, {}, {}]}), over_seeds({"a": [{}]})
    (', mean ± standard deviation over 2 to 3 seeds', '')
    """
    counts = sorted({len(found) for found in runs.values()})
    if counts[-1] < 2:
        return ""
    several = f"{counts[0]} to {counts[-1]}" if counts[0] < counts[-1] else str(counts[0])
    return f", mean ± standard deviation over {several} seeds"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines of text: names on the left, everything else on the right.

    >>> table(["", "AP"], [["a net", "38.4"], ["b", "9.1"]])
    ['         AP', 'a net  38.4', 'b       9.1']
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            [f"{name:<{widths[0]}}", *(f"{cell:>{n}}" for cell, n in zip(cells, widths[1:], strict=True))]
        ).rstrip()
        for name, *cells in (head, *rows)
    ]


def wrapped(text: str, indent: str = "") -> list[str]:
    """Return a sentence as lines of a terminal, those after the first indented further."""
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_long_words=False)
