"""Draw the figures of show.md and of README: ``python docs/show_pictures.py``. Takes two minutes on one core."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pliant.app.explore import networks
from pliant.app.explore.pictures import Picture
from pliant.app.explore.pictures import canvas as canvas_of
from pliant.data import FashionMNIST, read_image
from pliant.nn import OffsetHistory
from pliant.show import bins, canvas, figures, history
from pliant.show.influence import OfBox, locations
from pliant.show.layout import frame
from pliant.show.view import view
from pliant.studies.geometry import build
from pliant.studies.geometry.protocol import Protocol, epoch
from pliant.train import fit

FOLDER = Path(__file__).parent / "pictures"
WIDTH = 1000  # pixels at most


def save(name: str, data: bytes, *, flat: bool = False) -> None:
    """Write a figure no wider than the page: as a PNG if it has few colours (`flat`), otherwise as a JPEG."""
    figure = Image.open(io.BytesIO(data)).convert("RGB")
    if figure.width > WIDTH:
        figure = figure.resize((WIDTH, round(figure.height * WIDTH / figure.width)), Image.Resampling.LANCZOS)
    path = FOLDER / f"{name}.{'png' if flat else 'jpg'}"
    if flat:
        figure.save(path, optimize=True)
    else:
        figure.save(path, quality=82, optimize=True, progressive=True)
    print(f"{path}: {figure.width}×{figure.height}, {path.stat().st_size / 1024:.0f} KiB")


def scene() -> None:
    """Draw those figures that `pliant show` draws for a scene and that the page contains."""
    detector = next(n for n in networks.bundled() if n.detects)
    image = read_image(networks.BUNDLED / "scene-1.png").float() / 255
    look = view(detector.model, image, image=image.permute(1, 2, 0).double().numpy(), classes=detector.classes)
    found, _ = figures.figures(look)
    for figure in found:
        if figure.name in ("support-box", "bins", "offsets-1", "masks-1", "dilation"):
            save(f"show-{figure.name}", figure.data, flat=figure.name.startswith(("offsets", "masks")))


def readme() -> None:
    """Draw the samples that influence a detection most, on regular grids and with offsets, and the bins of its RoI."""
    detector = next(n for n in networks.bundled() if n.detects)
    image = read_image(networks.BUNDLED / "scene-1.png").float() / 255
    look = view(detector.model, image, image=image.permute(1, 2, 0).double().numpy(), classes=detector.classes)
    assert look.box is not None
    regular, moved, weights = [], [], []
    for layer, found in locations(detector.model, image, OfBox(look.box)).items():
        if layer in (steps := look.recording.deformable()):
            # Adjacent pixels of the sampled map are as far apart in the image as the product of all strides below.
            below = [step.stride for _, step in look.recording.steps(layer)[:-1]]
            offset = steps[layer].offset.double().permute(0, 2, 3, 1) * torch.stack(below).prod(0)
            moved.append(look.recording.samples(layer).reshape(-1, 2))
            regular.append(moved[-1] - offset.reshape(-1, 2).numpy())
            weights.append(found.strength.ravel() / found.strength.max())
    weight = np.concatenate(weights)
    best = np.argsort(weight)[-400:]
    figure = canvas.sheet(9.6, 3.45)
    panels = figure.subplots(1, 3)
    for axes, points, colour, title in (
        (panels[0], regular, canvas.REGULAR, "a regular grid"),
        (panels[1], moved, canvas.TAPS, "with learned offsets"),
    ):
        canvas.show_picture(axes, look.paper, title)
        alpha = 0.15 + 0.85 * weight[best]
        canvas.scatter(axes, np.concatenate(points)[best], colour, size=13, alpha=alpha, outlined=False)
        frame(axes, look.box, canvas.YELLOW, "")
    pooled = bins.bins(detector.model, image, torch.tensor([look.box]))
    bins.draw(panels[2], look.paper, pooled, title="bins of its RoI, and where they move", around=0.1)
    figure.subplots_adjust(0.003, 0.005, 0.997, 0.92, 0.02)
    save("readme", canvas.png(figure), flat=True)


def garment() -> None:
    """Draw the points that one output reads on a rotated pullover, through the deformable layers of a classifier."""
    classifier = next(n for n in networks.bundled() if n.id == "deform-v1-3")
    test = FashionMNIST.load().test
    image = test.pictures[int((test.labels == 2).nonzero()[0])].expand(3, -1, -1)
    seen = canvas_of(Picture("", "", "object", image), classifier, 1.1, 25.0)[:1]
    found, _ = figures.figures(view(classifier.model, seen, image=seen[0].double().numpy(), point=(33.0, 30.0)))
    save("show-sampling", next(figure.data for figure in found if figure.name == "sampling"))


def training() -> None:
    """Draw offsets while a classifier of the geometry study trains for one epoch on rotated and scaled clothes."""
    torch.manual_seed(0)
    net, random, recipe = build("deform-v1-3"), torch.Generator().manual_seed(0), Protocol.of("quick").recipe
    train = FashionMNIST.load().train
    steps = min(300, len(train) // recipe.batch)
    with OffsetHistory(net, every=10, edges=[i / 5 for i in range(31)]) as seen:
        fit(net, lambda _: epoch(train, "augmented", recipe.batch, random), steps, recipe)
    figure = canvas.sheet(10, 2.8)
    figure.set_layout_engine("constrained")
    history.draw(figure, seen.records)
    save("show-history", canvas.png(figure), flat=True)


if __name__ == "__main__":
    readme()
    garment()
    scene()
    training()
