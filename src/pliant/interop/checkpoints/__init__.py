"""Checkpoints of other libraries: their names, their layouts, and the settings that no file holds."""

from pliant.interop.checkpoints.convert import Conversion, convert, load
from pliant.interop.checkpoints.files import File, read, write
from pliant.interop.checkpoints.names import SOURCES

__all__ = ["SOURCES", "Conversion", "File", "convert", "load", "read", "write"]
