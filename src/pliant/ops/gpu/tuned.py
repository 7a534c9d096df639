"""Sizes of kernels that `pliant tune` found faster than the table's, one file a device in the user's cache."""

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

# Counted up when the kernels change, so that sizes found for others are not taken for theirs.
KERNELS = 1

# Of every device that was asked about: class of shape → sizes.
_known: dict[torch.device, dict[str, list[Any]]] = {}


def path(device: torch.device) -> Path:
    """Return the file of a device; another Triton compiles other code, for which other sizes are fast."""
    name = torch.get_device_module(device).get_device_name(device)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return _cache() / f"{slug}-triton-{importlib.import_module('triton').__version__}.json"


def _cache() -> Path:
    """Return the folder that the system keeps for what can be made again.

    Raises:
        OSError: this user has no home.
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
    """Return the sizes of a device by class of shape, read from its file when it is asked about first.

    What is changed in them holds for this process, until :func:`save` is called.
    """
    found = _known.get(device)
    if found is None:
        # Devices without a driver interpret kernels, or compile them for others: by the table.
        found = _known[device] = {} if device.type in ("cpu", "meta") else _read(device)
    return found


def save(device: torch.device) -> Path:
    """Write what is known of a device to its file, and return that."""
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
        # Whoever has no home has tuned nothing.
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
        return _broken(file, f"is no JSON: {error}")
    sizes = content.get("sizes") if isinstance(content, dict) else None
    if not isinstance(sizes, dict) or not all(_right(row) for row in sizes.values()):
        return _broken(file, "does not hold sizes of kernels")
    return sizes if content.get("kernels") == KERNELS else _broken(file, "is about the kernels of another version")


def _right(row: object) -> bool:
    """Return whether a row can be sizes: powers of two, then stages, then registers or none."""
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
