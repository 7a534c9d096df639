"""Draw the figures of show.md and of README, and those that the studies' reports share with other pages.

``python docs/show_pictures.py [FOLDER]``; FOLDER is that of ``pliant study geometry --quick``, whose networks are drawn
for deform_conv2d.md and local_response_norm.md. Takes two minutes on one core.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from pliant.app.explore import networks
from pliant.app.explore.pictures import Picture
from pliant.app.explore.pictures import canvas as canvas_of
from pliant.data import Composed, FashionMNIST, read_image
from pliant.data.drawing import Ranges
from pliant.nn import DeformConv1d, DeformConv3d, MSDeformAttn, OffsetHistory
from pliant.show import attention, canvas, figures, history, taps
from pliant.show.boxes import frames
from pliant.show.influence import OfBox, locations
from pliant.show.layout import look_at
from pliant.show.view import view
from pliant.studies.detection import protocol as detection
from pliant.studies.detection.report.figures import bins_by_size
from pliant.studies.geometry import build
from pliant.studies.geometry.protocol import Protocol, epoch
from pliant.studies.geometry.report import figures as report
from pliant.studies.geometry.report.results import Results
from pliant.train import fit

FOLDER = Path(__file__).parent / "pictures"
WIDTH = 1200  # pixels at most


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
    """Draw a detection, and the samples that influence it most: on regular grids, and where the offsets move them."""
    detector = next(n for n in networks.bundled() if n.detects)
    poses = Ranges(scale=(4.8, 9.6), rotation=(0.0, 30.0), aspect=(1.0, 1.4), bend=(0.0, 0.06))
    scene = Composed(7, 4, "test", 512, objects=(1, 3), ranges=poses, classes=detector.classes)[3][0].float() / 255
    # The network sees a quarter of the resolution at which the scene is drawn.
    image = F.interpolate(scene[None], (128, 128), mode="bilinear", antialias=True)[0].clamp(0, 1)
    photograph = scene.permute(1, 2, 0).double().numpy()
    look = view(detector.model, image, classes=detector.classes, photograph=photograph)
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
    best = np.argsort(weight)[-350:]
    figure = canvas.sheet(12, 4.25)
    panels = figure.subplots(1, 3)
    label, score = int(look.detections["labels"][0]), float(look.detections["scores"][0])
    canvas.show_picture(panels[0], photograph, "what a small detector finds", size=look.size)
    x1, y1, x2, y2 = look.box
    side, y, x = 0.66 * max(x2 - x1, y2 - y1), (y1 + y2 - 1) / 2, (x1 + x2 - 1) / 2
    for axes, points, colour, title in (
        (panels[1], regular, canvas.REGULAR, "samples on regular grids"),
        (panels[2], moved, canvas.TAPS, "the same samples with learned offsets"),
    ):
        canvas.show_picture(axes, 0.25 + 0.75 * photograph, title, size=look.size)
        alpha = 0.35 + 0.65 * weight[best]
        canvas.scatter(axes, np.concatenate(points)[best], colour, size=32, alpha=alpha)
        look_at(axes, (y - side, y + side, x - side, x + side))
    for axes in panels:
        axes.title.set_fontsize(13)
    figure.subplots_adjust(0.003, 0.005, 0.997, 0.93, 0.02)
    frames(panels[0], [look.box], [f"{detector.classes[label]} {score:.2f}"], [canvas.GREEN], font=12)
    save("readme", canvas.png(figure))


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


def bins() -> None:
    """Draw the bins that the detector of the package pools from objects of three sizes."""
    detector = next(n for n in networks.bundled() if n.detects)
    test = detection.Protocol.of("quick").images("composed", "test", 0)
    save("bins", bins_by_size(detector.model, "the network", test).data, flat=True)


def study(folder: Path) -> None:
    """Draw grids, sampling points and inhibition as the report of a geometry study has them."""
    results = Results.read(folder)
    for maker in (report.special_cases, report.sampling_pair, report.inhibition):
        figure = maker(results)
        save(figure.name, figure.data, flat=True)


def attending() -> None:
    """Draw the samples of one query of an attention layer over three levels of a photograph, before any training."""
    torch.manual_seed(0)
    image = read_image(networks.BUNDLED / "scene-2.png").float() / 255
    H, W = image.shape[1:]
    levels = [(H // n, W // n) for n in (8, 16, 32)]
    layer = MSDeformAttn(64, levels=3, heads=8, points=4)
    torch.nn.init.normal_(layer.attention_weights.weight, std=0.06)
    value = torch.randn(1, sum(h * w for h, w in levels), 64)
    reference = torch.tensor([0.42, 0.55]).expand(1, 1, 3, 2)
    net = torch.nn.Module()
    net.layer = layer
    found = attention.attention(net, image, lambda net, _: net.layer(torch.randn(1, 1, 64), reference, value, levels))
    figure = canvas.sheet(8, 3.0)
    figure.set_layout_engine("constrained")
    attention.draw(figure, found["layer"], 0, image.permute(1, 2, 0).double().numpy())
    save("attention", canvas.png(figure))


class Waves(nn.Module):
    """Turn waves by a quarter of their length: three taps, whose offsets come from features of the surroundings."""

    def __init__(self) -> None:
        super().__init__()
        wide = [nn.Conv1d(c, 16, 9, padding=4 * d, dilation=d) for c, d in ((1, 1), (16, 2), (16, 4))]
        self.features = nn.Sequential(*(part for layer in wide for part in (layer, nn.ReLU())))
        self.deform = DeformConv1d(1, 1, 3, padding=1, guide_channels=16)

    def forward(self, wave: Tensor) -> Tensor:
        found: Tensor = self.deform(wave, self.features(wave))
        return found


def sequence() -> None:
    """Draw the taps of a network that learned, in 600 steps, to tell the cosine of waves of changing length."""
    torch.manual_seed(0)

    def waves(count: int) -> tuple[Tensor, Tensor]:
        knots = 8 * 5 ** torch.rand(count, 1, 5)  # lengths of 8 to 40
        length = F.interpolate(knots.log(), 256, mode="linear", align_corners=True).exp()
        phase = (2 * torch.pi / length).cumsum(2) + 2 * torch.pi * torch.rand(count, 1, 1)
        return phase.sin() + 0.05 * torch.randn(phase.shape), phase.cos()

    net = Waves()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(600):
        wave, cosine = waves(16)
        loss = F.mse_loss(net(wave), cosine)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"waves: mean squared error {loss.item():.4f}")
    save("show-sequence", taps.figures(net, waves(1)[0][0])[0].data, flat=True)


def volume() -> None:
    """Draw the taps of a network that is told the motion and learned, in 400 steps, to fill in a missing frame."""
    torch.manual_seed(0)
    side = 24
    waves = torch.fft.fftfreq(side) * side
    smooth = torch.exp(-(waves[:, None] ** 2 + waves**2) / 18)

    def films(count: int) -> tuple[Tensor, Tensor]:
        """Return films (count, 1, 3, H, W) of textures that move, and their motion (count, 2, 3, H, W) per frame."""
        motion = 5 * torch.rand(count, 2, 1, 1, 1) - 2.5
        times = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1)
        turns = times * (motion[:, :1] * waves[:, None] + motion[:, 1:] * waves) / side
        film = torch.fft.ifft2(
            smooth * torch.fft.fft2(torch.randn(count, 1, 1, side, side)) * torch.exp(-2j * torch.pi * turns)
        )
        return film.real / film.real.std((2, 3, 4), keepdim=True), motion.expand(-1, -1, 3, side, side)

    def seen(film: Tensor) -> Tensor:
        return film * torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1)

    net = DeformConv3d(1, 1, (3, 1, 1), padding=(1, 0, 0), version=1, guide_channels=2)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(400):
        film, motion = films(8)
        loss = F.mse_loss(net(seen(film), motion)[:, :, 1, 4:-4, 4:-4], film[:, :, 1, 4:-4, 4:-4])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    film, motion = films(8)
    fastest = motion[:, :, 0, 0, 0].norm(dim=1).argmax()
    film, motion = film[fastest, None], motion[fastest, None]
    print(f"films: mean squared error {loss.item():.4f}; moved by {motion[0, :, 0, 0, 0].tolist()} per frame")
    found = taps.taps(net, film[0], lambda net, film: net(seen(film), motion))[""]
    figure = canvas.sheet(8.0, 3.0)
    figure.set_layout_engine("constrained")
    taps.draw(figure, found, film[0], (1, 12, 12))
    save("show-volume", canvas.png(figure, 150))


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        study(Path(folder))
    sequence()
    volume()
    bins()
    attending()
    readme()
    garment()
    scene()
    training()
