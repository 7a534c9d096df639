"""The geometry study's report: one HTML file with the question, the protocol and the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pliant.studies.geometry.report import figures, findings, sections
from pliant.studies.geometry.report.results import Results
from pliant.studies.report import frame, page
from pliant.studies.report.figures import Figure, placed
from pliant.studies.report.page import count

__all__ = ["write"]


def write(out: Path) -> Path:
    """Write the report of the study whose results, settings and weights are in the folder `out`; return its path.

    Raises:
        FileNotFoundError: there is no results.jsonl.
        ValueError: no run is finished.
        OSError: it cannot be written; a report that was there before stays.
    """
    return frame.write(Results.read(Path(out)), figures.all_figures, _content)


def _content(results: Results, drawn: Sequence[Figure]) -> frame.Content:
    trainings = results.conditions
    return frame.Content(
        title="Do deformable layers cope with transformations that training did not show?",
        quick=_quick(results),
        lead=" ".join(text for training in trainings for text in findings.verdict(results, training)),
        pictures=placed(drawn, "sampling", width=900),
        sections=_sections(results),
        question=_QUESTION,
        protocol=_protocol(results),
        details=_details(results, drawn),
    )


def _sections(results: Results) -> list[frame.Section]:
    trainings = results.conditions
    curves = [page.paragraph(_curves(results)), sections.switches(results), sections.curves(results)]
    accuracy = [page.paragraph(_COLUMNS), *(sections.accuracy(results, training) for training in trainings)]
    said = findings.sentences(results)
    duels = [*(sections.duels(results, training) for training in trainings), page.bullets(said) if said else ""]
    return [
        frame.Section("Accuracy against strength", curves),
        frame.Section("Accuracy", accuracy),
        frame.Section("The best deformable network against the best control", duels),
        frame.Section("What it costs", [sections.cost(results)]),
    ]


def _details(results: Results, drawn: Sequence[Figure]) -> list[frame.Section]:
    trainings = results.conditions
    margins = [text for training in trainings if (text := sections.margins(results, training))]
    if margins and len(results.seeds) > 1:
        margins = [page.paragraph(_MARGINS), *margins]
    dilation, correlations = sections.dilation(results), sections.correlations(results)
    growth = [page.paragraph(_DILATION), dilation, correlations] if dilation or correlations else []
    looks = placed(drawn, "poses")
    strengths = "".join(sections.strengths(results, training) for training in trainings)
    return [
        frame.Section("Against the best control", margins),
        frame.Section("Every single strength", [page.details("Tables", strengths)] if strengths else []),
        frame.Section("Does the grid grow with the object?", growth),
        frame.Section("Where the layers look", [page.paragraph(_POINTS), *looks] if looks else []),
        frame.Section("Grids as special cases", placed(drawn, "grids")),
        frame.Section("Inhibition", placed(drawn, "lrn")),
    ]


def _curves(results: Results) -> str:
    band = "The mean over seeds with a band of one standard deviation. " if len(results.seeds) > 1 else ""
    return (
        f"{band}The tinted area is what augmentation covers. The point without a transformation is the clean test. "
        "Point at a dot to see its value; the boxes switch curves off."
    )


def _quick(results: Results) -> str:
    epochs = results.settings.get("epochs")
    length = count(epochs, "epoch") if epochs is not None else "few epochs"
    return (
        f"This is the {results.profile} profile, {length}: it shows that everything works and which way the results "
        "lean. The full profile (`pliant study geometry` without --quick) trains longer, with five seeds."
    )


def _protocol(results: Results) -> list[str]:
    settings: dict[str, Any] = results.settings
    said = []
    data = settings.get("data", {})
    if data:
        said.append(
            f"Images: {data.get('name')}, {data.get('train')} to train on and {data.get('test')} to test on "
            f"({data.get('source')}), each drawn on a black canvas with sides of {settings.get('canvas')} pixels. "
            "Training images are drawn anew in every epoch; the test poses are the same for all contestants."
        )
    trainings = settings.get("trainings", {})
    for name, title in (("upright", "Trained upright"), ("augmented", "Trained with augmentation")):
        if name in trainings:
            said.append(f"{title}: {_ranges(trainings[name])}.")
    if settings.get("strengths"):
        tests = "; ".join(f"{kind} {', '.join(f'{s:g}' for s in all_)}" for kind, all_ in settings["strengths"].items())
        said.append(
            f"Tested clean (posed as in upright training) and under one transformation at a time: {tests}. Strengths "
            "that augmentation does not cover never occur in training."
        )
    if settings.get("optimiser"):
        optimiser = settings["optimiser"]
        said.append(
            f"Networks: {settings.get('epochs')} epochs of {optimiser.get('name')}, batch {optimiser.get('batch')}, "
            f"largest learning rate {optimiser.get('lr')}; the same for all. Widths are chosen so that all networks "
            "have as many parameters as “deformable v2, 3 layers”, within 5 %."
        )
    said.append(
        "Controls: everything that is not deformable. A larger fixed dilation is the decisive one: it reaches as far "
        "as a deformable grid, but does not adapt."
    )
    return said


def _ranges(ranges: dict[str, Any]) -> str:
    words = {
        "scale": "scale {0:g} to {1:g}",
        "rotation": "rotated by up to {1:g}° to either side",
        "aspect": "sides stretched up to {1:g} : 1",
        "shear": "sheared by up to {1:g}",
        "bend": "bent by up to {1:g} of the side",
    }
    idle = {"scale": [1.0, 1.0], "rotation": [0.0, 0.0], "aspect": [1.0, 1.0], "shear": [0.0, 0.0], "bend": [0.0, 0.0]}
    said = [
        words[kind].format(*values) for kind, values in ranges.items() if kind in words and list(values) != idle[kind]
    ]
    if ranges.get("shift"):
        said.append(f"up to {ranges['shift']:g} pixels off the centre")
    return ", ".join(said)


_QUESTION = (
    "Objects appear rotated, scaled, stretched and bent, in more ways than one can list. There are two classical "
    "answers: show the network examples of every transformation (augmentation), or build features that do not change "
    "under it (such as SIFT). Deformable layers are a third, learned answer: a convolution that predicts from "
    "the image itself where its taps sample.",
    "The study asks whether that helps on real images of clothes when everything else is equal: parameters, "
    "training, images, seeds. It asks twice: after training on upright objects only, where every transformation "
    "is new, and after training with augmentation.",
)
_COLUMNS = (
    "Each kind is the mean over its strengths, “all transformed” the mean over kinds, “unseen strengths” the mean over "
    "kinds of the strengths that augmentation does not cover. The highest value of a column is "
    "bold, which does not mean that its lead is more than chance."
)
_MARGINS = (
    "Seed by seed, each deformable network minus the control that is best in that column (chosen by its mean, so "
    "slightly in the control's favour). ▲ and ▼ mark intervals that exclude 0, t intervals over seeds at 95 %, not "
    "corrected for the number of comparisons. They cover how much seeds vary, not how much test images do."
)
_DILATION = (
    "The effective dilation is the mean distance of adjacent taps, in pixels of the layer's map, at outputs on the "
    "object; 1 is an ordinary 3×3 kernel. Objects come from the clean test and all tests of scale, in bins of size."
)
_POINTS = (
    "A sample of the top layer falls between outputs of the layer below and depends on four of them, each with "
    "offsets of its own; every point is the exact mean position of what its path samples, without rounding. Below the "
    "deformable layers, a point is the centre of the receptive field of a map pixel."
)
