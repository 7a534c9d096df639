"""The report's tables and curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pliant.show.curves import Curve, chart, extent
from pliant.show.tables import Cell as Entry
from pliant.show.tables import table
from pliant.studies.geometry.report import findings
from pliant.studies.geometry.report.findings import TRAINED
from pliant.studies.geometry.report.results import Results, deformable
from pliant.studies.report.curves import Style, contestants_legend, curve
from pliant.studies.report.entries import ADAPTATION, adaptation, counted, gap_entry, share
from pliant.studies.report.page import legend
from pliant.studies.report.statistics import Cell

UNITS = {
    "scale": "scale factor",
    "rotation": "angle in degrees, to either side",
    "aspect": "ratio of the sides",
    "shear": "tangent of the shear angle",
    "bend": "amplitude relative to the side",
}
IDENTITY = {"scale": 1.0, "rotation": 0.0, "aspect": 1.0, "shear": 0.0, "bend": 0.0}
LOGARITHMIC = ("scale", "aspect")

# Colour, dashes and width of a contestant's curve: one hue for each family, dashes within it.
_STYLES: dict[str, Style] = {
    "sift": ("var(--grey)", "2 3", 2.0),
    "plain": ("var(--ink-line)", "", 2.0),
    "plain-lrn": ("var(--purple)", "", 2.0),
    "dilated-2": ("var(--green)", "", 2.0),
    "dilated-3": ("var(--green)", "6 4", 2.0),
    "deform-v1-1": ("var(--orange)", "2 3", 2.0),
    "deform-v1-2": ("var(--orange)", "6 4", 2.0),
    "deform-v1-3": ("var(--orange)", "", 2.0),
    "deform-v2-3": ("var(--blue)", "", 3.0),
}
_LAYERS = (("var(--blue)", ""), ("var(--orange)", "6 4"), ("var(--green)", "2 3"))


def accuracy(results: Results, training: str) -> str:
    """Return the accuracies after one training: a row per contestant, a column per kind of test, the best in bold."""
    best = {column: results.best(results.contestants, training, column) for column in results.columns}
    rows: list[Sequence[Entry | str]] = []
    for group, members in _groups(results):
        there = [c for c in members if results.score(c, training, "clean") is not None]
        if there:
            rows.append([group])
        for contestant in there:
            cells = [share(results.score(contestant, training, c), best[c] == contestant) for c in results.columns]
            n = results.score(contestant, training, "clean")
            rows.append([results.label(contestant), *cells, *results.counted(n.n if n else 0)])
    head = ["contestant", *(f"{c}" for c in results.columns), *(["seeds"] if len(results.seeds) > 1 else [])]
    return table(head, rows, f"{TRAINED.get(training, training)}: accuracy in %{results.over_seeds}.")


def duels(results: Results, training: str) -> str:
    """Return the best deformable network against the best control in every column."""
    rows: list[Sequence[Entry | str]] = [
        [column, gap_entry(gap), results.label(ours), results.label(theirs)]
        for column, (ours, theirs, gap) in findings.duels(results, training).items()
    ]
    head = ["test", "difference in points", "best deformable", "best control"]
    return table(head, rows, f"{TRAINED.get(training, training)}.") if rows else ""


def margins(results: Results, training: str) -> str:
    """Return every deformable network's paired difference to the best control, and to the best control network."""
    rows: list[Sequence[Entry | str]] = []
    before = None
    for title, networks in (("every control", False), ("networks alone", True)):
        controls = findings.controls(results, networks)
        best = {column: results.best(controls, training, column) for column in results.columns}
        # A second block only where hand-made features are the best control somewhere.
        if best == before or not any(best.values()):
            continue
        before = best
        block = _margins(results, training, best)
        if block:
            named = [Entry(results.label(c) if c is not None else "–", kind="name") for c in best.values()]
            rows += [[title], ["best control", *named], *block]
    if not rows:
        return ""
    with_ = ", with its 95 % interval" if len(results.seeds) > 1 else ""
    caption = f"{TRAINED.get(training, training)}: difference to the best control in points{with_}."
    return table(["contestant", *results.columns], rows, caption)


