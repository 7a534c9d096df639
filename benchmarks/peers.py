"""Other implementations, each where it is installed: ONNX Runtime, OpenVINO, ncnn, torchvision, mmcv.

A function here returns what to call for a case: for inference runtimes, which have no gradients, without arguments and
on the case's tensors in NCHW; else a function of the tensors. ImportError where the library is missing, LookupError
where it cannot compute the case.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pliant.testing import DeformConvCase, LRNCase

Call = Callable[[], tuple[Tensor, ...]]
Made = TypeVar("Made")


def available(makers: Mapping[str, Callable[[], Made]]) -> Iterator[tuple[str, Made]]:
    """Yield the name of every peer that is installed and can compute the case, and what its maker returns."""
    for name, make in makers.items():
        try:
            yield name, make()
        except (ImportError, LookupError):
            continue


def onnxruntime_deform_conv2d(case: DeformConvCase, t: dict[str, Tensor]) -> Call:
    """Return ONNX Runtime's DeformConv (opset 19)."""
    names = ("input", "weight", "offset", "bias", "mask")
    attributes = {
        "kernel_shape": case.kernel, "strides": case.stride, "pads": (*case.padding, *case.padding),
        "dilations": case.dilation, "group": case.groups, "offset_group": case.offset_groups,
    }  # fmt: skip
    return _onnxruntime("DeformConv", {name: t[name] for name in names}, {"weight", "bias"}, attributes)


def onnxruntime_lrn(case: LRNCase, t: dict[str, Tensor]) -> Call:
    """Return ONNX Runtime's LRN, whose sums begin as torch's do where the size is odd."""
    attributes = {"size": case.size, "alpha": case.alpha, "beta": case.beta, "bias": case.k}
    return _onnxruntime("LRN", {"input": t["input"]}, set(), attributes)


def _onnxruntime(op: str, tensors: dict[str, Tensor], constants: set[str], attributes: dict[str, Any]) -> Call:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(op, list(tensors), ["output"], **attributes)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
        for name, value in tensors.items()
        if name not in constants
    ]
    kept = [numpy_helper.from_array(tensors[name].numpy(), name) for name in tensors if name in constants]
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], op, inputs, [output], kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    feeds = {name: value.numpy() for name, value in tensors.items() if name not in constants}
    return lambda: (torch.from_numpy(session.run(None, feeds)[0]),)


def openvino_deform_conv2d(case: DeformConvCase, t: dict[str, Tensor]) -> Call:
    """Return OpenVINO's deformable convolution (opset 8), in float32."""
    from openvino import opset8

    def build(input: Any, offset: Any, mask: Any) -> Any:
        weight, bias = (opset8.constant(value.numpy()) for value in (t["weight"], t["bias"].view(1, -1, 1, 1)))
        # The last argument lets samples beyond the border fade to zero, as everywhere else.
        result = opset8.deformable_convolution(
            input, offset, weight, list(case.stride), list(case.padding), list(case.padding), list(case.dilation),
            mask, "explicit", case.groups, case.offset_groups, True,
        )  # fmt: skip
        return opset8.add(result, bias)

    return _openvino(build, {name: t[name] for name in ("input", "offset", "mask")})


def openvino_lrn(case: LRNCase, t: dict[str, Tensor]) -> Call:
    """Return OpenVINO's LRN across channels, in float32."""
    from openvino import opset8

    def build(input: Any) -> Any:
        return opset8.lrn(input, opset8.constant([1]), case.alpha, case.beta, case.k, case.size)

    return _openvino(build, {"input": t["input"]})


def _openvino(build: Callable[..., Any], tensors: dict[str, Tensor]) -> Call:
    import openvino
    from openvino import opset8

    parameters = [opset8.parameter(list(value.shape), openvino.Type.f32, name) for name, value in tensors.items()]
    model = openvino.Model([build(*parameters)], parameters, "peer")
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(model, "CPU", hints).create_infer_request()
    arrays = [value.numpy() for value in tensors.values()]

    def run() -> tuple[Tensor, ...]:
        found = request.infer(arrays, share_inputs=True)
        return (torch.from_numpy(next(iter(found.values()))),)

    return run


def ncnn_deform_conv2d(case: DeformConvCase, t: dict[str, Tensor]) -> Call:
    """Return ncnn's DeformableConv2D, image by image; it knows no groups."""
    import ncnn

    if case.groups > 1 or case.offset_groups > 1:
        raise LookupError("ncnn's DeformableConv2D has neither groups nor offset groups")
    (Kh, Kw), (sh, sw), (ph, pw), (dh, dw) = case.kernel, case.stride, case.padding, case.dilation
    weight = t["weight"].contiguous()
    numbers = {
        0: case.out_channels, 1: Kw, 11: Kh, 2: dw, 12: dh, 3: sw, 13: sh, 4: pw, 15: pw, 14: ph, 16: ph, 5: 1,
        6: weight.numel(),
    }  # fmt: skip
    words = " ".join(f"{key}={value}" for key, value in numbers.items())
    inputs = ("input", "offset", "mask")
    lines = ["7767517", "4 4", *(f"Input {name} 0 1 {name}" for name in inputs)]
    lines.append(f"DeformableConv2D peer 3 1 {' '.join(inputs)} output {words}")
    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        for name, content in (
            ("peer.param", "\n".join(lines).encode() + b"\n"),
            ("peer.bin", bytes(4) + weight.numpy().tobytes() + t["bias"].numpy().tobytes()),
        ):
            Path(folder, name).write_bytes(content)
        if net.load_param(f"{folder}/peer.param") or net.load_model(f"{folder}/peer.bin"):
            raise LookupError("ncnn does not read the layer")

    def run() -> tuple[Tensor, ...]:
        images = []
        for n in range(case.input[0]):
            extractor = net.create_extractor()
            for name in inputs:
                extractor.input(name, ncnn.Mat(t[name][n].numpy()))
            images.append(torch.from_numpy(extractor.extract("output")[1].numpy("f")))
        return (torch.stack(images) if len(images) > 1 else images[0][None],)

    return run


def torchvision_deform_conv2d(case: DeformConvCase) -> Callable[..., Tensor]:
    """Return torchvision's deform_conv2d, differentiable: a function of input, offset, mask, weight and bias."""
    from torchvision.ops import deform_conv2d  # type: ignore[import-not-found]

    def run(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        result: Tensor = deform_conv2d(input, offset, weight, bias, case.stride, case.padding, case.dilation, mask)
        return result

    return run


def mmcv_deform_conv2d(case: DeformConvCase) -> Callable[..., Tensor]:
    """Return mmcv's modulated_deform_conv2d, differentiable: a function of input, offset, mask, weight and bias."""
    from mmcv.ops import modulated_deform_conv2d  # type: ignore[import-not-found]

    def run(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        geometry = (case.stride, case.padding, case.dilation, case.groups, case.offset_groups)
        result: Tensor = modulated_deform_conv2d(input, offset, mask, weight, bias, *geometry)
        return result

    return run
