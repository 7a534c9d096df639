"""Figures of a report: drawn where the folder has the weights they need, named where it has not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pliant.studies.report import page

R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """A PNG, the name of its file, the sentence below it, and what it shows in words for those who cannot see it."""

    name: str
    data: bytes
    caption: str
    alternative: str


def drawn(results: R, makers: Sequence[Callable[[R], Figure]], notes: list[str]) -> list[Figure]:
    """Return what every maker draws; a sentence in `notes` for each one that lacks something (LookupError)."""
    found = []
    for maker in makers:
        try:
            found.append(maker(results))
        except LookupError as error:
            if error.args[0] not in notes:
                notes.append(str(error.args[0]))
    return found


def save(figures: Sequence[Figure], folder: Path) -> None:
    """Write every figure as a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        (folder / f"{figure.name}.png").write_bytes(figure.data)


def placed(figures: Sequence[Figure], name: str, width: int | None = None) -> list[str]:
    """Return a figure as HTML, no wider than `width` pixels; nothing where it was not drawn."""
    return [page.picture(f.data, f.alternative, f.caption, width) for f in figures if f.name == name]


def first(candidates: Iterable[tuple[Path, Callable[[], T]]], what: str) -> T:
    """Return what the first candidate loads whose file is there and can be read.

    Args:
        candidates: file of weights, and a call that loads it.
        what: the network that is wanted, in words.

    Raises:
        LookupError: there is none; names the files that cannot be read.
    """
    broken = []
    for path, load in candidates:
        if path.is_file():
            try:
                return load()
            except Exception as error:  # a damaged file raises whatever its missing part happens to raise
                broken.append(unreadable(path, error))
    why = f": {'; '.join(broken)}" if broken else ""
    raise LookupError(f"The folder holds no weights of {what}, so its figures are left out{why}.")


def unreadable(path: Path, error: Exception) -> str:
    """Say that a file cannot be read, and why."""
    return f"{path.name} cannot be read ({next(iter(str(error).splitlines()), type(error).__name__)[:80]})"
