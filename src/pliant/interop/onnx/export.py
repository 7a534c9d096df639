"""Export a model with our operators to an ONNX file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pliant.interop._program import program, quiet

FIRST = 19  # DeformConv begins here
NEWER = 22  # has new versions of RoiAlign and MaxRoiPool, and Conv and DeformConv of bfloat16


def export(
    model: nn.Module,
    args: Sequence[Any] | Tensor,
    path: str | Path,
    opset: int = FIRST,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic: bool = False,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    external_data: bool = False,
) -> None:
    """Write a model as an ONNX file: deformable convolution as DeformConv, and no operator of ours beside it.

    ``boundary="clamp"`` becomes DeformConv with other offsets and masks. Local response normalization is LRN where
    that says the same (odd windows, over dimension 1 or the last), else pooling of squares. RoIAlign and RoI pooling
    are RoiAlign and MaxRoiPool, deformable RoI pooling is RoiAlign of every bin, position-sensitive forms are RoiAlign
    of all bins, products or gathers, `nms` is NonMaxSuppression. Offsets and boxes that are not finite, and images
    that are not there, are whatever the runtime makes of them.

    Args:
        model: in evaluation mode.
        args: inputs to trace it with, or the only one.
        path: the file.
        opset: at least 19.
        kwargs: more inputs, by name.
        dynamic: batch, height and width of every input (N, C, H, W) and the number of every input's rows (R, 5) may
            change; each must be at least 2 in `args`.
        dynamic_shapes: as torch.export takes them, instead of `dynamic`.
        input_names: of the file; the arguments' names otherwise.
        output_names: of the file.
        external_data: put the weights into a file beside, ``PATH.data``; models beyond 2 GiB need it.

    Raises:
        ValueError: an opset before DeformConv, or bfloat16 before it has that (which torch would write without a word
            into a file that no runtime reads), or one that torch cannot write; a model in training mode, both kinds of
            dynamic shapes, or `dynamic` with a size below 2.
        ModuleNotFoundError: onnx or onnxscript is not installed: ``pip install "pliant[export]"``.

    Warns:
        UserWarning: RoI operators with an opset of 22 or more, for which ONNX Runtime 1.32 has no kernels.
    """
    if not isinstance(opset, int) or opset < FIRST:
        raise ValueError(f"onnx.export: opset must be at least {FIRST}, where DeformConv begins, got {opset!r}")
    for needed in ("onnx", "onnxscript"):
        try:
            __import__(needed)
        except ModuleNotFoundError as error:
            sentence = f'onnx.export: needs the package {needed}: pip install "pliant[export]"'
            raise ModuleNotFoundError(sentence, name=needed) from error
    from pliant.interop.onnx import translating

    exported = program("onnx.export", model, args, kwargs, dynamic, dynamic_shapes, clamp=True)
    low = any(getattr(node.meta.get("val"), "dtype", None) == torch.bfloat16 for node in exported.graph.nodes)
    if low and opset < NEWER:
        raise ValueError(f"onnx.export: bfloat16 needs an opset of at least {NEWER}, got {opset}")
    if opset >= NEWER and any(node.target in translating.ROIS for node in exported.graph.nodes):
        warnings.warn(
            f"onnx.export: the file has RoI operators of opset {opset}, for which ONNX Runtime (1.32) has no CPU "
            f"kernels; it has those of opset {FIRST} to {NEWER - 1}",
            UserWarning,
            stacklevel=2,
        )
    with torch.no_grad(), quiet():
        written = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=opset,
            custom_translation_table=translating.table(opset),
            input_names=input_names,
            output_names=output_names,
            verbose=False,
        )
    assert written is not None
    if (version := written.model.opset_imports[""]) != opset:
        raise ValueError(f"onnx.export: torch {torch.__version__} writes no opset {opset}, it made one of {version}")
    written.save(str(path), external_data=external_data)
