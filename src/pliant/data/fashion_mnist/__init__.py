"""Fashion-MNIST: a balanced subset that comes with the package, or the full files from a folder."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pliant.data import idx

CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SUBSET = Path(__file__).with_name("subset.npz")
# SHA-256 of the subset as `digest` computes it.
SUBSET_DIGEST = "c2d8610a501481e4c3777465b85f16c13b1dda20a56d664392ac69286bc1e9b5"


@dataclass(frozen=True)
class Split:
    """Images (N, 28, 28), uint8, where 0 is background, and labels (N,), int64, in 0 … 9."""

    pictures: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Split:
        """Return the first `count` images."""
        return Split(self.pictures[:count], self.labels[:count])


@dataclass(frozen=True)
class FashionMNIST:
    """Training and test images of clothes, and where they came from."""

    train: Split
    test: Split
    source: str

    @classmethod
    def load(cls, folder: Path | None = None) -> FashionMNIST:
        """Return the subset of the package (2000 + 500, balanced), or the 60,000 + 10,000 of the IDX files in `folder`.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is half-written, corrupt, or holds something else.

        >>> data = FashionMNIST.load()
        >>> len(data.train), len(data.test)
        (2000, 500)
        """
        return _packaged(SUBSET) if folder is None else _full(Path(folder))

    @property
    def digest(self) -> str:
        """Return the SHA-256 of all images and labels."""
        sha = hashlib.sha256()
        for split in (self.train, self.test):
            sha.update(split.pictures.contiguous().numpy().tobytes())
            sha.update(split.labels.to(torch.uint8).numpy().tobytes())
        return sha.hexdigest()


def _packaged(path: Path) -> FashionMNIST:
    import numpy as np

    if not path.is_file():
        raise FileNotFoundError(
            f"fashion_mnist: {path} is missing; install pliant again, or pass a folder with the four IDX files"
        )
    broken = f"fashion_mnist: {path} is half-written or corrupt; install pliant again"
    try:
        # numpy does not close a file that it cannot read, so the file is opened here.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            train, test = (
                Split(torch.from_numpy(arrays[f"{name}_pictures"]), torch.from_numpy(arrays[f"{name}_labels"]).long())
                for name in ("train", "test")
            )
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{broken} ({error})") from error
    data = FashionMNIST(train, test, "subset")
    if data.digest != SUBSET_DIGEST:
        raise ValueError(f"{broken} (its images are not the ones that were packed)")
    return data


def _full(folder: Path) -> FashionMNIST:
    return FashionMNIST(_split(folder, "train"), _split(folder, "t10k"), "full")


def _split(folder: Path, name: str) -> Split:
    path = idx.find(folder, f"{name}-images-idx3-ubyte")
    pictures = idx.read(path)
    labels = idx.read(idx.find(folder, f"{name}-labels-idx1-ubyte"))
    if pictures.dim() != 3 or pictures.shape[1:] != (28, 28):
        raise ValueError(f"fashion_mnist: {path} must hold images of 28×28, got shape {tuple(pictures.shape)}")
    if labels.shape != pictures.shape[:1] or not len(labels) or labels.max() > 9:
        raise ValueError(f"fashion_mnist: the labels beside {path} must be {len(pictures)} numbers from 0 to 9")
    return Split(pictures, labels.long())
