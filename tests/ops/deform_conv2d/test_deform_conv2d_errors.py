"""Every error sentence of deformable convolution, the same in eager, for fake tensors and under torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pliant import _native
from pliant.ops import deform_conv2d

Operator = Callable[..., Tensor]

# Right, until one argument is replaced.
RIGHT: dict[str, Any] = {
    "input": torch.zeros(2, 4, 8, 8),
    "offset": torch.zeros(2, 36, 8, 8),
    "weight": torch.zeros(6, 2, 3, 3),
    "bias": torch.zeros(6),
    "mask": torch.zeros(2, 18, 8, 8),
    "padding": 1,
}
Z = torch.zeros

WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "input is no tensor": ({"input": 3}, TypeError, "deform_conv2d: input must be a tensor, got int"),
    "offset is no tensor": ({"offset": None}, TypeError, "deform_conv2d: offset must be a tensor, got NoneType"),
    "weight is no tensor": ({"weight": [1.0]}, TypeError, "deform_conv2d: weight must be a tensor, got list"),
    "bias is no tensor": ({"bias": True}, TypeError, "deform_conv2d: bias must be a tensor, got bool"),
    "mask is no tensor": ({"mask": "zeros"}, TypeError, "deform_conv2d: mask must be a tensor, got str"),
    "stride 0": ({"stride": 0}, ValueError, "deform_conv2d: stride must be at least 1, got 0"),
    "padding -1": ({"padding": (1, -1)}, ValueError, "deform_conv2d: padding must be at least 0, got (1, -1)"),
    "dilation 0": ({"dilation": (0, 1)}, ValueError, "deform_conv2d: dilation must be at least 1, got (0, 1)"),
    "stride 1.5": ({"stride": 1.5}, TypeError, "deform_conv2d: stride must be an int or a pair of ints, got 1.5"),
    "padding same": (
        {"padding": "same"},
        TypeError,
        "deform_conv2d: padding must be an int or a pair of ints, got 'same'",
    ),
    "three strides": (
        {"stride": (1, 1, 1)},
        TypeError,
        "deform_conv2d: stride must be an int or a pair of ints, got (1, 1, 1)",
    ),
    "boundary": (
        {"boundary": "reflect"},
        ValueError,
        "deform_conv2d: boundary must be one of ('zeros', 'clamp'), got 'reflect'",
    ),
    "input without batch": (
        {"input": Z(4, 8, 8)},
        ValueError,
        "deform_conv2d: input must have shape (N, C, H, W), got (4, 8, 8)",
    ),
    "weight of a 1-d convolution": (
        {"weight": Z(6, 2, 3)},
        ValueError,
        "deform_conv2d: weight must have shape (O, C/groups, Kh, Kw), got (6, 2, 3)",
    ),
    "offset without batch": (
        {"offset": Z(36, 8, 8)},
        ValueError,
        "deform_conv2d: offset must have shape (N, 2·G·Kh·Kw, Ho, Wo), got (36, 8, 8)",
    ),
    "integer input": (
        {"input": Z(2, 4, 8, 8, dtype=torch.int32)},
        TypeError,
        "deform_conv2d: input must be float32 or float64 or bfloat16 or float16, got int32",
    ),
    "complex input": (
        {"input": Z(2, 4, 8, 8, dtype=torch.complex64)},
        TypeError,
        "deform_conv2d: input must be float32 or float64 or bfloat16 or float16, got complex64",
    ),
    "float64 offset": (
        {"offset": Z(2, 36, 8, 8, dtype=torch.float64)},
        TypeError,
        "deform_conv2d: offset must be float32, got float64",
    ),
    "half mask beside float": (
        {"mask": Z(2, 18, 8, 8, dtype=torch.float16)},
        TypeError,
        "deform_conv2d: mask must be float32, got float16",
    ),
    "float weight beside bfloat16": (
        {"input": Z(2, 4, 8, 8, dtype=torch.bfloat16)},
        TypeError,
        "deform_conv2d: weight must be bfloat16, got float32",
    ),
    "float bias beside float16": (
        {"input": Z(2, 4, 8, 8).half(), "weight": Z(6, 2, 3, 3).half()},
        TypeError,
        "deform_conv2d: bias must be float16, got float32",
    ),
    "bfloat16 offset beside float16": (
        {"input": Z(2, 4, 8, 8).half(), "weight": Z(6, 2, 3, 3).half(), "offset": Z(2, 36, 8, 8).bfloat16()},
        TypeError,
        "deform_conv2d: offset must be float16 or float32, got bfloat16",
    ),
    "empty weight": (
        {"weight": Z(0, 2, 3, 3)},
        ValueError,
        "deform_conv2d: weight must not be empty, got (0, 2, 3, 3)",
    ),
    "kernel of size 0": (
        {"weight": Z(6, 2, 0, 3)},
        ValueError,
        "deform_conv2d: weight must not be empty, got (6, 2, 0, 3)",
    ),
    "channels do not divide": (
        {"weight": Z(6, 3, 3, 3)},
        ValueError,
        "deform_conv2d: the 3 channels per group of weight must divide the 4 channels of input",
    ),
    "outputs do not divide": (
        {"weight": Z(5, 2, 3, 3)},
        ValueError,
        "deform_conv2d: the 2 groups of 2 input channels must divide the 5 outputs of weight",
    ),
    "kernel larger than the map": (
        {"weight": Z(6, 2, 9, 9), "padding": 0},
        ValueError,
        "deform_conv2d: the output would be 0×0, the 9×9 kernel with dilation (1, 1) and padding (0, 0) does not fit "
        "into the 8×8 input",
    ),
    "dilation larger than the map": (
        {"dilation": (1, 20)},
        ValueError,
        "deform_conv2d: the output would be 8×-30, the 3×3 kernel with dilation (1, 20) and padding (1, 1) does not "
        "fit into the 8×8 input",
    ),
    "map of height 0": (
        {"input": Z(2, 4, 0, 8), "padding": 4},
        ValueError,
        "deform_conv2d: the output would be 6×14, the 3×3 kernel with dilation (1, 1) and padding (4, 4) does not fit "
        "into the 0×8 input",
    ),
    "one coordinate per tap": (
        {"offset": Z(2, 9, 8, 8)},
        ValueError,
        "deform_conv2d: offset must have shape (N, 2·G·Kh·Kw, Ho, Wo) = (2, 18, 8, 8), got (2, 9, 8, 8). Did you pass "
        "only one coordinate per tap?",
    ),
    "half an offset group": (
        {"offset": Z(2, 27, 8, 8)},
        ValueError,
        "deform_conv2d: offset must have shape (N, 2·G·Kh·Kw, Ho, Wo) = (2, 18, 8, 8), got (2, 27, 8, 8)",
    ),
    "three offset groups of four channels": (
        {"offset": Z(2, 54, 8, 8)},
        ValueError,
        "deform_conv2d: offset must have shape (N, 2·G·Kh·Kw, Ho, Wo), where G divides the 4 channels of input, got "
        "(2, 54, 8, 8), which is G = 3",
    ),
    "offset of another batch": (
        {"offset": Z(1, 36, 8, 8)},
        ValueError,
        "deform_conv2d: offset must have shape (N, 2·G·Kh·Kw, Ho, Wo) = (2, 36, 8, 8), got (1, 36, 8, 8)",
    ),
    "offset of another size": (
        {"stride": 2},
        ValueError,
        "deform_conv2d: offset must have shape (N, 2·G·Kh·Kw, Ho, Wo) = (2, 36, 4, 4), got (2, 36, 8, 8)",
    ),
    "mask of one offset group": (
        {"mask": Z(2, 9, 8, 8)},
        ValueError,
        "deform_conv2d: mask must have shape (N, G·Kh·Kw, Ho, Wo) = (2, 18, 8, 8), got (2, 9, 8, 8)",
    ),
    "bias of another length": (
        {"bias": Z(4)},
        ValueError,
        "deform_conv2d: bias must have shape (O,) = (6,), got (4,)",
    ),
    "bias as a row": (
        {"bias": Z(1, 6)},
        ValueError,
        "deform_conv2d: bias must have shape (O,) = (6,), got (1, 6)",
    ),
    "implementation": (
        {"implementation": "fast"},
        ValueError,
        "deform_conv2d: implementation must be one of ('auto', 'native', 'reference'), got 'fast'",
    ),
}
EVERY = pytest.mark.parametrize("wrong", WRONG)


def test_the_right_arguments_are_right(deform: Operator) -> None:
    assert deform(**RIGHT).shape == (2, 6, 8, 8)


@EVERY
def test_eager(wrong: str) -> None:
    change, kind, sentence = WRONG[wrong]
    with pytest.raises(kind) as raised:
        deform_conv2d(**{**RIGHT, **change})
    assert str(raised.value).startswith(sentence)


@EVERY
def test_fake_tensors(wrong: str) -> None:
    change, kind, sentence = WRONG[wrong]
    with FakeTensorMode() as mode:
        fake = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in {**RIGHT, **change}.items()}
        with pytest.raises(kind) as raised:
            deform_conv2d(**fake)
    assert str(raised.value).startswith(sentence)


@EVERY
def test_compiled_raises_what_eager_raises(wrong: str) -> None:
    change, kind, sentence = WRONG[wrong]
    torch._dynamo.reset()
    compiled = torch.compile(lambda values: deform_conv2d(**values) + 1, backend="aot_eager")
    with pytest.raises(kind) as raised:
        compiled({**RIGHT, **change})
    assert str(raised.value).startswith(sentence)


@EVERY
def test_compiled_whole_names_the_sentence(wrong: str) -> None:
    # With fullgraph=True torch wraps whatever is raised while tracing; the sentence stands in the message.
    change, _, sentence = WRONG[wrong]
    torch._dynamo.reset()
    compiled = torch.compile(lambda values: deform_conv2d(**values) + 1, backend="aot_eager", fullgraph=True)
    with pytest.raises(RuntimeError) as raised:
        compiled({**RIGHT, **change})
    assert sentence in str(raised.value)


def test_compiled_with_free_sizes() -> None:
    change, kind, sentence = WRONG["offset of another size"]
    for fullgraph in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(
            lambda values: deform_conv2d(**values), backend="aot_eager", fullgraph=fullgraph, dynamic=True
        )
        with pytest.raises(RuntimeError if fullgraph else kind) as raised:
            compiled({**RIGHT, **change})
        # Where torch wraps the error while tracing, sizes are still letters.
        assert (sentence.partition(" = ")[0] if fullgraph else sentence) in str(raised.value)


@pytest.mark.parametrize("name", ["offset", "weight", "bias", "mask"])
def test_tensors_on_different_devices(name: str) -> None:
    values = {**RIGHT, name: RIGHT[name].to("meta")}
    with pytest.raises(ValueError, match=f"^deform_conv2d: {name} is on meta, input on cpu; move one of them$"):
        deform_conv2d(**values)


def test_the_operator_itself_checks_fake_tensors() -> None:
    # What an exported graph calls: the checks stand in the fake kernel too.
    t = RIGHT
    with FakeTensorMode() as mode:
        x, weight, offset = (mode.from_tensor(v) for v in (t["input"], t["weight"], Z(2, 9, 8, 8)))
        with pytest.raises(ValueError, match="Did you pass only one coordinate per tap"):
            torch.ops.pliant.deform_conv2d(x, offset, weight, None, (1, 1), (1, 1), (1, 1), None, False)


def test_native_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "path", None)
    monkeypatch.setattr(_native, "reason", "pliant/_C.so is not installed beside the Python files")
    with pytest.raises(RuntimeError) as raised:
        deform_conv2d(**RIGHT, implementation="native")
    assert str(raised.value) == (
        'deform_conv2d: implementation="native" is not possible here, pliant/_C.so is not installed beside the Python '
        "files"
    )


SLOW = "^deform_conv2d: runs on the slow reference, pliant/_C.so is not installed"


def test_auto_without_kernels_warns_once_and_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "path", None)
    monkeypatch.setattr(_native, "reason", "pliant/_C.so is not installed beside the Python files")
    monkeypatch.setattr(_native, "_warned", set())
    with pytest.warns(RuntimeWarning, match=SLOW):
        first = deform_conv2d(**RIGHT)
    assert torch.equal(first, deform_conv2d(**RIGHT))


def test_auto_without_kernels_compiles_whole_and_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "path", None)
    monkeypatch.setattr(_native, "reason", "pliant/_C.so is not installed beside the Python files")
    monkeypatch.setattr(_native, "_warned", set())
    torch._dynamo.reset()
    compiled = torch.compile(lambda values: deform_conv2d(**values), backend="aot_eager", fullgraph=True)
    with pytest.warns(RuntimeWarning, match=SLOW):
        first = compiled(RIGHT)
    assert torch.equal(first, deform_conv2d(**RIGHT, implementation="reference"))


@pytest.mark.parametrize("wrong", [case for case in WRONG if case not in ("boundary", "implementation")])
def test_the_kernel_refuses_what_the_checks_refuse(wrong: str) -> None:
    """Whoever calls the kernel itself gets an error too, never a read out of bounds."""
    if _native.path is None:
        pytest.skip("there is no kernel")
    named = RIGHT | WRONG[wrong][0]
    tensors = [named[name] for name in ("input", "offset", "weight", "bias")]
    geometry: list[Any] = []
    for name in ("stride", "padding", "dilation"):
        value = named.get(name, 1)
        geometry.append(value if isinstance(value, tuple) else (value, value))
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        torch.ops.pliant.deform_conv2d.default(*tensors, *geometry, named["mask"], False)


def test_the_backward_kernel_refuses_a_gradient_of_another_shape() -> None:
    if _native.path is None:
        pytest.skip("there is no kernel")
    tensors = [RIGHT[name] for name in ("input", "offset", "weight")]
    geometry = ((1, 1), (1, 1), (1, 1), RIGHT["mask"], False)
    for grad in (Z(2, 6, 8, 7), Z(2, 5, 8, 8), Z(6, 8, 8), Z(2, 6, 8, 8).double()):
        with pytest.raises(RuntimeError, match="do not fit each other"):
            torch.ops.pliant.deform_conv2d_backward.default(grad, *tensors, *geometry, 15)
