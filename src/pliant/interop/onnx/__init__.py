"""Models with our operators as ONNX files."""

from pliant.interop.onnx.export import export

__all__ = ["export"]
