"""Cells of a report's tables."""

from __future__ import annotations

from collections.abc import Sequence

from pliant.show.tables import Cell as Entry
from pliant.studies.report.statistics import Cell, Difference, interval, signed


def gap_entry(gap: Difference, kind: str = "") -> Entry:
    """Return a difference in points with its interval; ▲ and ▼ where that excludes 0."""
    mark, color = {1: (" ▲", "win"), -1: (" ▼", "lose"), 0: ("", "")}[gap.verdict]
    return Entry(signed(gap.mean) + mark, gap.verdict != 0, interval(gap), f"{kind} {color}".strip())


def share(cell: Cell | None, best: bool = False) -> Entry:
    """Return a share in percent, mean ± standard deviation."""
    if cell is None:
        return Entry("–")
    return Entry(f"{100 * cell.mean:.1f}", best, f"± {100 * cell.sd:.1f}" if cell.n > 1 else "")


def plain(values: Sequence[float], write: str) -> str:
    """Return mean ± standard deviation of values, both written by the format `write`."""
    if not values:
        return "–"
    cell = Cell(dict(enumerate(values)))
    return write.format(cell.mean) + (f" ± {write.format(cell.sd)}" if cell.n > 1 else "")
