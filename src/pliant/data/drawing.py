"""Draw objects on a canvas under known transformations, from a seeded generator."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CANVAS = 64  # side of the canvas in pixels
INK = 0.1  # pixels brighter than this belong to the object
_PART = 32


@dataclass(frozen=True)
class Ranges:
    """The range, (least, most), from which the magnitude of each transformation is drawn; 1 or 0 changes nothing.

    Args:
        scale: factor of both sides, log-uniform.
        rotation: degrees, in either direction.
        aspect: ratio of the sides at equal area, at least 1, log-uniform; either side may become the longer one.
        shear: tangent of the angle by which vertical lines lean, in either direction.
        bend: amplitude of the waves that bend the object, as a fraction of its side; up to 0.2 nothing folds over.
        shift: largest distance of the object from the centre of the canvas along each axis, in pixels.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    rotation: tuple[float, float] = (0.0, 0.0)
    aspect: tuple[float, float] = (1.0, 1.0)
    shear: tuple[float, float] = (0.0, 0.0)
    bend: tuple[float, float] = (0.0, 0.0)
    shift: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self)[:5]:
            least, most = getattr(self, field.name)
            floor = {"scale": 1e-3, "aspect": 1.0}.get(field.name, 0.0)
            if not floor <= least <= most < math.inf:
                raise ValueError(
                    f"Ranges: {field.name} must be (least, most) with {floor:g} ≤ least ≤ most, got {(least, most)}"
                )
        if not 0 <= self.shift < math.inf:
            raise ValueError(f"Ranges: shift must be at least 0, got {self.shift}")


class Poses(NamedTuple):
    """How N objects lie on their canvases.

    `matrix` (N, 2, 2) maps an object's (x, y), measured from its centre with y downwards, to the canvas; `shift` (N, 2)
    is added, in pixels; `bend` (N,) is the amplitude of the waves as a fraction of the side, `wave` (N, 2) their number
    along a side and `phase` (N, 2) their phase in radians.
    """

    matrix: Tensor
    shift: Tensor
    bend: Tensor
    wave: Tensor
    phase: Tensor


def draw(ranges: Ranges, count: int, random: torch.Generator) -> Poses:
    """Return `count` poses drawn from `ranges`.

    The matrix is rotation (counter-clockwise as seen) · shear · diag(scale·√aspect, scale/√aspect). Every
    transformation takes its numbers from the generator whether it is in use or not, so that two ranges that differ in
    one transformation agree in all others.
    """

    def uniform(least: float, most: float, *shape: int) -> Tensor:
        return least + (most - least) * torch.rand(count, *shape, generator=random)

    def either(values: Tensor) -> Tensor:
        return values * (1 - 2 * torch.randint(2, (count,), generator=random))

    scale = uniform(math.log(ranges.scale[0]), math.log(ranges.scale[1])).exp()
    angle = either(uniform(*ranges.rotation)) * (math.pi / 180)
    stretch = (either(uniform(math.log(ranges.aspect[0]), math.log(ranges.aspect[1]))) / 2).exp()
    shear = either(uniform(*ranges.shear))
    bend = uniform(*ranges.bend)
    wave, phase = uniform(0.4, 0.8, 2), uniform(0, 2 * math.pi, 2)
    shift = uniform(-ranges.shift, ranges.shift, 2)

    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack((cos, sin, -sin, cos), 1).view(count, 2, 2)
    one, zero = torch.ones_like(shear), torch.zeros_like(shear)
    lean = torch.stack((one, shear, zero, one), 1).view(count, 2, 2)
    size = torch.stack((scale * stretch, scale / stretch), 1)
    return Poses(turn @ lean * size[:, None], shift, bend, wave, phase)


def render(pictures: Tensor, poses: Poses, canvas: int = CANVAS) -> Tensor:
    """Draw every image in its pose on a black canvas: (N, 1, canvas, canvas), float32 in [0, 1].

    Interpolation is bilinear. Where an object shrinks by a factor s < 1, four samples are averaged, each
    ``(1/s − 1)/2`` object pixels from the centre along both axes: this is the exact area average at s = 1/2 and meets
    the single sample at s = 1. Parts outside the canvas are cut off.

    Args:
        pictures: (N, H, W), the images, uint8 or float, 0 … 255.
        poses: N poses.
        canvas: side of the canvas in pixels.
    """
    N = len(pictures)
    if len(poses.bend) != N:
        raise ValueError(f"render: there must be one pose per image, got {len(poses.bend)} for {N}")
    drawn = torch.empty(N, 1, canvas, canvas)
    # Parts that stay in the cache are three times as fast as everything at once.
    for part in (slice(start, start + _PART) for start in range(0, N, _PART)):
        drawn[part] = _render(pictures[part], Poses(*(field[part] for field in poses)), canvas)
    return drawn


