"""Which claims of the papers the numbers show, which they do not, and which they leave open."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pliant.studies.detection.report.results import Results
from pliant.studies.report.statistics import Difference, points

OURS = {"composed": "composed scenes", "crowns": "tree crowns"}


@dataclass(frozen=True)
class Claim:
    """One claim: that `ours` has a larger AP than `theirs`, or (`sign` 0) that there is next to no difference.

    Also a prediction of what is outside of the box, where `column` is one of `support`.

    Args:
        text: the claim.
        ours, theirs: contestants.
        source: where it is made, and how large the difference is there in points of AP on COCO, where that is known.
        sign: 1, or −1 for a smaller value, or 0.
        column: what is compared.
    """

    text: str
    ours: str
    theirs: str
    source: str
    sign: int = 1
    column: str = "AP"


_FULL = "mdconv-c3-c5-mdpool"
CLAIMS = (
    Claim(
        "Deformable convolution in the last stage beats regular convolution",
        "dconv-c5", "regular", "v1, tables 1 and 3",
    ),
    Claim(
        "Deformable convolution in the last stage beats a fixed dilation",
        "dconv-c5", "dilated-c5", "v1, table 3: by AP at strict overlap, hardly at 0.5, for Faster R-CNN",
    ),
    Claim(
        "In the last three stages deformable convolution beats a fixed dilation",
        "dconv-c3-c5", "dilated-c3-c5", "v1, table 3",
    ),
    Claim(
        "Deformable convolution in the last three stages beats the last alone",
        "dconv-c3-c5", "dconv-c5", "v2: 2.0 to 3.0",
    ),
    Claim(
        "Deformable RoI pooling adds to deformable convolution",
        "dconv-c3-c5-dpool", "dconv-c3-c5", "v1, table 3: above all at strict overlap",
    ),
    Claim(
        "Deformable RoI pooling adds at strict overlap",
        "dconv-c3-c5-dpool", "dconv-c3-c5", "v1, table 3", column="AP75",
    ),
    Claim(
        "Modulation adds to deformable convolution",
        "mdconv-c3-c5", "dconv-c3-c5", "v2: 0.3 to 0.7; mmdetection measured 0.1",
    ),
    Claim(
        "Modulation adds to deformable convolution and pooling",
        _FULL, "dconv-c3-c5-dpool", "v2: 0.3 to 0.7; mmdetection's modulated pooling is not better than its plain one",
    ),
    Claim("The full network beats the regular one", _FULL, "regular", "v2, table 1: 41.7 against 34.7"),
    Claim("The full network beats the regular one on large objects", _FULL, "regular", "v2, table 1", column="APl"),
    Claim("The full network beats the regular one on small objects", _FULL, "regular", "v2, table 1", column="APs"),
    Claim("Mimicking on the foreground improves the full network", "full-mimic-fg", _FULL, "v2, table 3: 1 to 1.4"),
    Claim("Mimicking on the background alone does next to nothing", "full-mimic-bg", _FULL, "v2, table 3", 0),
    Claim(
        "Mimicking on the foreground alone is better than on both",
        "full-mimic-fg", "full-mimic-both", "v2, table 3",
    ),
    Claim(
        "Mimicking does next to nothing for the regular network",
        "regular-mimic-fg", "regular", "v2, table 3: almost no gain", 0,
    ),
)  # fmt: skip


def verdict(claim: Claim, gap: Difference) -> str:
    """Return what a difference says about a claim, in a few words."""
    if math.isnan(gap.low):
        return "open"
    if claim.sign:
        return {1: "shown", 0: "not told from chance", -1: "the opposite is shown"}[claim.sign * gap.verdict]
    return "no difference beyond chance" if not gap.verdict else "a difference is shown"


def tested(results: Results, data: str) -> list[tuple[Claim, Difference]]:
    """Return the claims for which the folder has both contestants, with the measured difference."""
    found = [(claim, results.against(claim.ours, claim.theirs, data, claim.column)) for claim in CLAIMS]
    return [(claim, gap) for claim, gap in found if gap is not None]


def sentences(results: Results) -> list[str]:
    """Return what the study shows, and what it does not."""
    return [s for data in results.conditions for s in (*_level(results, data), *_claims(results, data))] + [
        *_growth(results),
        *_bins(results),
        *_cost(results),
    ]


def _level(results: Results, data: str) -> list[str]:
    """Say how good the best detector, the hand-made one and the untrained ones are."""
    networks = [c for c in results.contestants if c != "hog"]
    best, hog = results.best(networks, data, "AP50"), results.score("hog", data, "AP50")
    cell = results.score(best, data, "AP50") if best else None
    if best is None or cell is None:
        return []
    text = (
        f"On {OURS.get(data, data)} the largest mean AP50 is that of “{results.label(best)}”, {100 * cell.mean:.1f} %"
    )
    before = [run["untrained"]["AP50"] or 0.0 for run in results.runs if run["data"] == data and run.get("untrained")]
    if before:
        text += f"; before training no network had more than {100 * max(before):.2f} %"
    if hog is not None:
        text += f"; the hand-made detector has {100 * hog.mean:.1f} %"
    return [text + "."]


def _claims(results: Results, data: str) -> list[str]:
    by: dict[str, list[str]] = {}
    for claim, gap in tested(results, data):
        if math.isnan(gap.low):
            continue
        text = f"{claim.text[:1].lower()}{claim.text[1:]}"
        by.setdefault(verdict(claim, gap), []).append(f"{text} ({claim.column} {points(gap)})")
    words = {
        "shown": "Of the papers' claims {} show",
        "the opposite is shown": "{} show the opposite of",
        "not told from chance": "{} do not show, for the difference cannot be told from chance",
        "no difference beyond chance": "Where the papers have next to no difference, {} have none beyond chance either",
        "a difference is shown": "Where the papers have next to no difference, {} show one",
    }
    name = OURS.get(data, data)
    said = [f"{text.format(name)}: {'; '.join(by[v])}." for v, text in words.items() if v in by]
    return [s[0].upper() + s[1:] for s in said]


def _growth(results: Results) -> list[str]:
    """Count the layers whose effective dilation grows with the object's size in every seed."""
    up, down, layers = results.growth()
    if not layers:
        return []
    every = " in every seed" if len(results.seeds) > 1 else ""
    return [
        f"The papers' sampling grids grow with the object. Here effective dilation grows with it in {up} of "
        f"{layers} trained deformable layers (Spearman's ρ above 0 with its interval{every}), shrinks in "
        f"{down}, and does neither for certain in {layers - up - down}."
    ]


