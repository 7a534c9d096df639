"""Write files completely or not at all, never onto an input; read text and weights, with errors that name the file."""

from __future__ import annotations

import codecs
import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file; it replaces `path` if the block succeeds and is deleted if it raises.

    Folders that do not exist are made. Several processes may write `path` at once: each has a temporary file of its
    own, and the last one to finish wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def apart(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise unless every output is another file than every input, by whatever path either is reached.

    Two paths lead to one file by links, by upper and lower case where the file system ignores it, and as relative and
    absolute paths. An output that does not exist yet is no input.

    Raises:
        ValueError: an output is an input.
    """
    read = {_identity(path): path for path in inputs if path.exists()}
    for path in outputs:
        if path.exists() and _identity(path) in read:
            raise ValueError(f"{path} would overwrite {read[_identity(path)]}, which is read; write to another place")


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def text(path: Path) -> tuple[str, str]:
    """Return the text of a file and its encoding: UTF-8, UTF-16, with or without a byte order mark, or Windows-1252.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is in none of these encodings.
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16"), "UTF-16"
    if 0 in data[:2]:
        # Files in these formats begin with a character of ASCII, whose other byte is 0.
        return data.decode("utf-16-be" if data[0] == 0 else "utf-16-le"), "UTF-16"
    try:
        return data.decode("utf-8-sig"), "UTF-8"
    except UnicodeDecodeError:
        try:
            return data.decode("cp1252"), "Windows-1252"
        except UnicodeDecodeError as error:
            raise ValueError("it is not text in UTF-8, UTF-16 or Windows-1252") from error


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
