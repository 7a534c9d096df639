"""Where networks look: how much of what an output depends on lies outside of the object, and what papers predict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pliant.show import canvas
from pliant.show.boxes import frame
from pliant.show.influence import OfBox, receptive_field, saliency_region
from pliant.show.tables import Cell as Entry
from pliant.show.tables import table
from pliant.studies.detection.measures import GROUPS
from pliant.studies.detection.protocol import DATA, shown
from pliant.studies.detection.report.findings import OURS, Claim, verdict
from pliant.studies.detection.report.results import Results
from pliant.studies.detection.support import CELL, ERROR, EVALUATIONS, FOLDER, NODES
from pliant.studies.report import page, results
from pliant.studies.report.entries import gap_entry
from pliant.studies.report.figures import Figure
from pliant.studies.report.statistics import Cell, Difference, crossed

if TYPE_CHECKING:
    from torch import Tensor

SHARES = {"field": "receptive field", "samples": "sampling locations", "region": "saliency region"}
PIXELS = {"field_pixels": "pixels of the field", "region_pixels": "pixels of the region"}
OF_NODE = {"c5": "the position of c5 at the object's centre", "box": "the features of the object's box"}
_FULL, _PAPER = "mdconv-c3-c5-mdpool", "v2, figures 1 and 2"
PREDICTIONS = (
    Claim("Version 1 spreads beyond the object", "dconv-c3-c5", "regular", _PAPER, 1, "c5"),
    Claim("Modulated convolution is tighter than version 1", "mdconv-c3-c5", "dconv-c3-c5", _PAPER, -1, "c5"),
    Claim("Modulated pooling tightens what a box depends on", _FULL, "mdconv-c3-c5", _PAPER, -1, "box"),
    Claim("Mimicking on the foreground tightens it further", "full-mimic-fg", _FULL, _PAPER, -1, "box"),
    Claim("Mimicking on the background does not", "full-mimic-bg", _FULL, _PAPER, 0, "box"),
    Claim("The foreground alone is tighter than both", "full-mimic-fg", "full-mimic-both", _PAPER, -1, "box"),
    Claim("The regular network is not tightened by mimicking", "regular-mimic-fg", "regular", _PAPER, 0, "box"),
)
DRAWN = ("regular", "dconv-c3-c5", _FULL, "full-mimic-fg")  # of the example
MISSING = "Spatial support is not measured; `python -m pliant.studies.detection.support FOLDER` does so."
COLOURS = {"regular": canvas.INK, "dconv": canvas.ORANGE, "mdconv": canvas.BLUE, "full": canvas.PURPLE}


class Measured(results.Results):
    """What was measured of the networks of a study, object by object."""

    study: ClassVar[str] = "detection"
    key: ClassVar[str] = "data"
    known_contestants: ClassVar[Sequence[str]] = Results.known_contestants
    known_conditions: ClassVar[Sequence[str]] = DATA

    @staticmethod
    def usable(run: dict[str, Any]) -> bool:
        return len(run["objects"]["image"]) == len(run["objects"]["size"])

    @property
    def whole(self) -> list[tuple[str, str]]:
        return []

    def score(self, contestant: str, condition: str, column: str) -> Cell | None:
        """Return the mean of a measure over images, by seed."""
        return self.cell(contestant, condition, lambda run: _mean(by_image(run["objects"], column)))

    def mean(self, contestant: str, data: str, column: str, size: str | None = None) -> Difference | None:
        """Return the mean of a measure, such as "c5 field", over seeds and images."""
        return _over([by_image(run["objects"], column, size) for run in self.of(contestant, data)])

    def compared(self, ours: str, theirs: str, data: str, column: str) -> Difference | None:
        """Return ours − theirs, paired by seed and object; of numbers of pixels the difference of their logarithms."""
        first, second = ({run["seed"]: run["objects"] for run in self.of(c, data)} for c in (ours, theirs))
        paired = []
        for seed in sorted(first.keys() & second.keys()):
            pairs = zip(*(_taken(run[column], column) for run in (first[seed], second[seed])), strict=True)
            gaps = [None if None in pair else pair[0] - pair[1] for pair in pairs]
            paired.append(by_image({**first[seed], column: gaps}, column))
        return _over(paired)


def read(results: Results) -> Measured | None:
    """Return what was measured of a study's networks; None where nothing was."""
    try:
        found = Measured.read(results.folder / FOLDER)
    except (FileNotFoundError, ValueError):
        return None
    # The section and its figures all read: a note is said once.
    said = [f"Spatial support: {note}" for note in found.notes]
    results.notes.extend(note for note in said if note not in results.notes)
    return found


