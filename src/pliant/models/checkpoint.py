"""Checkpoints of detectors: files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from pliant._files import load, replacing

FORMAT = 1


def write(path: Path, state: dict[str, Any]) -> None:
    """Write `state`, tensors and plain Python values, to `path`; a crash or a full disk leaves the old file as it was.

    Raises:
        OSError: it could not be written.
    """
    # Given a path instead of a file, torch says of a full disk only that its writer failed.
    with replacing(path) as part, part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> dict[str, Any]:
    """Return what a run of training wrote for its detector with :func:`write`, on the CPU.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: the file is something else.
    """
    try:
        state = load(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged or not a checkpoint; give the last.pt or best.pt of a run") from error
    if not isinstance(state, dict) or "format" not in state or "recipe" not in state:
        raise ValueError(f"{path} is not a checkpoint of a detector; give the last.pt or best.pt of a run")
    if state["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {state['format']}, this version of pliant reads format {FORMAT}; "
            "use the version that wrote it"
        )
    return state
