"""The detection study's report: one HTML file with the question, the protocol and the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pliant.studies.detection.report import figures, findings, sections, support
from pliant.studies.detection.report.results import Results
from pliant.studies.report import frame, page
from pliant.studies.report.figures import Figure, placed

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
    found = [picture for data in results.conditions for picture in placed(drawn, f"detections-{data}")]
    return frame.Content(
        title="Which of the papers' claims does a small detector show?",
        quick=_quick(results),
        lead=" ".join(findings.sentences(results)),
        pictures=[*found, *placed(drawn, "bins")],
        sections=_sections(results),
        question=_QUESTION,
        protocol=_protocol(results),
        details=_details(results, drawn),
    )


def _sections(results: Results) -> list[frame.Section]:
    curves = sections.curves(results)
    claims = [sections.claims(results, data) for data in results.conditions]
    if any(claims) and len(results.seeds) > 1:
        claims.append(page.paragraph(_CLAIMS))
    tables = [page.paragraph(_COLUMNS), *(sections.ablation(results, data) for data in results.conditions)]
    lines = [page.paragraph(_curves(results)), sections.switches(results), curves] if curves else []
    return [
        frame.Section("Learning curves", lines),
        frame.Section("The papers' claims", claims),
        frame.Section("Average precision", tables),
    ]


def _details(results: Results, drawn: Sequence[Figure]) -> list[frame.Section]:
    classes = "".join(sections.classes(results, data) for data in results.conditions)
    dilation = sections.dilation(results)
    growth = [page.paragraph(_DILATION), dilation] if dilation else []
    return [
        frame.Section("Against the regular network", [sections.differences(results, d) for d in results.conditions]),
        frame.Section("Where networks look", _support(results, drawn)),
        frame.Section("Every single class", [page.details("Tables", classes)] if classes else []),
        frame.Section("Does the grid grow with the object?", [*growth, *placed(drawn, "sampling")]),
        frame.Section("How far bins move", [sections.bins(results)]),
    ]


def _support(results: Results, drawn: Sequence[Figure]) -> list[str]:
    said = support.section(results)
    return [*said[:1], *placed(drawn, "support"), *said[1:], *placed(drawn, "support-example")]


def _curves(results: Results) -> str:
    band = "The mean over seeds with a band of one standard deviation. " if len(results.seeds) > 1 else ""
    return f"{band}Point at a dot to see its value; the boxes switch curves off."


def _quick(results: Results) -> str:
    return (
        f"This is the {results.profile} profile, a few contestants, {results.settings.get('steps', 'few')} steps: it "
        "shows that everything works. The full profile (`pliant study detection` without --quick) runs all contestants "
        "on both data sets, for more steps and with three seeds."
    )


def _protocol(results: Results) -> list[str]:
    settings = results.settings
    said = []
    scenes = settings.get("scenes", {})
    if scenes and "composed" in results.conditions:
        said.append(
            f"Composed scenes: clothes of Fashion-MNIST ({', '.join(scenes['classes'])}) in all poses on photographs, "
            f"{scenes['side']} × {scenes['side']} pixels; {scenes['train']} to train on with {scenes['objects'][0]} to "
            f"{scenes['objects'][1]} objects, different for every seed, and {scenes['test']} to test on with 1 to 4, "
            "the same for all. No clothes and no photographs of the test appear in training."
        )
    if "crowns" in results.conditions:
        said.append(
            "Tree crowns: two aerial photographs with hand-drawn boxes, one class, in tiles; the test is a strip of "
            "each. Training uses random crops of the other tiles, randomly mirrored, scaled and recoloured."
        )
    recipe = settings.get("recipe", {})
    if recipe:
        model, optimiser = recipe["model"], recipe["optimiser"]
        said.append(
            f"Networks: Faster R-CNN with a feature pyramid on a ResNet-{model['depth']} of width {model['width']}, "
            f"{settings.get('steps')} steps of {optimiser['name']} with batches of {recipe['batch']} images, "
            f"largest learning rate {optimiser['lr']}, divided by {1 / optimiser['gamma']:g} after "
            f"{' and '.join(f'{100 * m:.0f} %' for m in optimiser['milestones'])} of the steps; the same for all, "
            "offset branches included. Batch normalization is trained, not frozen."
        )
        said.append(
            "In place of ImageNet, the backbone is first trained to classify the objects cut out of the training "
            "scenes. All networks of a seed start from the same weights, without offsets."
        )
        said.append(
            "Offset branches add parameters, and no other network is enlarged to match; the tables list them. "
            "Multiply-adds are per image, with all its proposals and bilinear samples."
        )
    mimic = settings.get("mimic", {})
    if mimic and any("mimic" in c for c in results.contestants):
        said.append(
            f"Mimicking: {mimic['count']} proposals per image, patches of {mimic['size']} pixels (in the paper "
            "32 and 224)."
        )
    if "hog" in results.contestants:
        said.append(
            "The hand-made detector learns from the same images: histograms of oriented gradients in windows of a "
            "few aspects that slide over a pyramid, a linear support vector machine for each class and window with "
            "hard negatives, a linear regression of the box, non-maximum suppression."
        )
    return said


_QUESTION = (
    "The papers on deformable convolution measure detectors of 40 to 65 million parameters that start from ImageNet's "
    "weights, on COCO, with eight GPUs for days. Their tables add one part at a time: deformable convolution in "
    "more and more layers, deformable RoI pooling, modulation, feature mimicking.",
    "This study takes the same steps with a network of half a million parameters, on small images, and says of each "
    "whether the numbers show it. An effect that is not shown here may still exist there: few seeds reveal only large "
    "effects.",
)
_CLAIMS = (
    "Paired over seeds, with the 95 % t interval of the mean; ▲ and ▼ mark intervals that exclude 0. They are not "
    "corrected for the number of comparisons, and they cover how much seeds vary, not how much test images do."
)
_COLUMNS = (
    "COCO's average precision: AP is the mean over overlaps from 0.5 to 0.95, AP50 and AP75 at one of them; APs, APm "
    "and APl are of small, medium and large objects, each about a third of all. The highest value of a column is bold, "
    "which does not mean that its lead is more than chance."
)
_DILATION = (
    "The effective dilation is the mean distance of adjacent taps, in pixels of the layer's input map. A position of a "
    "layer's map belongs to an object where its centre lies in the object's box; c5.2 is the second 3×3 convolution of "
    "c5."
)
