"""The images of the explorer: some come with the package, users add their own."""

from __future__ import annotations

import base64
import io
import math
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pliant.app.explore.networks import BUNDLED, Network
from pliant.data import FashionMNIST, read_image
from pliant.data.fashion_mnist import CLASSES

MOST_BYTES = 20 << 20  # of a file
MOST_PIXELS = 40_000_000
MOST_ASPECT = 100  # of the longer to the shorter side
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # none of these is decoded by another program
KEPT = 16  # most images of users; one more replaces the oldest
KEPT_SIDE = 1280  # longer side to which images are reduced, in pixels
OBJECT = 42  # longer side of an object on a canvas of 64 pixels, at scale 1
SCALES, ANGLES = (0.25, 4.0), (-180.0, 180.0)


class BadPicture(ValueError):
    """A file is not an image that the explorer accepts; the message says why."""


@dataclass(frozen=True)
class Picture:
    """An image to choose on the page.

    Args:
        id: in addresses of the server.
        label: its name on the page.
        kind: "object", on black, for classifiers; "scene", for detectors; "yours", for both.
        image: uint8 (3, H, W).
    """

    id: str
    label: str
    kind: str
    image: Tensor

    def entry(self) -> dict[str, str]:
        """Return its entry in the catalogue of the page."""
        H, W = self.image.shape[1:]
        side = min(H, W)
        top, left = (H - side) // 2, (W - side) // 2
        square = self.image[None, :, top : top + side, left : left + side].float() / 255
        small = F.interpolate(square, (56, 56), mode="bilinear", antialias=True)[0]
        return {"id": self.id, "label": self.label, "kind": self.kind, "thumbnail": png_address(small)}


class Gallery:
    """The images of one server; safe to use from several threads.

    Args:
        more: images in addition to those of the package.
    """

    def __init__(self, more: list[Picture] | None = None) -> None:
        self.fixed = {picture.id: picture for picture in [*(more or []), *_objects(), *_scenes()]}
        self.sent: OrderedDict[str, Picture] = OrderedDict()
        self.count = 0
        self.lock = threading.Lock()

    def all(self) -> list[Picture]:
        """Return all images, those of users last."""
        with self.lock:
            return [*self.fixed.values(), *self.sent.values()]

    def find(self, id: str) -> Picture:
        """Return an image by its id.

        Raises:
            LookupError: it does not exist, or is not kept any more.
        """
        with self.lock:
            found = self.fixed.get(id) or self.sent.get(id)
        if found is None:
            raise LookupError("That image is not kept any more: choose it again.")
        return found

    def add(self, data: bytes, name: str) -> Picture:
        """Decode and keep an image that a user sent.

        Raises:
            BadPicture: it is not an image, or too large.
        """
        image = decode(data)
        with self.lock:
            self.count += 1
            picture = Picture(f"yours-{self.count}", Path(name).name[:60] or "picture", "yours", image)
            self.sent[picture.id] = picture
            while len(self.sent) > KEPT:
                self.sent.popitem(last=False)
        return picture


