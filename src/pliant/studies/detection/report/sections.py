"""The report's tables and curves."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from pliant.show.curves import Curve, chart
from pliant.show.tables import Cell as Entry
from pliant.show.tables import table
from pliant.studies.detection.measures import GROUPS
from pliant.studies.detection.report import findings
from pliant.studies.detection.report.findings import OURS
from pliant.studies.detection.report.results import Results
from pliant.studies.detection.summary import COLUMNS
from pliant.studies.report.curves import Style, contestants_legend, curve
from pliant.studies.report.entries import ADAPTATION, adaptation, counted, gap_entry, plain, share
from pliant.studies.report.statistics import Cell

# Colour, dashes and width of a contestant's curve: one hue for each family, dashes within it.
_STYLES: dict[str, Style] = {
    "regular": ("var(--ink-line)", "", 2.0),
    "dilated-c5": ("var(--green)", "6 4", 2.0),
    "dilated-c3-c5": ("var(--green)", "", 2.0),
    "dconv-c5": ("var(--orange)", "2 3", 2.0),
    "dconv-c3-c5": ("var(--orange)", "6 4", 2.0),
    "dconv-c3-c5-dpool": ("var(--orange)", "", 2.0),
    "mdconv-c3-c5": ("var(--blue)", "6 4", 2.0),
    "mdconv-c3-c5-mdpool": ("var(--blue)", "", 3.0),
    "full-mimic-fg": ("var(--purple)", "", 2.0),
    "full-mimic-bg": ("var(--purple)", "2 3", 2.0),
    "full-mimic-both": ("var(--purple)", "6 4", 2.0),
    "regular-mimic-fg": ("var(--grey)", "6 4", 2.0),
}


def ablation(results: Results, data: str) -> str:
    """Return the table as the papers have it: a row per contestant, columns of average precision and of cost."""
    best = {column: results.best(results.contestants, data, column) for column in COLUMNS}
    rows: list[Sequence[Entry | str]] = []
    for group, members in results.groups(data):
        rows.append([group])
        for c in members:
            cells = [share(results.score(c, data, column), best[column] == c) for column in COLUMNS]
            seeds = results.counted(len(results.of(c, data)))
            rows.append([results.label(c), *cells, *_costs(results, c, data), *seeds])
    head = ["contestant", *COLUMNS, "parameters", "10⁶ multiply-adds", "ms per image", "training (s)"]
    head += ["seeds"] if len(results.seeds) > 1 else []
    return table(head, rows, f"{OURS.get(data, data).capitalize()}: average precision in %{results.over_seeds}.")


def _costs(results: Results, contestant: str, data: str) -> list[str]:
    runs = results.of(contestant, data)
    cost = [counted(runs, "parameters", "{:,.0f}"), counted(runs, "multiply_adds", "{:.1f}", 1e6)]
    # No standard deviation: how times vary over seeds tells of other load on the machine.
    for key, unit, write in (("image_seconds", 1e-3, "{:.1f}"), ("train_seconds", 1, "{:.0f}")):
        values = [run[key] for run in runs if run.get(key)]
        cost.append(write.format(fmean(values) / unit) if values else "–")
    return cost


def differences(results: Results, data: str) -> str:
    """Return every network's paired difference to the regular one."""
    rows: list[Sequence[Entry | str]] = []
    for group, members in results.groups(data):
        found: list[Sequence[Entry | str]] = []
        for c in members:
            gaps = [results.against(c, "regular", data, column) for column in COLUMNS]
            if c != "regular" and any(gaps):
                found.append([results.label(c), *(gap_entry(g, "stack") for g in gaps)])
        rows += [[group], *found] if found else []
    if not rows:
        return ""
    with_ = ", 95 % interval" if len(results.seeds) > 1 else ""
    caption = f"{OURS.get(data, data).capitalize()}: difference to the regular network in points{with_}."
    return table(["contestant", *COLUMNS], rows, caption)


def claims(results: Results, data: str) -> str:
    """Return the papers' claims and what was measured of each."""
    rows: list[Sequence[Entry | str]] = [
        [claim.text, claim.column, gap_entry(gap), Entry(findings.verdict(claim, gap), kind="name"),
         Entry(claim.source, kind="name")]
        for claim, gap in findings.tested(results, data)
    ]  # fmt: skip
    head = ["claim", "by", "difference in points", "here", "in the papers, AP on COCO"]
    return table(head, rows, OURS.get(data, data).capitalize()) if rows else ""


