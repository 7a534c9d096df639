"""Export a model with our operators to an ONNX file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pliant import _INSTALL
from pliant.interop._program import program, quiet

FIRST = 19  # the first opset with DeformConv
ATTENTION = ("GridSample", "GatherElements")
NEWER = 22  # the first opset with Conv and DeformConv in bfloat16; it has new versions of RoiAlign and MaxRoiPool


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
    attention: str = "GridSample",
) -> None:
    """Write a model as an ONNX file that holds operators of ONNX alone: deformable convolution is DeformConv.

    ``boundary="clamp"`` becomes DeformConv with changed offsets and masks. Sequences become maps of one row. ONNX has
    no deformable convolution of volumes and no transposed one: these become gathers and scatters of single values,
    which are slow. Multi-scale deformable attention becomes a GridSample for each level, DCNv3 and DCNv4 a DeformConv
    of each channel. Local response normalization becomes LRN where the two agree (odd windows over dimension 1 or the
    last), and average pooling of squares elsewhere. RoIAlign and RoI pooling become RoiAlign and MaxRoiPool, deformable
    RoI pooling becomes RoiAlign of every bin, the position-sensitive operators become RoiAlign of all bins, products or
    gathers, and `nms` becomes NonMaxSuppression. For offsets and boxes that are not finite, and for image indices out
    of range, the result depends on the runtime.

    Args:
        model: in evaluation mode.
        args: example inputs, or the only one.
        path: the file to write.
        opset: version of ONNX's operators, at least 19.
        kwargs: more inputs, by name.
        dynamic: whether the batch, height and width of every input (N, C, H, W) and the number of rows of every input
            (R, 5) or (n, 4) may change, each of which must be at least 2 in `args`, and the size of every input (n,)
            unless the model determines it.
        dynamic_shapes: those of torch.export, instead of `dynamic`.
        input_names: of the file; by default the arguments' names.
        output_names: of the file.
        external_data: write the weights to a second file, ``PATH.data``; models beyond 2 GiB need it.
        attention: what samples in multi-scale deformable attention: "GridSample", or "GatherElements", which is slower,
            for runtimes that compute GridSample wrongly, as TensorRT 10.14 does.

    Raises:
        ValueError: `attention` is unknown; the opset has no DeformConv, or none in bfloat16 where the model has it
            (torch would write a file that no runtime reads, without a warning), or torch cannot write it; the model is
            in training mode; both kinds of dynamic shapes are given; or a size that `dynamic` leaves open is below 2 in
            `args`.
        ModuleNotFoundError: onnx or onnxscript is not installed; the extra `export` has them.

    Warns:
        UserWarning: the model has RoI operators and the opset is 22 or more: ONNX Runtime 1.32 has no kernels for them.
    """
    if not isinstance(opset, int) or opset < FIRST:
        raise ValueError(f"onnx.export: opset must be at least {FIRST}, the first with DeformConv, got {opset!r}")
    if attention not in ATTENTION:
        raise ValueError(f"onnx.export: attention must be one of {ATTENTION}, got {attention!r}")
    for needed in ("onnx", "onnxscript"):
        try:
            __import__(needed)
        except ModuleNotFoundError as error:
            sentence = f"onnx.export: needs the package {needed}: {_INSTALL.format(extra='export')}"
            raise ModuleNotFoundError(sentence, name=needed) from error
    from pliant.interop.onnx import translating

    gather = attention == "GatherElements"
    exported = program("onnx.export", model, args, kwargs, dynamic, dynamic_shapes, clamp=True, gather=gather)
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
        raise ValueError(f"onnx.export: torch {torch.__version__} cannot write opset {opset}, it wrote {version}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    written.save(str(path), external_data=external_data)