def by_image(objects: dict[str, list[Any]], column: str, size: str | None = None) -> dict[int, float]:
    """Return the mean of a measure over the objects of each image, of all sizes or of one."""
    kept: dict[int, list[float]] = {}
    for image, of, value in zip(objects["image"], objects["size"], objects[column], strict=True):
        if value is not None and size in (None, of):
            kept.setdefault(image, []).append(value)
    return {image: sum(values) / len(values) for image, values in kept.items()}


def section(results: Results) -> list[str]:
    """Return the section of the report; nothing where nothing was measured."""
    found = read(results)
    if found is None:
        return []
    html = [page.paragraph(_ABOUT)]
    for data in found.conditions:
        html += [predictions(found, data), shares(found, data)]
    return html


def predictions(found: Measured, data: str) -> str:
    """Return what the papers predict, and what was measured of it."""
    rows: list[Sequence[Entry | str]] = []
    for claim in PREDICTIONS:
        gaps = {m: found.compared(claim.ours, claim.theirs, data, f"{claim.column} {m}") for m in (*SHARES, *PIXELS)}
        first = gaps["field"]
        if first is None:
            continue
        cells = [*(gap_entry(gaps[m], "stack") for m in SHARES), *(_ratio(gaps[m]) for m in PIXELS)]
        rows.append([claim.text, claim.column, Entry(verdict(claim, first), kind="name"), *cells])
    head = ["prediction", "node", "by the field", *(f"{name} outside" for name in SHARES.values()), *PIXELS.values()]
    caption = (
        f"{OURS.get(data, data).capitalize()}: difference of the share outside of the box in points, ratio of pixels, "
        "95 % intervals for other seeds and other images."
    )
    return table(head, rows, caption) if rows else ""


def shares(found: Measured, data: str) -> str:
    """Return what lies outside of the box for every network and node, and by the object's size."""
    rows: list[Sequence[Entry | str]] = []
    for node in NODES:
        rows.append([OF_NODE[node][0].upper() + OF_NODE[node][1:]])
        for c in found.contestants:
            cells = [_share(found.mean(c, data, f"{node} {m}")) for m in SHARES]
            cells += [_share(found.mean(c, data, f"{node} field", size)) for size in GROUPS[:3]]
            cells += [_count(found.mean(c, data, f"{node} {m}")) for m in PIXELS]
            if any(cell.text != "–" for cell in cells):
                rows.append([found.label(c), *cells])
    head = ["contestant", *SHARES.values(), *(f"field, {size}" for size in GROUPS[:3]), *PIXELS.values()]
    return table(head, rows, f"{OURS.get(data, data).capitalize()}: % outside of the object's box, and pixels.")


def outside(results: Results) -> Figure:
    """Draw the shares outside of the box of every network, with intervals."""
    found = read(results)
    if found is None:
        raise LookupError(MISSING)
    data = found.conditions[0]
    names = found.contestants
    figure = canvas.sheet(9.6, 0.6 * len(names) + 1.6)
    panels = figure.subplots(len(NODES), len(SHARES), sharey=True, squeeze=False)
    for row, node in zip(panels, NODES, strict=True):
        for axes, (measure, title) in zip(row, SHARES.items(), strict=True):
            for place, name in enumerate(names):
                cell = found.mean(name, data, f"{node} {measure}")
                if cell is None:
                    continue
                colour = next((c for start, c in COLOURS.items() if name.startswith(start)), canvas.GREEN)
                low, high = (0.0, 0.0) if math.isnan(cell.low) else (cell.mean - cell.low, cell.high - cell.mean)
                axes.errorbar(
                    100 * cell.mean, place, xerr=[[100 * low], [100 * high]], fmt="o", markersize=5, color=colour,
                    elinewidth=1.6,
                )  # fmt: skip
            axes.set_yticks(range(len(names)), [found.label(name) for name in names], fontsize=10)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.grid(axis="x", color="#E4E4E4")
            axes.tick_params(axis="x", labelsize=9)
            axes.tick_params(length=0)
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.set_title(f"{node}: {title}", fontsize=11, color=canvas.INK)
    for axes in panels[-1]:
        axes.set_xlabel("outside of the box, %", fontsize=10)
    figure.tight_layout()
    caption = (
        f"How much of what a network depends on lies outside of the object ({OURS.get(data, data)}), mean over "
        f"{page.count(len(found.seeds), 'seed')} and the test images, with 95 % intervals for other seeds and images. "
        f"Above: {OF_NODE['c5']}. Below: {OF_NODE['box']}. Intervals of single networks; differences between "
        "networks are paired and known better, see the table."
    )
    return Figure("support", canvas.png(figure), caption, "Shares outside of the box of every network, with intervals")