def warp(layers: Tensor, poses: Poses, index: int) -> Tensor:
    """Draw the layers of one image in pose `index` on the smallest square canvas that is certain to hold it.

    Interpolation is bilinear. Where the object shrinks by a factor s < 1, it is drawn ⌈1/s⌉ times as fine and averaged.
    The pose's shift is ignored: the object is at the centre of its canvas.

    Args:
        layers: (C, H, W), float, such as grey and alpha.
        poses: N poses.
        index: of the pose to take.

    Returns:
        (C, side, side), float32; side is even.
    """
    H, W = layers.shape[1:]
    a, b, c, d = poses.matrix[index].flatten().tolist()
    det, norm = a * d - b * c, a * a + b * b + c * c + d * d
    least = math.sqrt((norm - math.sqrt(max(0.0, norm * norm - 4 * det * det))) / 2)  # smaller singular value
    fine = 1 if least >= 0.999 else math.ceil(1 / least)
    bend = poses.bend[index].item()
    # The waves move an object by at most `bend` of its side.
    right, low = W * (0.5 + bend), H * (0.5 + bend)
    half = math.ceil(max(abs(a) * right + abs(b) * low, abs(c) * right + abs(d) * low))
    x = (torch.arange(2 * half * fine) + 0.5) / fine - half
    y = x[:, None]
    across, down = x * (d / det) - y * (b / det), y * (a / det) - x * (c / det)
    if bend:  # as `_bent` does, without its temporaries: scenes draw one object at a time
        (wave_x, wave_y), (phase_x, phase_y) = poses.wave[index].tolist(), poses.phase[index].tolist()
        waves = (down * (2 * math.pi * wave_x / H)).add_(phase_x).sin_().mul_(bend * W)
        down += (across * (2 * math.pi * wave_y / W)).add_(phase_y).sin_().mul_(bend * H)
        across += waves
    drawn = _sample(layers[None], torch.stack((across, down), -1), 2 * half * fine)
    return (F.avg_pool2d(drawn, fine) if fine > 1 else drawn)[0]


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: for images this small, waiting for a second thread costs more than it saves.

    On a busy machine the wait is a time slice of the operating system, about 20 ms, per operation.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def seed_of(*parts: int | str) -> int:
    """Return a seed of 63 bits; generators seeded with different `parts` are independent."""
    plain = tuple(part if isinstance(part, str) else int(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(repr(plain).encode(), digest_size=8).digest(), "big") >> 1


def object_size(canvas: Tensor) -> Tensor:
    """Return the size (N,) of the object on every canvas (N, 1, H, W): √(pixels brighter than `INK`), in pixels."""
    return (canvas > INK).sum((1, 2, 3)).float().sqrt()


def _render(pictures: Tensor, poses: Poses, canvas: int) -> Tensor:
    H, W = pictures.shape[1:]
    source = pictures[:, None].float() / 255
    inverse = torch.linalg.inv(poses.matrix)
    middle = (torch.arange(canvas) + 0.5) - canvas / 2
    grid = torch.stack(torch.meshgrid(middle, middle, indexing="xy"), -1).view(1, -1, 2)
    at = (grid - poses.shift[:, None]) @ inverse.mT  # (N, canvas², 2): (x, y) from the object's centre

    # The smaller singular value of a 2×2 matrix, from its norm and determinant.
    norm, det = poses.matrix.square().sum((1, 2)), torch.linalg.det(poses.matrix)
    least = ((norm - (norm.square() - 4 * det.square()).clamp(min=0).sqrt()) / 2).sqrt()
    # Rounding makes `least` of a plain rotation a little less than 1: that is not shrinking.
    shrinks = least < 0.999

    at = _bent(at, poses, (W, H))
    drawn = _sample(source, at, canvas)
    if shrinks.any():
        reach = (1 - least[shrinks]) / 2  # in canvas pixels
        samples = []
        for corner in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            step = torch.tensor(corner, dtype=torch.float32) * reach[:, None]
            samples.append(_sample(source[shrinks], at[shrinks] + step[:, None] @ inverse[shrinks].mT, canvas))
        drawn[shrinks] = torch.stack(samples).mean(0)
    return drawn


def _bent(at: Tensor, poses: Poses, side: tuple[int, int]) -> Tensor:
    """Return object coordinates (N, P, 2) moved by waves: x by one that runs along y, y by one that runs along x."""
    if not poses.bend.any():
        return at
    sides = torch.tensor(side, dtype=torch.float32)
    across = at.flip(-1) / sides.flip(0)
    waves = (2 * math.pi * poses.wave[:, None] * across + poses.phase[:, None]).sin()
    return at + poses.bend[:, None, None] * sides * waves


def _sample(source: Tensor, at: Tensor, canvas: int) -> Tensor:
    """Sample `source` (N, C, H, W) at (x, y), measured from its centre: (N, C, canvas, canvas)."""
    sides = torch.tensor(source.shape[:1:-1], dtype=torch.float32)
    grid = (at * (2 / sides)).view(len(source), canvas, canvas, 2)
    return F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