def classes(results: Results, data: str) -> str:
    """Return AP of every class."""
    names = list(dict.fromkeys(n for run in results.runs if run["data"] == data for n in run["scores"]["per_class"]))

    def of_class(contestant: str, name: str) -> Entry:
        return share(results.cell(contestant, data, lambda run: run["scores"]["per_class"].get(name)))

    rows: list[Sequence[Entry | str]] = [
        [results.label(c), *(of_class(c, name) for name in names)]
        for _, members in results.groups(data)
        for c in members
    ]
    return table(["contestant", *names], rows, OURS.get(data, data).capitalize()) if len(names) > 1 else ""


def switches(results: Results) -> str:
    """Return the legend of the curves, a switch for each network."""
    return contestants_legend(results, [c for c in results.contestants if c != "hog"], _STYLES)


def curves(results: Results) -> str:
    """Return AP50 and the losses against steps, for each data set."""
    charts = []
    for data in results.conditions:
        lines = [line for c in results.contestants if (line := _curve(results, c, data, "curve", "AP50"))]
        if lines:
            charts.append(chart(lines, f"AP50, {OURS.get(data, data)}", "step", y_label="AP50", percent=True))
        names = dict.fromkeys(n for run in results.runs for row in run.get("losses") or [] for n in row)
        for name in (n for n in names if n in ("loss", "classification", "mimic_cosine")):
            lines = [line for c in results.contestants if (line := _curve(results, c, data, "losses", name))]
            if lines:
                said = name.replace("_", " ")
                charts.append(chart(lines, f"{said} in training, {OURS.get(data, data)}", "step", y_label=said))
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def dilation(results: Results) -> str:
    """Return the mean effective dilation by size of object, as in table 2 of the first paper."""
    rows: list[Sequence[Entry | str]] = []
    for data in results.conditions:
        for c in results.contestants:
            runs = [run for run in results.of(c, data) if run.get("dilation")]
            layers = sorted({row["layer"] for run in runs for row in run["dilation"]}, reverse=True)
            rows += [[f"{results.label(c)}, {OURS.get(data, data)}"]] if layers else []
            for layer in layers:
                rows.append([layer, *(_spread(runs, layer, group) for group in GROUPS), *_moves(runs, layer)])
    if not rows:
        return ""
    several, head = len(results.seeds) > 1, ["layer", *GROUPS, *ADAPTATION]
    return table(
        head,
        rows,
        f"Mean ± standard deviation over positions of a layer's map{', averaged over seeds' if several else ''}; 1 is "
        "an ordinary 3×3 kernel. ρ is over objects"
        f"{': mean over seeds, in brackets the lowest and highest end of their' if several else ', in brackets its'} "
        "95 % bootstrap intervals over images. Offsets in pixels of the layer's input; % out of bounds: samples that "
        "read nothing.",
    )


def bins(results: Results) -> str:
    """Return how far the bins of deformable RoI pooling move."""
    rows: list[Sequence[Entry | str]] = []
    for data in results.conditions:
        for c in results.contestants:
            runs = [run for run in results.of(c, data) if run.get("bins")]
            if not runs:
                continue
            means = [[row["mean"] for run in runs for row in run["bins"] if row["group"] == g] for g in GROUPS[:3]]
            rows.append(
                [f"{results.label(c)}, {data}", *(plain([100 * m for m in found], "{:.1f}") for found in means)]
            )
    head = ["contestant", *GROUPS[:3]]
    return table(head, rows, "Mean shift of a bin in % of the box's sides, by size of the object.") if rows else ""


def _spread(runs: list[dict[str, Any]], layer: str, group: str) -> str:
    found = [r for run in runs for r in run["dilation"] if (r["layer"], r["group"]) == (layer, group)]
    if not found:
        return "–"
    mean, sd = (sum(r[key] for r in found) / len(found) for key in ("mean", "sd"))
    return f"{mean:.2f} ± {sd:.2f}"


def _moves(runs: list[dict[str, Any]], layer: str) -> list[str]:
    rho = [run["spearman"][layer] for run in runs if layer in (run.get("spearman") or {})]
    moves = [run["offsets"][layer] for run in runs if layer in (run.get("offsets") or {})]
    return adaptation(rho, moves)


def _curve(results: Results, contestant: str, data: str, key: str, name: str) -> Curve | None:
    """Return a value over steps, mean and sd over seeds."""
    runs = [run for run in results.of(contestant, data) if run.get(key)]
    rows = [{row["step"]: row[name] for row in run[key] if row.get(name) is not None} for run in runs]
    steps = sorted(set.intersection(*map(set, rows))) if rows else []
    if not steps:
        return None
    cells = {step: Cell({i: row[step] for i, row in enumerate(rows)}) for step in steps}
    return curve(results, contestant, cells, _STYLES)
