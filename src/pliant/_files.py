"""Write files completely or not at all, never onto an input; read text and weights, with errors that name the file."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# The first bytes of what torch.save writes since torch 1.6.
ZIP = b"PK\x03\x04"
# Keys under which checkpoints usually hold their weights, in the order in which they are tried.
INSIDE = ("state_dict", "model", "model_state_dict", "params_ema", "params", "state_dict_ema")


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
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)  # a full disk is reported without the name of the file
        raise
    finally:
        part.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the temporary files of :func:`replacing` that killed processes of this machine left in a folder.

    Call it where a run starts to write into the folder, before this process writes there itself.
    """
    for part in folder.glob("*.part"):
        found = re.fullmatch(r".+\.(\d+)\.part", part.name)
        if found and (int(found[1]) == os.getpid() or not _alive(int(found[1]))):
            part.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it is another user's
    return True


def save(value: Any, path: Path) -> None:
    """Write what :func:`load` reads; a crash or a full disk leaves the old file as it was.

    Raises:
        OSError: it could not be written.
    """
    with replacing(path) as part, part.open("wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:
            # What the system said is behind the exception with which torch's zip writer ends.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())


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

    torch does not compare the checksums of its files when it reads them, so this function does: a file with one wrong
    bit is refused. Files of torch before 1.6 have no checksums.

    Raises:
        OSError: there is no such file.
        ValueError: the file is not one that torch.save wrote, is damaged, or needs code.
    """
    with path.open("rb") as file:
        try:
            if file.read(len(ZIP)) == ZIP:
                with zipfile.ZipFile(file) as archive:
                    if (record := archive.testzip()) is not None:
                        raise zipfile.BadZipFile(f"the checksum of its record {record} is wrong")
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of the protocol of a pickle before it refuses it
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip and torch raise their own; a truncated file raises OSError, too
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{path} is not a file of weights that torch.save wrote, or is damaged ({why})") from error


def code_in(path: Path) -> str:
    """Return the names outside torch that reading a file of `torch.save` would import, "" if none or it is damaged."""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a damaged file raises any of many exceptions
        return ""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def weights(found: Any, depth: int = 4) -> dict[str, Any]:
    """Return the weights of a checkpoint by name, with what lies beside them; empty if there are none.

    They are the dictionary itself, one of its entries of a usual name (`INSIDE`), or its only entry that holds tensors.
    If several do, such as those of an encoder and a decoder, names begin with those of the entries. The state of an
    optimizer is left out.

    >>> one = torch.ones(1)
    >>> list(weights({"net": {"a": one}, "epoch": 3})), list(weights({"up": {"a": one}, "down": {"a": one}}))
    (['a'], ['up.a', 'down.a'])
    """
    if not isinstance(found, dict) or "param_groups" in found or not depth:
        return {}
    for key in INSIDE:
        if inner := weights(found.get(key), depth - 1):
            return inner
    named = {name: value for name, value in found.items() if isinstance(name, str)}
    if any(isinstance(value, Tensor) for value in named.values()):
        return named
    parts = {name: inner for name, value in named.items() if (inner := weights(value, depth - 1))}
    if len(parts) == 1:
        return next(iter(parts.values()))
    return {f"{part}.{name}": value for part, inner in parts.items() for name, value in inner.items()}