def _margins(results: Results, training: str, best: Mapping[str, str | None]) -> list[Sequence[Entry | str]]:
    rows: list[Sequence[Entry | str]] = []
    for contestant in results.contestants:
        if deformable(contestant) and results.score(contestant, training, "clean") is not None:
            gaps = [results.against(contestant, c, training, column) if c else None for column, c in best.items()]
            rows.append([results.label(contestant), *(gap_entry(gap, "stack") for gap in gaps)])
    return rows


def cost(results: Results) -> str:
    """Return the table of parameters, multiply-adds and time."""

    def seconds(cell: Cell | None) -> str:
        if cell is None:
            return "–"
        return f"{cell.mean:.1f}" + (f" ± {cell.sd:.1f}" if cell.n > 1 else "")

    rows: list[Sequence[Entry | str]] = []
    for group, members in _groups(results):
        rows.append([group])
        for contestant in members:
            runs = results.of(contestant)
            counts = (("parameters", "{:,.0f}", 1), ("multiply_adds", "{:.2f}", 1e6), ("epochs", "{:.0f}", 1))
            times = [results.cell(contestant, t, lambda run: run.get("train_seconds")) for t in results.conditions]
            times.append(results.cell(contestant, None, lambda run: run.get("test_seconds")))
            rows.append([results.label(contestant), *(counted(runs, *c) for c in counts), *map(seconds, times)])
    trained = [f"training, {t} (s)" for t in results.conditions]
    return table(["contestant", "parameters", "10⁶ multiply-adds", "epochs", *trained, "all tests (s)"], rows)


def switches(results: Results) -> str:
    """Return the legend of the curves, a switch for each contestant."""
    return contestants_legend(results, results.contestants, _STYLES)


def curves(results: Results) -> str:
    """Return accuracy against strength: a chart for each kind and training, all on one vertical axis."""
    scores = [s for run in results.runs for kind in run["accuracy"].values() for s in kind.values()]
    low, high = max(0.0, math.floor(10 * min(scores)) / 10), min(1.0, math.ceil(10 * max(scores)) / 10)
    charts = []
    for kind in results.kinds:
        for training in results.conditions:
            lines = [line for c in results.contestants if (line := _strengths(results, c, training, kind))]
            if lines:
                charts.append(
                    chart(
                        lines,
                        f"{kind}, {training}",
                        UNITS.get(kind, kind),
                        y_label="accuracy",
                        y_range=(low, max(high, low + 0.1)),
                        shaded=results.ranges(kind),
                        logarithmic=kind in LOGARITHMIC,
                        percent=True,
                    )
                )
    return f'<div class="charts">{"".join(charts)}</div>'


def dilation(results: Results) -> str:
    """Return effective dilation against object size, a chart for each deformable contestant and training."""
    paint = _layers(results)
    found: list[tuple[str, list[Curve]]] = []
    for contestant in results.contestants:
        for training in results.conditions:
            lines = _dilations(_measured(results, contestant, training, "effective_dilation"), paint)
            if lines:
                found.append((f"{results.label(contestant)}, {training}", lines))
    if not found:
        return ""
    span = extent([line for _, lines in found for line in lines])
    size, distance = "size of the object, √area in pixels", "effective dilation, pixels of the map"
    charts = [chart(lines, title, size, y_label=distance, y_range=span) for title, lines in found]
    key = legend({layer: (layer, color, dash, 2.0) for layer, (color, dash) in sorted(paint.items())}, switches=False)
    return f'{key}<div class="charts">{"".join(charts)}</div>'


