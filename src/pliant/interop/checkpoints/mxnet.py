"""Read the parameter files of MXNet without MXNet."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import torch
from torch import Tensor

LIST_MAGIC = 0x112
# An array begins with one of these or, in the oldest files, with its number of dimensions.
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DTYPES = (torch.float32, torch.float64, torch.float16, torch.uint8, torch.int32, torch.int8, torch.int64)


class _Reader:
    """The bytes of a file, read from front to end."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, path.read_bytes(), 0

    def take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.data):
            raise ValueError(f"{self.path}: ends in the middle of an array, or is damaged")
        self.at += count
        return self.data[self.at - count : self.at]

    def numbers(self, code: str, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(code)))

    def one(self, code: str) -> int:
        return self.numbers(code, 1)[0]


def read(path: Path) -> dict[str, Tensor]:
    """Return the arrays of a `.params` file by name, without the "arg:" and "aux:" that MXNet puts before them.

    Args:
        path: what ``mx.nd.save`` or ``save_checkpoint`` wrote, in any of its three formats; dense arrays only.

    Raises:
        OSError: there is no such file.
        ValueError: the file has another format, is damaged, or has sparse arrays.

    Source: NDArray::Load of apache/mxnet, src/ndarray/ndarray.cc.
    """
    reader = _Reader(path)
    if len(reader.data) < 24 or reader.one("Q") != LIST_MAGIC:
        raise ValueError(f"{path}: is not a parameter file of MXNet")
    reader.one("Q")  # reserved
    arrays = [_array(reader) for _ in range(reader.one("Q"))]
    names = [reader.take(reader.one("Q")).decode() for _ in range(reader.one("Q"))]
    if len(names) != len(arrays):
        raise ValueError(f"{path}: has {len(arrays)} arrays and {len(names)} names; every array needs a name")
    return {name.removeprefix("arg:").removeprefix("aux:"): t for name, t in zip(names, arrays, strict=True)}


def _array(reader: _Reader) -> Tensor:
    magic = reader.one("I")
    if magic in (V2, V3) and reader.one("i") != 0:
        raise ValueError(f"{reader.path}: has a sparse array, which is not read")
    shape = reader.numbers("q", reader.one("I")) if magic in (V1, V2, V3) else reader.numbers("I", magic)
    if not shape:
        return torch.zeros(0)
    reader.numbers("i", 2)  # the device it was on
    flag = reader.one("i")
    if not 0 <= flag < len(DTYPES):
        raise ValueError(f"{reader.path}: has an array of an unknown type, or is damaged")
    data = reader.take(math.prod(shape) * DTYPES[flag].itemsize)
    return torch.frombuffer(bytearray(data), dtype=DTYPES[flag]).reshape(shape) if data else torch.zeros(shape)
