"""Measure what trained detectors look at: ``python -m pliant.studies.detection.support FOLDER [JOBS]``.

FOLDER is that of a finished study. For every object of the test images, and for two nodes of every network, the
position of c5 at the object's centre and the features of the box head for the object's box, the measures are:

* ``field``: the share of the effective receptive field outside of the box, Σ of the gradient's norm over pixels;
* ``field_pixels``: the field's effective number of pixels, (Σ g)² / Σ g²;
* ``samples``: the share of the sampling-location gradient at samples outside of the box, over the 3×3 convolutions of
  c3 to c5, per pixel of the image; a network without offsets is measured with offsets of 0;
* ``region``, ``region_pixels``: the share of the error-bounded saliency region outside of the box, and its pixels.

Results go to FOLDER/support/; the same command goes on where it stopped. The command that ran the study, given
once more, adds them to its report.

Source: Zhu et al., CVPR 2019, section 2.2, which shows pictures of all three and no figures.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pliant.nn import DeformConv2d, deformify
from pliant.show.influence import At, Node, OfBox, saliency_region, sensitivities
from pliant.studies import runner
from pliant.studies.detection.contestants import CONTESTANTS
from pliant.studies.detection.measures import cell_of, watch
from pliant.studies.detection.protocol import DATA, Images, Kept, Protocol, Task, shown, size_of
from pliant.studies.detection.single import load
from pliant.studies.measures import sample_positions
from pliant.studies.runner import Tell
from pliant.studies.store import weights

FOLDER = "support"  # inside that of the study
NODES = ("c5", "box")
MEASURES = ("field", "field_pixels", "samples", "region", "region_pixels")
IMAGES = 300  # of the test, at most
REGIONS = 30  # of them, whose saliency regions are searched: a search takes as long as 15 gradients
ERROR, CELL, EVALUATIONS = 0.1, 8, 40  # of that search


def measured(
    model: Any, test: Kept, regions: int | None = None, tell: Tell = lambda part, parts: None
) -> dict[str, Any]:
    """Return ``image`` and ``size`` of every object and, for each node and measure, a list of values ("c5 field").

    None stands for what was not measured, and for shares of nothing: a response that does not change with the image.

    Args:
        model: a detector of the study, on the CPU; a network without deformable convolutions gets some, without effect.
        test: images.
        regions: of how many images saliency regions are searched; None: `REGIONS`.
        tell: called with (image, images).
    """
    model.eval()
    regions = REGIONS if regions is None else regions
    if not any(isinstance(layer, DeformConv2d) for layer in model.modules()):
        deformify(model.backbone, ("layer2", "layer3", "layer4"), version=1)
    found: dict[str, list[Any]] = {"image": [], "size": []}
    found |= {f"{node} {measure}": [] for node in NODES for measure in MEASURES}
    count = min(IMAGES, len(test))
    for index in range(count):
        image, target = test[index]
        picture, truth = shown(image), target["boxes"][~target["ignore"]]
        samples = _samples(model, image)
        for box in truth:
            inside = within(box, _centres(picture))
            found["image"].append(index)
            found["size"].append(size_of(box, test.area_ranges))
            nodes: dict[str, Node] = {
                "c5": At("backbone.layer4", cell_of(model, box)),
                "box": OfBox(tuple(box.tolist())),
            }
            for name, node in nodes.items():
                values = _gradients(model, picture, node, inside, box, samples)
                values |= _region(model, picture, node, inside) if index < regions else {}
                for measure in MEASURES:
                    found[f"{name} {measure}"].append(values.get(measure))
        tell(index + 1, count)
    return found


def _gradients(
    model: nn.Module,
    picture: Tensor,
    node: Node,
    inside: Tensor,
    box: Tensor,
    samples: dict[str, tuple[Tensor, float]],
) -> dict[str, float]:
    """Return the measures that gradients give; `inside` says which pixels (H, W) lie in the box."""
    pixels, strengths = sensitivities(model, picture, node)
    field = torch.from_numpy(pixels)
    found = {}
    if float(field.sum()) > 0:
        found["field"] = _round(float(field[~inside].sum() / field.sum()))
        found["field_pixels"] = _round(float(field.sum() ** 2 / field.square().sum()))
    total = away = 0.0
    for name, (at, scale) in samples.items():
        strength = torch.from_numpy(strengths[name].strength) / scale
        total += float(strength.sum())
        away += float(strength[~within(box, at)].sum())
    if total > 0:
        found["samples"] = _round(away / total)
    return found


def _region(model: nn.Module, picture: Tensor, node: Node, inside: Tensor) -> dict[str, float]:
    """Return the measures of the saliency region."""
    mask = torch.from_numpy(saliency_region(model, picture, node, error=ERROR, cell=CELL, evaluations=EVALUATIONS).mask)
    kept = int(mask.sum())
    away = {"region": _round(int((mask & ~inside).sum()) / kept)} if kept else {}
    return away | {"region_pixels": kept}


@torch.no_grad()
def _samples(model: Any, image: Tensor) -> dict[str, tuple[Tensor, float]]:
    """Return where every deformable convolution samples an image, and how wide a pixel of its input map is.

    Positions are (T, Ho, Wo, 2), (y, x), and widths numbers, both in pixels of the image.
    """
    found = {}
    for name, layer, map_, offset in watch(model, image):
        scale = image.shape[-1] / map_.shape[-1]
        at = sample_positions(layer, offset)[0].flatten(0, 2).permute(0, 2, 3, 1)
        found[f"backbone.{name}"] = ((at + 0.5) * scale - 0.5, scale)
    return found


def _centres(picture: Tensor) -> Tensor:
    """Return the centres of all pixels, (H, W, 2), (y, x)."""
    H, W = picture.shape[-2:]
    return torch.stack(torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij"), -1).float()


def within(box: Tensor, at: Tensor) -> Tensor:
    """Return which points (…, 2), (y, x) with pixel centres at integers, lie in a box (4,) of edges."""
    y, x = (at + 0.5).unbind(-1)
    inside: Tensor = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
    return inside


def _round(value: float) -> float:
    return float(f"{value:.5g}")


@dataclass(frozen=True)
class Support(runner.Study):
    """The measure as the runner sees it: one run per network of a finished study that has its weights.

    Args:
        study: folder of the finished study.
        protocol, out, seeds, contestants, jobs: as of every study.
    """

    title: ClassVar[str] = "support"
    everyone: ClassVar[tuple[str, ...]] = tuple(CONTESTANTS)
    task: ClassVar[type[Task]] = Task

    protocol: Protocol
    study: Path = Path("runs/detection")

    @property
    def conditions(self) -> tuple[str, ...]:
        """Return the data that networks were trained on."""
        return DATA

    def tasks(self) -> list[Any]:
        """Return the runs whose weights are there, hand-made detectors left out."""
        every = super().tasks()
        return [t for t in every if CONTESTANTS[t.contestant].learned and weights(self.study, t).is_file()]

    def load(self) -> Images:
        """Return the images, drawn when they are asked for."""
        return Images(self.protocol)

    def settings(self, data: Images) -> dict[str, Any]:
        """Return what settings.json holds."""
        search = {"images": REGIONS, "error": ERROR, "cell": CELL, "evaluations": EVALUATIONS}
        return {
            "study": self.title,
            "profile": self.protocol.profile,
            "images": IMAGES,
            "regions": search,
        } | self.here()

    def run_one(self, task: Task, data: Images, path: Path, tell: Tell) -> dict[str, Any]:
        """Return the measures of one network."""
        test = data.of(task)[1]
        model = load(task, self.protocol, len(test.classes), weights(self.study, task))
        found = task.described(CONTESTANTS[task.contestant].label, self.protocol.profile)
        return found | {"objects": measured(model, test, tell=tell)}


class Lines:
    """Progress as lines of text."""

    def epoch(self, task: Task, epoch: int, epochs: int) -> None:
        """Say nothing: a network takes minutes."""

    def finished(self, task: Task, result: dict[str, Any]) -> None:
        """Say which network is measured."""
        print(f"{task.name}: {len(result['objects']['image'])} objects", flush=True)


def main(folder: Path, jobs: int = 1) -> None:
    """Measure every network of a study that is not measured yet."""
    # Not above: the package of the report reads what is measured here, and so imports this module.
    from pliant.studies.detection.report.results import Results

    results = Results.read(folder)
    contestants = tuple(c for c in results.contestants if c in CONTESTANTS)
    study = Support(
        Protocol.of(results.profile), folder / FOLDER, max(results.seeds) + 1, contestants, jobs, study=folder
    )
    data = study.load()
    store = study.store(data)
    for note in store.notes:
        print(note)
    runner.run(study, store, data, Lines())
    print("The command that ran the study adds these figures to its report.")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m pliant.studies.detection.support FOLDER [JOBS], the folder of a finished study")
    try:
        main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
