"""Other implementations, each timed where it is installed: inference runtimes, frameworks, operators for PyTorch.

A function here returns what is called for a case. Operators for PyTorch are functions of its tensors, differentiable.
Everything else takes no arguments and computes on the tensors that it was given: inference runtimes take NCHW and have
no gradients; frameworks are told whether to compute them, and return output and gradients in the order of the problem.

Raises ImportError where the library is missing, and LookupError where it cannot compute the case.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pliant.testing import DeformConvCase, LRNCase, MSDeformAttnCase, RoICase

Call = Callable[[], tuple[Tensor, ...]]
Made = TypeVar("Made")


def available(makers: Mapping[str, Callable[[], Made]]) -> Iterator[tuple[str, Made]]:
    """Yield each peer that is installed and can compute the case: its name, and what its maker returns."""
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


def torch_ms_deform_attn(case: MSDeformAttnCase) -> Callable[..., Tensor]:
    """Return torch-ms-deform-attn's operator, written in C++ for CPUs; it takes levels that follow each other."""
    from torch_ms_deform_attn import ms_deform_attn

    if case.starts is not None or not isinstance(case.points, int):
        raise LookupError("it takes as many points of every level")
    shapes = torch.tensor(case.shapes)
    sizes = shapes.prod(1)
    starts = sizes.cumsum(0) - sizes

    def run(value: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
        found: Tensor = ms_deform_attn(value, shapes, starts, sampling_locations, attention_weights)
        return found

    return run


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
    """Return ncnn's DeformableConv2D, image by image; it has no groups."""
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


def onednn_lrn(case: LRNCase, t: dict[str, Tensor], backward: bool) -> Call:
    """Return oneDNN's LRN on channels_last tensors; its results are allocated by every call."""
    if case.size % 2 == 0:
        raise LookupError("oneDNN centres its window, whose size is odd")
    library, x, grad = _onednn(), t["input"], t["grad"]
    constants = (case.size, case.alpha, case.beta, case.k, torch.get_num_threads())
    made = library.lrn_create(*x.shape, backward, *constants)
    if made is None:
        raise LookupError("oneDNN has no LRN for this case")

    def compute(*tensors: Tensor) -> None:
        pointers = [tensor.data_ptr() for tensor in tensors] + [None] * (4 - len(tensors))
        if status := library.lrn_run(made, *pointers):
            raise RuntimeError(f"oneDNN's LRN fails with status {status}")

    # empty_like keeps the layout of x, channels_last.
    def forward() -> tuple[Tensor, ...]:
        y = torch.empty_like(x)
        compute(x, y)
        return (y,)

    def both() -> tuple[Tensor, ...]:
        y, dx = torch.empty_like(x), torch.empty_like(x)
        compute(x, y, grad, dx)
        return y, dx

    run = both if backward else forward
    weakref.finalize(run, library.lrn_delete, made)
    return run


@functools.cache
def _onednn() -> ctypes.CDLL:
    """Compile onednn_lrn.cpp where oneDNN's and OpenMP's headers and a compiler are found, and load it."""
    compiler = [os.environ.get("CXX", "c++"), "-std=c++17", "-O2", "-fopenmp"]
    look = [*compiler, "-include", "dnnl.hpp", "-include", "omp.h", "-E", "-x", "c++", os.devnull]
    try:
        subprocess.run(look, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise LookupError("there is no compiler that finds dnnl.hpp and omp.h") from error
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(__file__).with_name("onednn_lrn.cpp"), f"{folder}/lrn.so"
        subprocess.run([*compiler, "-shared", "-fPIC", str(source), "-o", target, "-ldnnl"], check=True)
        library = ctypes.CDLL(target)
    sizes, numbers = [ctypes.c_int64] * 4, [ctypes.c_float] * 3
    library.lrn_create.argtypes = [*sizes, ctypes.c_int, ctypes.c_int64, *numbers, ctypes.c_int]
    library.lrn_create.restype = ctypes.c_void_p
    library.lrn_run.argtypes = [ctypes.c_void_p] * 5
    library.lrn_delete.argtypes = [ctypes.c_void_p]
    return library


def tensorflow_lrn(case: LRNCase, t: dict[str, Tensor], backward: bool) -> Call:
    """Return TensorFlow's LRN, eager, in NHWC; its alpha multiplies the window's sum, not its mean."""
    import tensorflow as tf

    if case.size % 2 == 0:
        raise LookupError("TensorFlow's window has a radius: its size is odd")
    try:
        tf.config.threading.set_intra_op_parallelism_threads(torch.get_num_threads())
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError as error:
        raise LookupError("TensorFlow keeps the number of threads that the process began with") from error
    x, grad = (tf.constant(t[name].permute(0, 2, 3, 1).numpy()) for name in ("input", "grad"))
    constants = {"bias": case.k, "alpha": case.alpha / case.size, "beta": case.beta}

    def normalized() -> Any:
        return tf.nn.local_response_normalization(x, case.size // 2, **constants)

    def nchw(found: Any) -> Tensor:
        return torch.from_dlpack(tf.experimental.dlpack.to_dlpack(found)).permute(0, 3, 1, 2)

    def both() -> tuple[Tensor, ...]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = normalized()
        return nchw(y), nchw(tape.gradient(y, x, grad))

    return both if backward else lambda: (nchw(normalized()),)


def paddle_deform_conv2d(case: DeformConvCase, t: dict[str, Tensor], grad: Tensor, backward: bool) -> Call:
    """Return Paddle's deform_conv2d; with `backward` it computes all five gradients and returns the first three."""
    import paddle

    paddle.base.core.set_num_threads(torch.get_num_threads())
    names = ("input", "offset", "mask", "weight", "bias")
    tensors = {name: paddle.to_tensor(t[name].numpy(), stop_gradient=not backward) for name in names}
    above = paddle.to_tensor(grad.numpy())
    input, offset, mask, weight, bias = tensors.values()
    geometry = (list(case.stride), list(case.padding), list(case.dilation), case.offset_groups, case.groups)

    def forward() -> tuple[Tensor, ...]:
        with paddle.no_grad():
            y = paddle.vision.ops.deform_conv2d(input, offset, weight, bias, *geometry, mask)
        return (torch.from_dlpack(y),)

    def both() -> tuple[Tensor, ...]:
        y = paddle.vision.ops.deform_conv2d(input, offset, weight, bias, *geometry, mask)
        found = paddle.grad([y], [*tensors.values()], [above])
        return tuple(torch.from_dlpack(x.detach()) for x in (y, *found[:3]))

    return both if backward else forward


def torchvision_deform_conv2d(case: DeformConvCase) -> Callable[..., Tensor]:
    """Return torchvision's deform_conv2d, differentiable: a function of input, offset, mask, weight and bias."""
    from torchvision.ops import deform_conv2d

    def run(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        result: Tensor = deform_conv2d(input, offset, weight, bias, case.stride, case.padding, case.dilation, mask)
        return result

    return run


def mmcv_deform_conv2d(case: DeformConvCase) -> Callable[..., Tensor]:
    """Return mmcv's modulated_deform_conv2d, differentiable: a function of input, offset, mask, weight and bias."""
    from mmcv.ops import modulated_deform_conv2d

    def run(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        geometry = (case.stride, case.padding, case.dilation, case.groups, case.offset_groups)
        result: Tensor = modulated_deform_conv2d(input, offset, mask, weight, bias, *geometry)
        return result

    return run


def deformops_deform_conv2d(case: DeformConvCase) -> Callable[..., Tensor]:
    """Return deformops' deform_conv2d, on the CPU its eager one: a function of input, offset, mask, weight and bias."""
    from deformops.integrations.torchvision import deform_conv2d

    def run(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        result: Tensor = deform_conv2d(input, offset, weight, bias, case.stride, case.padding, case.dilation, mask)
        return result

    return run


def tvdcn_deform_conv2d(case: DeformConvCase) -> Callable[..., Tensor]:
    """Return tvdcn's deform_conv2d, differentiable: a function of input, offset, mask, weight and bias."""
    from tvdcn import deform_conv2d

    if not hasattr(torch.ops.tvdcn, "deform_conv2d"):
        raise LookupError("tvdcn was compiled for another torch: its operators are not loaded")
    if os.environ.get("OMP_THREAD_LIMIT") != str(torch.get_num_threads()):
        raise LookupError("tvdcn starts 32 threads whatever torch is told; OMP_THREAD_LIMIT alone holds it")

    def run(input: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        geometry = (case.stride, case.padding, case.dilation, case.groups)
        result: Tensor = deform_conv2d(input, weight, offset, mask, bias, *geometry)
        return result

    return run


def torchvision_roi(op: str, case: RoICase) -> Callable[..., Tensor]:
    """Return torchvision's roi_align or roi_pool, differentiable: a function of input and boxes."""
    from torchvision import ops

    def run(input: Tensor, boxes: Tensor) -> Tensor:
        result: Tensor = getattr(ops, op)(input, boxes.to(input.dtype), **case.arguments(op))
        return result

    return run


def torchvision_nms(t: dict[str, Tensor], threshold: float) -> Call:
    """Return torchvision's batched_nms."""
    from torchvision.ops import batched_nms

    return lambda: (batched_nms(t["boxes"], t["scores"], t["classes"], threshold)[None],)
