"""Deformable and normalizing operators for PyTorch, and the networks, experiments and figures built on them."""

from typing import TYPE_CHECKING

__all__ = ["nn", "ops"]
__version__ = "0.1.0"
# How an extra is installed, in every hint. There is no release yet.
_INSTALL = 'pip install ".[{extra}]" in a clone of the repository'

if TYPE_CHECKING:
    from pliant import nn, ops
else:
    # Imported when first asked for: `pliant --help` imports this file, and answers without loading torch.
    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return import_module(f"{__name__}.{name}")

    def __dir__():
        return sorted({*globals(), *__all__})