def correlations(results: Results) -> str:
    """Return Spearman's ρ of effective dilation and object size, and the statistics of the offsets."""
    rows: list[Sequence[Entry | str]] = []
    for contestant in results.contestants:
        for training in results.conditions:
            found = _measured(results, contestant, training, "spearman")
            offsets = _measured(results, contestant, training, "offsets")
            layers = dict.fromkeys(layer for run in (*found, *offsets) for layer in run)
            for layer in layers:
                rho = [run[layer] for run in found if layer in run]
                moves = [run[layer] for run in offsets if layer in run]
                seeds = results.counted(max(len(rho), len(moves)))
                rows.append([results.label(contestant), training, layer, *adaptation(rho, moves), *seeds])
    if not rows:
        return ""
    several = len(results.seeds) > 1
    head = ["contestant", "training", "layer", *ADAPTATION, *(["seeds"] if several else [])]
    rho_ = "mean over seeds, in brackets the lowest and highest end of the seeds'" if several else "in brackets its"
    return table(
        head,
        rows,
        f"ρ: {rho_} 95 % bootstrap intervals over images. Offsets in pixels of the layer's map{results.over_seeds}; % "
        "out of bounds: samples that read nothing of the map.",
    )


def strengths(results: Results, training: str) -> str:
    """Return the accuracy at every single strength."""
    tests = [(kind, s) for kind in results.kinds for s in results.strengths(kind)]
    rows: list[Sequence[Entry | str]] = []
    for contestant in results.contestants:
        cells = [results.at(contestant, training, *test) for test in tests]
        if any(cells):
            rows.append([results.label(contestant), *(share(cell) for cell in cells)])
    return table(["contestant", *(f"{kind} {s}" for kind, s in tests)], rows, TRAINED.get(training, training))


def _groups(results: Results) -> list[tuple[str, list[str]]]:
    there = results.contestants
    parts = [
        ("hand-made features", [c for c in there if c == "sift"]),
        ("controls", [c for c in there if c != "sift" and not deformable(c)]),
        ("deformable", [c for c in there if deformable(c)]),
    ]
    return [(name, members) for name, members in parts if members]


def _strengths(results: Results, contestant: str, training: str, kind: str) -> Curve | None:
    """Return a contestant's curve, with the clean test where nothing is transformed."""
    cells = {float(s): results.at(contestant, training, kind, s) for s in results.strengths(kind)}
    if kind in IDENTITY:
        cells.setdefault(IDENTITY[kind], results.score(contestant, training, "clean"))
    there = {x: cell for x, cell in sorted(cells.items()) if cell is not None}
    if not there:
        return None
    return curve(results, contestant, there, _STYLES)


def _measured(results: Results, contestant: str, training: str, key: str) -> list[Any]:
    return [run[key] for run in results.of(contestant, training) if run.get(key)]


def _layers(results: Results) -> dict[str, tuple[str, str]]:
    """Return layer → (colour, dashes); the last layer is the full line."""
    rows = [row["layer"] for run in results.runs for row in run.get("effective_dilation") or []]
    layers = sorted(dict.fromkeys(rows), reverse=True)
    return {layer: _LAYERS[i % len(_LAYERS)] for i, layer in enumerate(layers)}


def _dilations(runs: list[list[dict[str, Any]]], paint: Mapping[str, tuple[str, str]]) -> list[Curve]:
    """Return a curve for each layer: bins of object size in order, mean and sd over seeds."""
    lines = []
    for layer in sorted({row["layer"] for run in runs for row in run}):
        per_seed = [sorted((r["scale"], r["dilation"]) for r in run if r["layer"] == layer) for run in runs]
        # Every seed sees the same test images; a seed with fewer bins would shift the others' means.
        bins = max(len(rows) for rows in per_seed)
        whole = [rows for rows in per_seed if len(rows) == bins]
        x = [Cell(dict(enumerate(rows[b][0] for rows in whole))).mean for b in range(bins)]
        y = [Cell(dict(enumerate(rows[b][1] for rows in whole))) for b in range(bins)]
        color, dash = paint[layer]
        band = [cell.sd for cell in y] if len(whole) > 1 else None
        lines.append(Curve(layer, x, [cell.mean for cell in y], band, color, dash, 2.0))
    return lines
