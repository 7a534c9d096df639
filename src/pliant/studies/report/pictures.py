"""Pictures of a report: drawn where the folder has what they need, named where it has not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

R = TypeVar("R")


@dataclass(frozen=True)
class Picture:
    """A PNG, the name of its file, and the sentence below it."""

    name: str
    data: bytes
    caption: str


def drawn(results: R, makers: Sequence[Callable[[R], Picture]], notes: list[str]) -> list[Picture]:
    """Return what every maker draws; a sentence in `notes` for each one that lacks something (LookupError)."""
    found = []
    for maker in makers:
        try:
            found.append(maker(results))
        except LookupError as error:
            if error.args[0] not in notes:
                notes.append(str(error.args[0]))
    return found


def save(pictures: Sequence[Picture], folder: Path) -> None:
    """Write every picture as a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        (folder / f"{picture.name}.png").write_bytes(picture.data)
