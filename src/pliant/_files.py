"""Write files completely or not at all, and read weights with an error that names a damaged file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file; it replaces `path` if the block succeeds and is deleted if it raises.

    Several processes may write `path` at once: each has a temporary file of its own, and the last one to finish wins.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> Any:
    """Return what `torch.save` wrote, on the CPU: tensors and plain values, no code.

    Raises:
        OSError: there is no such file.
        ValueError: the file is not one that torch.save wrote, or is damaged.
    """
    with path.open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip and torch raise their own; a truncated file raises OSError, too
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{path} is not a file of weights that torch.save wrote, or is damaged ({why})") from error
