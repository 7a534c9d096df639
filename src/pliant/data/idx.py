"""Read IDX files, the format of MNIST and Fashion-MNIST, compressed or not."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor


def read(path: Path) -> Tensor:
    """Return the bytes of one IDX file as a uint8 tensor of the shape that its header gives.

    The header is ``0, 0, type, rank`` and `rank` big-endian sizes; only type 8 (unsigned bytes) is read. A
    file whose name ends in ``.gz`` is decompressed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not an IDX file of bytes, is half-written or is corrupt.

    Source: http://yann.lecun.com/exdb/mnist, "the IDX file format".
    """
    if not path.is_file():
        raise FileNotFoundError(f"idx: {path} is missing; put the file there or name another folder")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"idx: {path} is half-written or corrupt ({error}); fetch it again") from error
    if len(data) < 4 or data[0] or data[1] or data[2] != 8 or data[3] == 0:
        raise ValueError(f"idx: {path} is not an IDX file of unsigned bytes; fetch it again or name another file")
    rank = data[3]
    head = 4 + 4 * rank
    if len(data) < head:
        raise ValueError(f"idx: {path} ends within its header; fetch it again")
    shape = struct.unpack(f">{rank}I", data[4:head])
    if len(data) - head != math.prod(shape):
        raise ValueError(
            f"idx: {path} announces {math.prod(shape)} bytes of shape {shape} and holds {len(data) - head}; "
            "it is half-written or corrupt, fetch it again"
        )
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=head).reshape(shape)


def find(folder: Path, name: str) -> Path:
    """Return the path of the IDX file `name` in `folder`, compressed or not.

    Raises:
        FileNotFoundError: neither form is there.
    """
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"idx: neither {folder / name} nor {name}.gz is there; put it there or name another folder")
