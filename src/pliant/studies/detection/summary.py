"""The summary that the study prints: one table per data set, and what differs from the regular network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from pliant.studies import summary as studies
from pliant.studies.detection.contestants import CONTESTANTS
from pliant.studies.detection.protocol import DATA
from pliant.studies.report.statistics import Cell, difference, points, spread
from pliant.studies.summary import Result, Runs, over_seeds, table, wrapped

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def summary(results: Sequence[Result]) -> str:
    """Return the table of all contestants, and what comparing them says."""
    return studies.summary("detection", results, tuple(CONTESTANTS), "data", DATA, _section)


def score(results: Sequence[Result], column: str) -> Cell | None:
    """Return one score of a contestant by seed; None where it is not known."""
    values = {r["seed"]: r["scores"][column] for r in results if r["scores"][column] is not None}
    return Cell(values) if values else None


def _section(data: str, runs: Runs) -> list[str]:
    """Return two tables, so that each fits a terminal: average precision, and what it costs."""
    return [
        f"{data}. Average precision in percent{over_seeds(runs)}.",
        *table(["", *COLUMNS], [_row(r) for r in runs.values()]),
        "",
        *table(["", "parameters", "M mult-adds", "ms/image", "train s"], [_costs(r) for r in runs.values()]),
        "",
        *_floor(runs),
        *_against_regular(runs),
    ]


def _row(found: list[Result]) -> list[str]:
    cells = [score(found, column) for column in COLUMNS]
    said = [spread(list(cell.by_seed.values())).strip() if cell else "–" for cell in cells]
    return [found[0]["label"], *(text.replace(" ± ", "±") for text in said)]


def _costs(found: list[Result]) -> list[str]:
    adds = found[0]["multiply_adds"]
    pace, seconds = 1e3 * fmean(r["image_seconds"] for r in found), fmean(r["train_seconds"] for r in found)
    cost = "–" if adds is None else f"{adds / 1e6:.1f}"
    return [found[0]["label"], f"{found[0]['parameters']:,}", cost, f"{pace:.1f}", f"{seconds:.0f}"]


def _floor(runs: Runs) -> list[str]:
    """Say what the networks scored before they were trained."""
    before = [r["untrained"]["AP50"] or 0.0 for found in runs.values() for r in found if r["untrained"]]
    return [f"Before training: AP50 of at most {100 * max(before):.2f} %."] if before else []


def _against_regular(runs: Runs) -> list[str]:
    """Return one line per network: points of AP and AP50 against the regular one of the same seeds."""
    if "regular" not in runs:
        return []
    lines = []
    for name, found in runs.items():
        if name in ("regular", "hog"):
            continue
        said = []
        for column in ("AP", "AP50"):
            ours, theirs = score(found, column), score(runs["regular"], column)
            gap = difference(ours, theirs) if ours and theirs else None
            if gap is not None:
                chance = "" if math.isnan(gap.low) or gap.verdict else ", not told from chance"
                said.append(f"{column} {points(gap)}{chance}")
        if said:
            lines += wrapped(f"{found[0]['label']} − regular, points: {'; '.join(said)}")
    return lines
