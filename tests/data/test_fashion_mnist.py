from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from pliant.data import FashionMNIST, fashion_mnist, idx
from pliant.data.fashion_mnist.pack import choose, pack


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with four small IDX files, two of them compressed."""
    random = np.random.default_rng(0)
    for name, count in (("train", 30), ("t10k", 10)):
        pictures = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(pictures)))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(_idx(np.arange(count, dtype=np.uint8) % 10))
    return tmp_path


def test_subset_is_balanced_and_unchanged() -> None:
    data = FashionMNIST.load()
    assert data.digest == fashion_mnist.SUBSET_DIGEST
    assert data.train.pictures.shape == (2000, 28, 28)
    assert data.train.pictures.dtype == torch.uint8
    assert data.train.labels.bincount().tolist() == [200] * 10
    assert data.test.labels.bincount().tolist() == [50] * 10
    with np.load(fashion_mnist.SUBSET) as arrays:
        for name, most in (("train", 60_000), ("test", 10_000)):
            index = arrays[f"{name}_indices"]
            assert len(np.unique(index)) == len(index)
            assert index.max() < most
    # The file is shuffled: the first hundred images show all classes.
    assert len(data.train.labels[:100].unique()) == 10


def test_subset_is_small_and_has_its_notice() -> None:
    folder = fashion_mnist.SUBSET.parent
    assert fashion_mnist.SUBSET.stat().st_size < 1.2e6
    assert "Copyright © 2017 Zalando SE" in (folder / "LICENSE").read_text(encoding="utf-8")


def test_packing_is_seeded(folder: Path) -> None:
    labels = np.arange(100) % 10
    first, second = (choose(labels, 3, np.random.default_rng(5)) for _ in range(2))
    assert (first == second).all()
    assert np.bincount(labels[first]).tolist() == [3] * 10
    with pytest.raises(ValueError, match="larger sample"):
        pack(FashionMNIST.load(folder), folder / "out.npz")


def test_full_files(folder: Path) -> None:
    data = FashionMNIST.load(folder)
    assert (len(data.train), len(data.test), data.source) == (30, 10, "full")
    random = np.random.default_rng(0)
    assert np.array_equal(data.train.pictures.numpy(), random.integers(0, 256, (30, 28, 28), dtype=np.uint8))
    assert data.train.labels.tolist() == [i % 10 for i in range(30)]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not an IDX file"),
        (b"\x89PNG....", "not an IDX file"),
        (bytes([0, 0, 8, 3]) + b"\0\0", "ends within its head"),
        (_idx(np.zeros((4, 28, 28), np.uint8))[:-1], "announces 3136 bytes .* holds 3135"),
        (_idx(np.zeros((4, 28, 28), np.uint8)) + b"x", "holds 3137"),
    ],
)
def test_broken_idx(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as error:
        idx.read(path)
    assert str(path) in str(error.value)


def test_half_written_gzip(folder: Path) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"no gzip", whole[:20] + b"\xff" * 40 + whole[60:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"half-written or corrupt .*fetch it again") as error:
            FashionMNIST.load(folder)
        assert str(path) in str(error.value)


def test_missing_and_wrong_full_files(folder: Path) -> None:
    labels = folder / "train-labels-idx1-ubyte"
    labels.write_bytes(_idx(np.full(30, 10, np.uint8)))
    with pytest.raises(ValueError, match="30 numbers from 0 to 9"):
        FashionMNIST.load(folder)
    labels.unlink()
    with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte nor"):
        FashionMNIST.load(folder)
    with pytest.raises(FileNotFoundError, match="is missing"):
        idx.read(labels)


def test_broken_subset(tmp_path: Path) -> None:
    path = tmp_path / "subset.npz"
    with pytest.raises(FileNotFoundError, match=r"subset\.npz is missing; install pliant again"):
        fashion_mnist._packaged(path)
    whole = fashion_mnist.SUBSET.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    other = tmp_path / "other.npz"
    np.savez(other, pictures=np.zeros(3))
    for content in (b"", whole[: len(whole) // 2], bytes(damaged), other.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="half-written or corrupt; install pliant"):
            fashion_mnist._packaged(path)


def test_changed_subset(tmp_path: Path) -> None:
    with np.load(fashion_mnist.SUBSET) as arrays:
        changed = {name: arrays[name] for name in arrays}
    changed["test_labels"] = changed["test_labels"][::-1]
    np.savez(tmp_path / "subset.npz", **changed)
    with pytest.raises(ValueError, match="not the ones that were packed"):
        fashion_mnist._packaged(tmp_path / "subset.npz")
