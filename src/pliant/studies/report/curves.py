"""Curves of a report: a contestant looks the same in every chart and in the legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pliant.show.curves import Curve
from pliant.studies.report.page import legend
from pliant.studies.report.results import Results
from pliant.studies.report.statistics import Cell

Style = tuple[str, str, float]  # colour, dashes and width
OTHER: Style = ("var(--purple)", "1 3", 2.0)  # of a contestant without a style of its own


def contestants_legend(results: Results, contestants: Sequence[str], styles: Mapping[str, Style]) -> str:
    """Return the legend, with a switch for each contestant's curve."""
    return legend({c: (results.label(c), *styles.get(c, OTHER)) for c in contestants})


def curve(results: Results, contestant: str, cells: Mapping[float, Cell], styles: Mapping[str, Style]) -> Curve:
    """Return a contestant's curve through `cells` (x → values): the mean, with a band of one standard deviation."""
    band = [cell.sd for cell in cells.values()] if all(cell.n > 1 for cell in cells.values()) else None
    means = [cell.mean for cell in cells.values()]
    style = styles.get(contestant, OTHER)
    return Curve(results.label(contestant), list(cells), means, band, *style, f"curve-{contestant}")
