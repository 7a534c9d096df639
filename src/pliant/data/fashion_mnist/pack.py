"""Make `subset.npz` from the full IDX files: ``python -m pliant.data.fashion_mnist.pack DIR``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from pliant.data.fashion_mnist import SUBSET, FashionMNIST, Split

SEED = 1708  # of the draw below; the paper is arXiv:1708.07747
TRAIN_PER_CLASS, TEST_PER_CLASS = 200, 50


def choose(labels: np.ndarray, per_class: int, random: np.random.Generator) -> np.ndarray:
    """Return the indices of `per_class` images per class, in random order."""
    chosen = [random.choice(np.flatnonzero(labels == c), per_class, replace=False) for c in range(10)]
    return random.permutation(np.concatenate(chosen))


def pack(full: FashionMNIST, path: Path) -> FashionMNIST:
    """Write the balanced subset of `full` to `path`, with the index of every image in its IDX file; return it."""
    random = np.random.default_rng(SEED)
    train = choose(full.train.labels.numpy(), TRAIN_PER_CLASS, random)
    test = choose(full.test.labels.numpy(), TEST_PER_CLASS, random)
    subset = FashionMNIST(
        Split(full.train.pictures[train], full.train.labels[train]),
        Split(full.test.pictures[test], full.test.labels[test]),
        "subset",
    )
    np.savez_compressed(
        path,
        train_pictures=subset.train.pictures.numpy(),
        train_labels=subset.train.labels.numpy().astype(np.uint8),
        train_indices=train.astype(np.int32),
        test_pictures=subset.test.pictures.numpy(),
        test_labels=subset.test.labels.numpy().astype(np.uint8),
        test_indices=test.astype(np.int32),
    )
    return subset


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m pliant.data.fashion_mnist.pack DIR, the folder of the four IDX files")
    subset = pack(FashionMNIST.load(Path(sys.argv[1])), SUBSET)
    print(f"{SUBSET}: {len(subset.train)} + {len(subset.test)} images, digest {subset.digest}")