def decode(data: bytes) -> Tensor:
    """Return the image of a file as uint8 (3, H, W), upright, with sides of at most `KEPT_SIDE` pixels.

    Format and size are checked in the header of the file before its pixels are decoded.

    Raises:
        BadPicture: it is not an image, has more than `MOST_PIXELS`, is narrower than one in `MOST_ASPECT`, or is
            incomplete.
    """
    if len(data) > MOST_BYTES:
        raise BadPicture(f"The file is larger than {MOST_BYTES >> 20} MB.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as head:
            W, H = head.size
    except Exception as error:  # Pillow's readers raise whatever a broken head brings about
        if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
            raise BadPicture(f"The image has more than {MOST_PIXELS // 10**6} million pixels.") from error
        raise BadPicture(f"This is not an image in one of the formats {', '.join(FORMATS)}.") from error
    if W * H > MOST_PIXELS:
        raise BadPicture(
            f"The image has {W} × {H} pixels; at most {MOST_PIXELS // 10**6} million are accepted. Make it smaller."
        )
    if max(W, H) > MOST_ASPECT * min(W, H):
        raise BadPicture(f"The image has {W} × {H} pixels; its sides may differ by a factor of {MOST_ASPECT} at most.")
    with tempfile.TemporaryDirectory(prefix="pliant-explore-") as folder:
        path = Path(folder) / "picture"
        path.write_bytes(data)
        try:
            image = read_image(path)
        except OSError as error:
            raise BadPicture("The image is damaged: its file ends too early or contradicts its header.") from error
    return _reduced(image, KEPT_SIDE)


def read(path: Path) -> Tensor:
    """Return the image of a file as :func:`decode` does.

    Raises:
        OSError: the file does not exist.
        BadPicture: it is not an image, or too large.
    """
    if path.stat().st_size > MOST_BYTES:
        raise BadPicture(f"{path} is larger than {MOST_BYTES >> 20} MB")
    try:
        return decode(path.read_bytes())
    except BadPicture as error:
        raise BadPicture(f"{path}: {error}") from error


def canvas(picture: Picture, network: Network, scale: float = 1.0, angle: float = 0.0) -> Tensor:
    """Return an image as a network sees it: float32 (3, H, W) in 0 … 1, scaled and rotated about its middle.

    A detector sees the whole image, its longer side `network.side` pixels long; pixels that rotation leaves empty have
    the mean colour of the image. A classifier sees grey on black in a square, as in training, the object `OBJECT`
    pixels long; an image with a bright border, such as an object on white paper, is inverted.

    Args:
        image: what.
        network: for whom.
        scale: factor, at least 0.25 and at most 4.
        angle: degrees, counter-clockwise.
    """
    image = _reduced(picture.image, 2 * network.side).float() / 255
    _, H, W = image.shape
    if network.detects:
        fit = network.side / max(H, W)
        shape = _fitted(picture.image, network.side)
        fill = image.mean((1, 2))
    else:
        fit = OBJECT / max(H, W)
        shape = (network.side, network.side)
        grey = (image * image.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
        border = torch.cat((grey[0], grey[-1], grey[:, 0], grey[:, -1]))
        if picture.kind != "object" and border.mean() > 0.5:
            grey = 1 - grey
        image, fill = grey.expand(3, H, W), image.new_zeros(3)
    return _posed(image, shape, fit * scale, angle, fill)


def png_address(image: Tensor) -> str:
    """Return an image (3, H, W) in 0 … 1 as the data: address of a PNG file."""
    array = (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    opened = Image.fromarray(array)
    if bool((array == array[:, :, :1]).all()):
        opened = opened.convert("L")
    opened.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _posed(image: Tensor, shape: tuple[int, int], scale: float, angle: float, fill: Tensor) -> Tensor:
    """Return an image drawn about the middle of a canvas, bilinear; if it shrinks, averaged over finer samples."""
    (H, W), (_, h, w) = shape, image.shape
    fine = min(4, math.ceil(1 / scale)) if scale < 0.999 else 1
    y = (torch.arange(H * fine) + 0.5) / fine - H / 2
    x = (torch.arange(W * fine) + 0.5) / fine - W / 2
    cos, sin = math.cos(math.radians(angle)) / scale, math.sin(math.radians(angle)) / scale
    # The rotation is counter-clockwise with y pointing down: each pixel of the canvas is rotated back.
    across = x * cos - y[:, None] * sin
    down = x * sin + y[:, None] * cos
    grid = torch.stack((across * (2 / w), down * (2 / h)), -1)[None]
    # Sampling pads with zeros: of the difference from `fill`, so that empty pixels become `fill`.
    ground = fill[:, None, None]
    drawn = F.grid_sample((image - ground)[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return ((F.avg_pool2d(drawn, fine) if fine > 1 else drawn)[0] + ground).clamp(0, 1)


def _reduced(image: Tensor, side: int) -> Tensor:
    """Return an image (3, H, W), uint8, whose longer side is at most `side`."""
    _, H, W = image.shape
    if max(H, W) <= side:
        return image
    return F.interpolate(image[None], _fitted(image, side), mode="bilinear", antialias=True)[0]


def _fitted(image: Tensor, side: int) -> tuple[int, int]:
    """Return the size (H, W) of an image after its longer side becomes `side`."""
    _, H, W = image.shape
    return max(1, round(H * side / max(H, W))), max(1, round(W * side / max(H, W)))


def _objects() -> list[Picture]:
    """Return the first test image of each of six classes."""
    test = FashionMNIST.load().test
    found = []
    for label in (9, 2, 8, 3, 5, 1):
        first = int((test.labels == label).nonzero()[0])
        image = test.pictures[first].expand(3, -1, -1)
        found.append(Picture(f"object-{label}", CLASSES[label], "object", image))
    return found


def _scenes() -> list[Picture]:
    paths = sorted(BUNDLED.glob("scene-*.png"))
    return [Picture(path.stem, f"scene {i}", "scene", read_image(path)) for i, path in enumerate(paths, 1)]
