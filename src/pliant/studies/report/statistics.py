"""Statistics over seeds, and how they are written: mean ± standard deviation, paired differences with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Cell:
    """A measured value: mean and standard deviation over seeds (NaN for one seed), and the values by seed."""

    by_seed: dict[int, float]

    @property
    def n(self) -> int:
        return len(self.by_seed)

    @property
    def mean(self) -> float:
        return sum(self.by_seed.values()) / self.n

    @property
    def sd(self) -> float:
        if self.n < 2:
            return math.nan
        return math.sqrt(sum((v - self.mean) ** 2 for v in self.by_seed.values()) / (self.n - 1))


@dataclass(frozen=True)
class Difference:
    """Mean of a paired difference over common seeds, and its 95 % t interval (NaN for one seed)."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def verdict(self) -> int:
        """1 or −1 where the interval excludes 0, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def difference(ours: Cell, theirs: Cell) -> Difference | None:
    """Return ours − theirs, seed by seed; None where they share no seed."""
    seeds = sorted(ours.by_seed.keys() & theirs.by_seed.keys())
    if not seeds:
        return None
    mean, half = compare([ours.by_seed[s] for s in seeds], [theirs.by_seed[s] for s in seeds])
    half = half if math.isfinite(half) else math.nan
    return Difference(mean, mean - half, mean + half, len(seeds))


def compare(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return mean and half the 95 % t interval of the paired differences first − second; infinite for one pair."""
    from scipy.special import stdtrit

    differences = [a - b for a, b in zip(first, second, strict=True)]
    n = len(differences)
    if n < 2:
        return differences[0], math.inf
    return fmean(differences), float(stdtrit(n - 1, 0.975)) * stdev(differences) / math.sqrt(n)


def crossed(values: np.ndarray) -> Difference:
    """Return the mean of values (S seeds, I images) and its 95 % interval for other seeds and other images.

    Seeds and images are crossed random effects without repetition: the mean has the variance
    ``(MS_seeds + MS_images − MS_rest) / (S·I)``, taken as no less than either of the first two alone would give, and
    the degrees of freedom of Satterthwaite. With one seed or one image there is no interval.

    Source: Cornfield and Tukey, Annals of Mathematical Statistics 27, 1956 (crossed effects); Satterthwaite,
    Biometrics 2, 1946.
    """
    from scipy.special import stdtrit

    S, I = values.shape
    mean = float(values.mean())
    if S < 2 or I < 2:
        return Difference(mean, math.nan, math.nan, S)
    seeds, images = values.mean(1, keepdims=True) - mean, values.mean(0, keepdims=True) - mean
    rest = values - mean - seeds - images
    free = (S - 1, I - 1, (S - 1) * (I - 1))
    squares = [float((part**2).sum()) * count for part, count in ((seeds, I), (images, S), (rest, 1))]
    by_seed, by_image, by_rest = (square / n for square, n in zip(squares, free, strict=True))
    total = by_seed + by_image - by_rest
    if total >= max(by_seed, by_image):
        parts = zip((by_seed, by_image, by_rest), free, strict=True)
        freedom = total**2 / max(sum(part**2 / n for part, n in parts), 1e-300)
    else:
        total, freedom = max((by_seed, free[0]), (by_image, free[1]))
    half = float(stdtrit(max(freedom, 1.0), 0.975)) * math.sqrt(total / (S * I))
    return Difference(mean, mean - half, mean + half, S)


def spread(values: Sequence[float]) -> str:
    """Return mean ± standard deviation of shares, in percent."""
    text = f"{100 * fmean(values):5.1f}"
    return text + (f" ± {100 * stdev(values):3.1f}" if len(values) > 1 else "")


def signed(value: float) -> str:
    """Write a difference of shares in percentage points."""
    return f"{100 * value:+.1f}".replace("-", "−")


def interval(found: Difference) -> str:
    """Write the interval of a difference in percentage points; one seed has none."""
    return "" if math.isnan(found.low) else f"[{signed(found.low)}, {signed(found.high)}]"


def points(found: Difference) -> str:
    """Write a difference of shares in percentage points with its interval: ``+1.2 [+0.3, +2.1]``."""
    return f"{signed(found.mean)} {interval(found)}".rstrip()
