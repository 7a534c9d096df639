"""Figures of where models look."""

from pliant.show.look import Look, look

__all__ = ["Look", "look"]