def _bins(results: Results) -> list[str]:
    found = [(results.label(c), d, results.cell(c, d, _shift)) for d in results.conditions for c in results.contestants]
    said = [f"{label} {100 * cell.mean:.1f} % ({OURS.get(d, d)})" for label, d, cell in found if cell is not None]
    return [f"Mean shift of a bin of deformable RoI pooling, in shares of the box: {'; '.join(said)}."] if said else []


def _shift(run: dict[str, object]) -> float | None:
    rows = run.get("bins")
    if not isinstance(rows, list) or not rows:
        return None
    count = sum(row["n"] for row in rows)
    return float(sum(row["mean"] * row["n"] for row in rows) / count)


def _cost(results: Results) -> list[str]:
    said = []
    for data in results.conditions:
        times = [results.cell(c, data, lambda run: run.get("image_seconds")) for c in (_FULL, "dconv-c3-c5", "regular")]
        if times[2] is None:
            continue
        for name, cell in (("full network", times[0]), ("network with deformable c3–c5", times[1])):
            if cell is not None:
                ours, theirs = (1e3 * c.mean for c in (cell, times[2]))
                said.append(f"the {name} {ours:.0f} ms against {theirs:.0f} ms of the regular one ({data})")
    if not said:
        return []
    return [f"Wall time per image, other load on the machine included: {'; '.join(said)}."]
