"""Convert models with our operators to OpenVINO."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import pliant.ops  # noqa: F401 - declares the operators
from pliant import _INSTALL
from pliant.interop._program import program, quiet


def extensions() -> list[Any]:
    """Return the extensions that ``openvino.convert_model(…, extension=…)`` needs for our operators.

    They serve traced and exported models. Deformable convolution becomes DeformableConvolution, with either boundary;
    local response normalization of maps with an odd window over channels becomes LRN; RoIAlign and RoI pooling become
    ROIAlign and ROIPooling. For other operators and windows use :func:`convert`, which rewrites them first.

    Raises:
        ModuleNotFoundError: openvino is not installed; the extra `openvino` has it.
    """
    _needed()
    from openvino.frontend.pytorch import ConversionExtension

    # The names of an operator in an exported program, and in torch.jit.
    exported = {f"{library}.{name}.default": f for (library, name), f in _TRANSLATIONS.items()}
    traced = {f"{library}::{name}": f for (library, name), f in _TRANSLATIONS.items()}
    traced["pliant::roi_pool"] = _roi_pool_traced
    return [ConversionExtension(name, translate) for name, translate in {**exported, **traced}.items()]


def convert(
    model: nn.Module,
    args: Sequence[Any] | Tensor,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic: bool = False,
    dynamic_shapes: Any = None,
) -> Any:
    """Convert a model with any of our operators but `nms` to OpenVINO.

    Args:
        model: in evaluation mode.
        args: example inputs, or the only one.
        kwargs: more inputs, by name.
        dynamic: whether the batch, height and width of every input (N, C, H, W) and the number of rows of every input
            (R, 5) or (n, 4) may change, each of which must be at least 2 in `args`, and the size of every input (n,)
            unless the model determines it.
        dynamic_shapes: those of torch.export, instead of `dynamic`.

    Returns:
        An ``openvino.Model``. OpenVINO computes in bfloat16 by default on a CPU that has it;
        ``INFERENCE_PRECISION_HINT`` changes that.

    Raises:
        ValueError: the model is in training mode or has `nms`, both kinds of dynamic shapes are given, or a size that
            `dynamic` leaves open is below 2 in `args`.
        ModuleNotFoundError: openvino is not installed; the extra `openvino` has it.
    """
    _needed()
    import openvino
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    exported = program("openvino.convert", model, args, kwargs, dynamic, dynamic_shapes, clamp=False)
    if any(node.target == torch.ops.pliant.nms.default for node in exported.graph.nodes):
        raise ValueError("openvino.convert: the model has nms, which is not converted; end the model before it")
    # By default OpenVINO takes every size of an input as unknown, but its kernels need the number of channels.
    with quiet(), _without_missing_decompositions():
        decoder = TorchFXPythonDecoder.from_exported_program(exported, dynamic_shapes=False)
        return openvino.convert_model(decoder, extension=extensions())


@contextlib.contextmanager
def _without_missing_decompositions() -> Iterator[None]:
    """Suppress what OpenVINO 2026.4 logs, with tracebacks, about operators that it expects torch to decompose."""

    def keep(record: logging.LogRecord) -> bool:
        return "not found in decomp table" not in record.msg

    logging.root.addFilter(keep)
    try:
        yield
    finally:
        logging.root.removeFilter(keep)


def _needed() -> None:
    try:
        import openvino  # noqa: F401
    except ModuleNotFoundError as error:
        sentence = f"openvino: needs the package openvino: {_INSTALL.format(extra='openvino')}"
        raise ModuleNotFoundError(sentence, name="openvino") from error


def _numbers(context: Any, first: int, last: int) -> list[Any]:
    return [context.get_values_from_const_input(i) for i in range(first, last)]


def _tensor(context: Any, index: int) -> Any:
    """Return an input that may be None."""
    found = context.get_input(index)
    # None is a node without values; asking a tensor that is not constant for its values raises.
    if found.get_node().get_type_name() == "PtFrameworkNode" and context.get_values_from_const_input(index) is None:
        return None
    return found


def _size(operator: str, name: str, tensor: Any, dim: int) -> int:
    size = tensor.get_partial_shape()[dim]
    if size.is_dynamic:
        raise ValueError(
            f"{operator}: OpenVINO does not know the number of channels of {name}, an input of the model; use "
            "pliant.interop.openvino.convert"
        )
    return int(size.get_length())


def _deform_conv2d(context: Any) -> Any:
    from openvino import opset15 as op

    input, offset, weight = (context.get_input(i) for i in range(3))
    bias, mask = _tensor(context, 3), _tensor(context, 4)
    sh, sw, ph, pw, dh, dw, clamp = _numbers(context, 5, 12)
    _, Cg, Kh, Kw = weight.get_shape()
    groups = _size("deform_conv2d", "input", input, 1) // Cg
    output = op.deformable_convolution(
        input,
        offset,
        weight,
        [sh, sw],
        [ph, pw],
        [ph, pw],
        [dh, dw],
        mask,
        group=groups,
        deformable_group=_size("deform_conv2d", "offset", offset, 1) // (2 * Kh * Kw),
        bilinear_interpolation_pad=not clamp,
    )
    if bias is not None:
        output = op.add(output, op.reshape(bias, op.constant([1, -1, 1, 1]), False))
    return output.outputs()


def _local_response_norm(context: Any) -> Any:
    from openvino import opset15 as op

    dim, before, after, spatial, a, beta, k = _numbers(context, 1, 8)
    if spatial or before != after or dim != 1:
        raise ValueError(
            "local_response_norm: OpenVINO has it for odd windows over dimension 1; pliant.interop.openvino.convert "
            "rewrites the others"
        )
    size = before + after + 1
    return op.lrn(context.get_input(0), op.constant([dim]), a * size, beta, k, size).outputs()


def _boxes(context: Any) -> Any:
    """Return RoIs with a known number of columns."""
    from openvino import opset15 as op

    return op.reshape(context.get_input(1), op.constant([-1, 5]), False)


def _roi_align(context: Any) -> Any:
    from openvino import opset15 as op

    Ph, Pw, scale, ratio, aligned = _numbers(context, 2, 7)
    first, end, step, axis = (op.constant([n]) for n in (1, 5, 1, 1))
    rois = _boxes(context)
    image = op.squeeze(op.slice(rois, op.constant([0]), first, step, axis), axis)
    mode = "half_pixel_for_nn" if aligned else "asymmetric"
    boxes = op.slice(rois, first, end, step, axis)
    samples = max(ratio, 0)
    input = context.get_input(0)
    return op.roi_align(input, boxes, op.convert(image, "i32"), Ph, Pw, samples, scale, "avg", mode).outputs()


def _maxima(context: Any) -> Any:
    from openvino import opset15 as op

    Ph, Pw, scale = _numbers(context, 2, 5)
    return op.roi_pooling(context.get_input(0), _boxes(context), [Ph, Pw], scale, "max").output(0)


def _roi_pool(context: Any) -> Any:
    from openvino import opset15 as op

    # An exported program takes the first of the two outputs as it would take the first row of a tensor.
    return op.unsqueeze(_maxima(context), op.constant([0])).outputs()


def _roi_pool_traced(context: Any) -> Any:
    # The second output, the position of each maximum, is read by the backward alone.
    output = _maxima(context)
    return [output, output]


def _trunc(context: Any) -> Any:
    from openvino import opset15 as op

    input = context.get_input(0)
    return op.multiply(op.sign(input), op.floor(op.absolute(input))).outputs()


_TRANSLATIONS: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("pliant", "deform_conv2d"): _deform_conv2d,
    ("pliant", "local_response_norm"): _local_response_norm,
    ("pliant", "roi_align"): _roi_align,
    ("pliant", "roi_pool"): _roi_pool,
    # Position-sensitive pooling rounds with it, and OpenVINO 2026.4 lacks it.
    ("aten", "trunc"): _trunc,
}
