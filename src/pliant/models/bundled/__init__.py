"""Trained detectors that come with the package: weights as small integers, all else that a checkpoint says as JSON."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parent
NAMES = ("mdconv-c3-c5-mdpool",)


def read(name: str) -> dict[str, Any]:
    """Return the checkpoint of one of `NAMES`, as :func:`pliant.models.checkpoint.read` does of a file.

    Raises:
        OSError: a file is missing.
        ValueError: a file is damaged.
    """
    path = FOLDER / f"{name}.json"
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path) from error
    return {**about, "model": unpack(path.with_suffix(".npz"))}


def write(path: Path, about: dict[str, Any], weights: dict[str, Tensor], levels: int) -> None:
    """Write a checkpoint to `path`, .npz, and the .json beside it; see :func:`pack`."""
    pack(weights, path, levels)
    path.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def pack(weights: dict[str, Tensor], path: Path, levels: int) -> None:
    """Write weights as integers from −levels to levels with a scale per row (output channel), the rest as float16."""
    import numpy as np

    arrays: dict[str, Any] = {}
    for name, tensor in weights.items():
        if tensor.dtype == torch.float32 and tensor.dim() > 1:
            scale = (tensor.flatten(1).abs().amax(1) / levels).clamp_min(1e-7).half()
            rows = scale.float().view(-1, *[1] * (tensor.dim() - 1))
            arrays[name] = (tensor / rows).round().clamp(-levels, levels).to(torch.int8).numpy()
            arrays[f"{name}:scale"] = scale.numpy()
        else:
            arrays[name] = (tensor.half() if tensor.dtype == torch.float32 else tensor).numpy()
    np.savez_compressed(path, **arrays)


def unpack(path: Path) -> dict[str, Tensor]:
    """Return the weights that :func:`pack` wrote.

    Raises:
        OSError: the file is missing.
        ValueError: it is damaged.
    """
    import numpy as np

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path) from error
    scales = {name: weights.pop(name) for name in list(weights) if name.endswith(":scale")}
    for name, tensor in weights.items():
        if tensor.dtype == torch.int8:
            rows = scales[f"{name}:scale"].float().view(-1, *[1] * (tensor.dim() - 1))
            weights[name] = tensor.float() * rows
        elif tensor.dtype == torch.float16:
            weights[name] = tensor.float()
    return weights


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{path} is damaged; install pliant again")
