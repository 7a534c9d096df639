"""Checkpoints of detectors: files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pliant._files import load, save

FORMAT = 1
# What a checkpoint holds that prediction needs, and of which kind it is.
PARTS: dict[str, type | tuple[type, ...]] = {
    "recipe": dict,
    "classes": (list, tuple),
    "category_ids": (list, tuple),
    "model": dict,
}


def write(path: Path, state: dict[str, Any]) -> None:
    """Write `state`, tensors and plain Python values, to `path`; a crash or a full disk leaves the old file as it was.

    Raises:
        OSError: it could not be written.
    """
    save(state, path)


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
    wrong = [name for name, kind in PARTS.items() if not isinstance(state.get(name), kind)]
    if wrong or len(state["classes"]) != len(state["category_ids"]):
        raise ValueError(f"{path} is damaged, see its {' and '.join(wrong) or 'classes and category_ids'}")
    return state
