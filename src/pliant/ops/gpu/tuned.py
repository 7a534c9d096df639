"""Sizes of kernels that `pliant tune` found faster than the table's, one file per device in the user's cache."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from pliant import _files

# Increased whenever the kernels change, so that sizes tuned for older ones are not used.
KERNELS = 2

# The sizes by class of shape, for every device looked up so far.
_known: dict[torch.device, dict[str, list[Any]]] = {}


def path(device: torch.device) -> Path:
    """Return the file of a device, per version of Triton: other code has other fastest sizes."""
    name = torch.get_device_module(device).get_device_name(device)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return _cache() / f"{slug}-triton-{importlib.import_module('triton').__version__}.json"


def _cache() -> Path:
    """Return pliant's folder in the user's cache.

    Raises:
        OSError: the user has no home directory.
    """
    try:
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise OSError(f"there is no folder for tuned sizes: {error}") from error
    return base / "pliant" / "tuned"


def known(device: torch.device) -> dict[str, list[Any]]:
    """Return the sizes of a device by class of shape, read from its file at the first call.

    Changes to the returned dictionary last for this process, unless :func:`save` is called.
    """
    found = _known.get(device)
    if found is None:
        # On these, kernels are interpreted or compiled for another device, with the sizes of the table.
        found = _known[device] = {} if device.type in ("cpu", "meta") else _read(device)
    return found


def save(device: torch.device) -> Path:
    """Write the sizes of a device to its file, and return the file."""
    file = path(device)
    file.parent.mkdir(parents=True, exist_ok=True)
    with _files.replacing(file) as part:
        part.write_text(json.dumps({"kernels": KERNELS, "sizes": known(device)}, indent=1) + "\n", encoding="utf-8")
    return file


def forget(device: torch.device) -> bool:
    """Delete the file of a device, and return whether there was one."""
    _known.pop(device, None)
    file = path(device)
    there = file.is_file()
    file.unlink(missing_ok=True)
    return there


def _read(device: torch.device) -> dict[str, list[Any]]:
    try:
        file = path(device)
    except OSError:
        # Without a home directory nothing can have been tuned.
        return {}
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        return _broken(file, str(error).splitlines()[0])
    try:
        content = json.loads(text)
    except ValueError as error:
        return _broken(file, f"is not JSON: {error}")
    sizes = content.get("sizes") if isinstance(content, dict) else None
    if not isinstance(sizes, dict) or not all(_right(row) for row in sizes.values()):
        return _broken(file, "does not hold sizes of kernels")
    return sizes if content.get("kernels") == KERNELS else _broken(file, "was tuned for another version of the kernels")


def _right(row: object) -> bool:
    """Return whether a row is valid: five powers of two, then stages, then registers or None."""
    if not isinstance(row, list) or len(row) != 7:
        return False
    *powers, stages, registers = row
    if not all(isinstance(n, int) and 0 <= n <= 512 and n & (n - 1) == 0 for n in powers):
        return False
    return isinstance(stages, int) and 1 <= stages <= 8 and (registers is None or registers in range(24, 256))


def _broken(file: Path, what: str) -> dict[str, list[Any]]:
    warnings.warn(
        f"{file} {what}: the kernels keep the sizes of the table; run `pliant tune` again, or delete the file",
        RuntimeWarning,
        stacklevel=2,
    )
    return {}