def example(results: Results, models: dict[str, Any], image: Tensor, box: Tensor) -> Figure:
    """Draw what the features of one box (4,) of an image (3, H, W), uint8, depend on in networks, name → network."""
    import numpy as np

    node = OfBox(tuple(box.tolist()))
    pixels = image.permute(1, 2, 0).numpy() / 255
    grey = pixels.mean(2, keepdims=True).repeat(3, 2)
    figure = canvas.sheet(2.4 * len(models), 5.1)
    above, below = figure.subplots(2, len(models), squeeze=False)
    for upper, lower, (name, model) in zip(above, below, models.items(), strict=True):
        field = np.sqrt(receptive_field(model, shown(image), node))
        canvas.show_picture(upper, grey, results.label(name))
        upper.imshow(field, cmap="inferno", alpha=0.8, interpolation="nearest", zorder=2)
        region = saliency_region(model, shown(image), node, error=ERROR, cell=CELL, evaluations=EVALUATIONS)
        mean = pixels.mean((0, 1))
        canvas.show_picture(lower, np.where(region.mask[..., None], pixels, 0.5 * mean + 0.5), f"{region.share:.0%}")
        for axes in (upper, lower):
            frame(axes, box.tolist(), canvas.YELLOW)
    figure.subplots_adjust(0.005, 0.005, 0.995, 1 - 0.3 / 5.1, 0.03, 0.13)
    caption = (
        "What the features of one box (yellow) depend on. Above: the effective receptive field, square root. Below: "
        f"the smallest part found that keeps the features within {ERROR:.0%}, and its share of the image."
    )
    return Figure("support-example", canvas.png(figure), caption, "Receptive fields and saliency regions of one box")


_ABOUT = (
    "How much of what an output depends on lies outside of the object's box, for two nodes: c5, its position "
    "at the object's centre, and box, the features of the box head for the object's box. The receptive field is the "
    "gradient's norm at every pixel; sampling locations are the gradient with respect to the samples of the 3×3 "
    "convolutions of c3 to c5; the saliency region is the smallest part of the image found that keeps the response "
    f"within {ERROR:.0%}. The predictions were written down before anything was measured; the receptive field decides. "
    "▲ and ▼ mark intervals that exclude 0; they are not corrected for the number of comparisons."
)


def _over(rows: list[dict[int, float]]) -> Difference | None:
    """Return the mean over seeds and over the images that all of them have."""
    import numpy as np

    images = sorted(set.intersection(*map(set, rows))) if rows else []
    return crossed(np.array([[row[image] for image in images] for row in rows])) if images else None


def _taken(values: list[Any], column: str) -> list[Any]:
    """Return what is compared of a measure: of pixels the logarithm, of no pixels nothing."""
    if not column.endswith("pixels"):
        return values
    return [math.log(value) if value else None for value in values]


def _mean(values: dict[int, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None


def _share(found: Difference | None) -> Entry:
    return Entry("–") if found is None else Entry(f"{100 * found.mean:.1f}")


def _count(found: Difference | None) -> Entry:
    return Entry("–") if found is None else Entry(f"{found.mean:,.0f}")


def _ratio(gap: Difference | None) -> Entry:
    if gap is None:
        return Entry("–")
    note = "" if math.isnan(gap.low) else f"[{math.exp(gap.low):.2f}, {math.exp(gap.high):.2f}]"
    return Entry(f"{math.exp(gap.mean):.2f}", gap.verdict != 0, note, "stack")
