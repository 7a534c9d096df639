"""Whatever torchvision's operators refuse is a RuntimeError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def as_runtime_error(name: str) -> Iterator[None]:
    """Raise our sentences as RuntimeError, after the name of torchvision's function."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise RuntimeError(f"{name}: {str(error).partition(': ')[2] or error}") from error
