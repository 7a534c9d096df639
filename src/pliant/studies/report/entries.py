"""Cells of a report's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pliant.show.tables import Cell as Entry
from pliant.studies.report.statistics import Cell, Difference, interval, signed

ADAPTATION = ("Spearman's ρ", "mean |offset|", "% out of bounds")  # headings of the cells of `adaptation`


def gap_entry(gap: Difference | None, kind: str = "") -> Entry:
    """Return a difference in points with its interval; ▲ and ▼ where that excludes 0."""
    if gap is None:
        return Entry("–")
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


def counted(runs: Sequence[Mapping[str, Any]], key: str, write: str, unit: float = 1) -> str:
    """Return the different values that runs have of `key`, in units of `unit`."""
    values = sorted({run[key] for run in runs if run.get(key) is not None})
    return " / ".join(write.format(value / unit) for value in values) or "not counted"


def adaptation(rho: Sequence[Mapping[str, float]], moves: Sequence[Mapping[str, float]]) -> list[str]:
    """Return how a layer adapts, over seeds: Spearman's ρ, mean |offset| and samples that are out of bounds."""
    text = "–"
    if rho:
        mean = Cell(dict(enumerate(r["rho"] for r in rho))).mean
        text = f"{mean:+.2f} [{min(r['low'] for r in rho):+.2f}, {max(r['high'] for r in rho):+.2f}]"
    sizes = plain([m["mean_abs"] for m in moves], "{:.2f}"), plain([100 * m["outside"] for m in moves], "{:.1f}")
    return [text.replace("-", "−"), *sizes]
