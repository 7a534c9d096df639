"""Files that are whole or not there, and sentences for those that are damaged."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file beside `path` to write; it takes the place of `path` when the block ends well, and else goes.

    Several processes may write `path` at once: each has a file of its own, the last one stays.
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
        ValueError: it is damaged, or something else.
    """
    with path.open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip and torch each have their own; the system's, too, of a file cut short
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{path} is not a file of weights that torch.save wrote, or damaged ({said})") from error
