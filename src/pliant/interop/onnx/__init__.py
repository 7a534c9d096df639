"""Export models with our operators to ONNX files."""

from pliant.interop.onnx.export import export

__all__ = ["export"]
