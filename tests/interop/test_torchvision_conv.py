"""Everything that torchvision documents about its deformable convolution is true of ours."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant import ops
from pliant.interop.torchvision import DeformConv2d, deform_conv2d
from pliant.testing import DEFORM_CONV_CASES, DeformConvCase, error

Shape = tuple[int, ...]


@pytest.mark.parametrize("case", DEFORM_CONV_CASES, ids=lambda case: case.name)
def test_is_our_operator(case: DeformConvCase) -> None:
    t = case.tensors(torch.float64)
    geometry = (case.stride, case.padding, case.dilation)
    actual = deform_conv2d(t["input"], t["offset"], t["weight"], t["bias"], *geometry, t["mask"])
    assert torch.equal(actual, ops.deform_conv2d(t["input"], t["offset"], t["weight"], t["bias"], *geometry, t["mask"]))
    layer = DeformConv2d(t["input"].shape[1], len(t["bias"]), case.kernel, *geometry, case.groups).double()
    layer.load_state_dict({"weight": t["weight"], "bias": t["bias"]})
    assert torch.equal(layer(t["input"], t["offset"], t["mask"]), actual)


def test_a_known_value() -> None:
    # detectron2's test, which torchvision's operator passes too.
    x = torch.arange(25.0).view(1, 1, 5, 5)
    layer = DeformConv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    y = layer(x, torch.full((1, 18, 5, 5), 0.5))
    expected = [[30, 41.25, 48.75, 45, 28.75], [62.25, 81, 90, 80.25, 50.25]]
    assert y[0, 0, :2].tolist() == expected
    assert torch.equal(layer(x, torch.full((1, 18, 5, 5), 0.5), torch.full((1, 9, 5, 5), 0.5)), y / 2)


def test_groups_are_read_from_the_shapes() -> None:
    torch.manual_seed(0)
    x, offset = torch.randn(2, 12, 7, 6), torch.randn(2, 3 * 18, 7, 6)
    weight = torch.randn(8, 3, 3, 3)  # 4 groups of 3 channels; 3 offset groups of 4
    y = deform_conv2d(x, offset, weight, padding=1)
    apart = []
    for c in range(12):
        moved, taps = offset[:, 18 * (c // 4) :][:, :18], weight[2 * (c // 3) :][:2, [c % 3]]
        apart.append(deform_conv2d(x[:, [c]], moved, taps, padding=1))
    expected = torch.cat([sum(apart[3 * g : 3 * g + 3], torch.zeros(())) for g in range(4)], 1)
    assert error(y, expected) < 1e-5
    assert DeformConv2d(12, 8, 3, groups=4).weight.shape == (8, 3, 3, 3)


def _tensors(**shapes: Shape) -> dict[str, Any]:
    usual: dict[str, Shape] = {"input": (2, 6, 5, 5), "offset": (2, 18, 5, 5), "weight": (4, 6, 3, 3)}
    return {name: torch.zeros(shape) for name, shape in {**usual, **shapes}.items()}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "too few offsets": (
        _tensors(offset=(2, 9, 5, 5)),
        "the shape of the offset tensor at dimension 1 is not valid. It should be a multiple of 2 * weight.size[2] * "
        "weight.size[3].\nGot offset.shape[1]=9, while 2 * weight.size[2] * weight.size[3]=18",
    ),
    "offsets in between": (_tensors(offset=(2, 20, 5, 5)), "offset.shape[1] is not valid: got: 20 expected: 18"),
    "mask": (_tensors(mask=(2, 8, 5, 5)), "mask.shape[1] is not valid: got: 8 expected: 9"),
    "batch of offsets": (_tensors(offset=(3, 18, 5, 5)), "invalid batch size of offset"),
    "batch of masks": (_tensors(mask=(1, 9, 5, 5)), "invalid batch size of mask"),
    "size of offsets": (
        _tensors(offset=(2, 18, 4, 5)),
        "offset output dims: (4, 5) - computed output dims: (5, 5)",
    ),
    "size of masks": (_tensors(mask=(2, 9, 5, 3)), "mask output dims: (5, 3) - computed output dims: (5, 5)"),
    "small": (
        # torchvision asks the offsets first.
        {**_tensors(input=(2, 6, 1, 5), offset=(2, 18, 0, 3)), "padding": 0},
        "offset output dims: (0, 3) - computed output dims: (-1, 3)",
    ),
    "stride": ({**_tensors(), "stride": (0, 1)}, "stride_h: 0 stride_w: 1"),
    "padding": ({**_tensors(), "padding": -1}, "pad_h: -1 pad_w: -1"),
    "dilation": ({**_tensors(), "dilation": (1, 0)}, "dilation_h: 1 dilation_w: 0"),
    "kernel": (_tensors(weight=(4, 6, 0, 3)), "weight_h: 0 weight_w: 3"),
    "no batch": (
        _tensors(input=(6, 5, 5)),
        "deform_conv2d: every tensor must have 4 dimensions, got input 3, offset 4",
    ),
    "groups": (
        _tensors(weight=(4, 4, 3, 3)),
        "torchvision.ops.deform_conv2d: the 6 channels of input must be divisible",
    ),
    "offset groups": (_tensors(offset=(2, 72, 5, 5)), "torchvision.ops.deform_conv2d: offset must have shape"),
    "bias": ({**_tensors(), "bias": torch.zeros(3)}, "torchvision.ops.deform_conv2d: bias must have shape (O,) = (4,)"),
    "dtype": ({**_tensors(), "bias": torch.zeros(4).double()}, "torchvision.ops.deform_conv2d: bias must be float32"),
    "device": (
        {**_tensors(), "bias": torch.zeros(4, device="meta")},
        "torchvision.ops.deform_conv2d: bias is on meta, input on cpu; move one of them",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_are_runtime_errors_with_torchvisions_words(wrong: str) -> None:
    arguments, sentence = WRONG[wrong]
    with pytest.raises(RuntimeError, match=f"^{re.escape(sentence)}"):
        deform_conv2d(**{"padding": 1, **arguments})


def test_pairs_that_are_none() -> None:
    for function, arguments in ((deform_conv2d, _tensors()), (DeformConv2d, {"in_channels": 6, "out_channels": 4})):
        settings = {"kernel_size": 3} if function is DeformConv2d else {}
        for wrong in ("same", "12", (1, 2, 3), (1,)):
            with pytest.raises(
                ValueError, match=rf"^kernel_size, stride.* a pair of ints, got {re.escape(repr(wrong))}$"
            ):
                function(**arguments, **settings, padding=wrong)


def test_an_empty_output() -> None:
    with pytest.raises(RuntimeError, match=r"^Calculated output size too small - out_h: 0 out_w: 3$"):
        deform_conv2d(**_tensors(input=(2, 6, 2, 5), offset=(2, 18, 0, 3)))


def test_constructor() -> None:
    for arguments, sentence in (((6, 4, 3, 1, 0, 1, 4), "in_channels"), ((6, 4, 3, 1, 0, 1, 3), "out_channels")):
        with pytest.raises(ValueError, match=f"^{sentence} must be divisible by groups$"):
            DeformConv2d(*arguments)
    assert repr(DeformConv2d(6, 4, 3)) == "DeformConv2d(6, 4, kernel_size=(3, 3), stride=(1, 1))"
    layer = DeformConv2d(6, 4, (3, 2), (2, 1), (1, 0), 2, 2, bias=False)
    text = "kernel_size=(3, 2), stride=(2, 1), padding=(1, 0), dilation=(2, 2), groups=2, bias=False"
    assert repr(layer) == f"DeformConv2d(6, 4, {text})"
    assert list(layer.state_dict()) == ["weight"]
    plain, layer = nn.Conv2d(6, 4, 3), DeformConv2d(6, 4, 3)
    for module in (plain, layer):
        torch.manual_seed(0)
        module.reset_parameters()
    assert torch.equal(plain.weight, layer.weight)
    assert torch.equal(plain.bias, layer.bias)


def test_empty_batch_and_gradients() -> None:
    layer = DeformConv2d(6, 4, 3, padding=1)
    empty = layer(torch.zeros(0, 6, 5, 5), torch.zeros(0, 18, 5, 5))
    assert empty.shape == (0, 4, 5, 5)
    x = torch.randn(2, 6, 5, 5, requires_grad=True)
    offset = (torch.rand(2, 18, 5, 5) + 0.1).requires_grad_()
    layer(x, offset).square().sum().backward()
    assert all(t.grad.abs().sum() > 0 for t in (x, offset, layer.weight, layer.bias))


def _scripted(function: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")  # which is deprecated
        return torch.jit.script(function)


def test_scripts_compiles_and_exports() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer = DeformConv2d(6, 4, 3, padding=1)
    x, offset, mask = torch.randn(2, 6, 8, 7), torch.randn(2, 18, 8, 7), torch.rand(2, 9, 8, 7)
    expected = layer(x, offset, mask)
    assert torch.equal(_scripted(layer)(x, offset, mask), expected)
    assert torch.equal(
        _scripted(deform_conv2d)(x, offset, layer.weight, layer.bias, (1, 1), (1, 1), (1, 1), mask), expected
    )
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(x, offset, mask), expected)
    assert torch.equal(torch.export.export(layer, (x, offset, mask)).module()(x, offset, mask), expected)


def test_low_precision() -> None:
    # torchvision has no kernel for bfloat16.
    torch.manual_seed(0)
    x: list[Tensor] = [torch.randn(2, 6, 8, 7), torch.randn(2, 18, 6, 5), torch.randn(4, 6, 3, 3)]
    y = deform_conv2d(*[t.bfloat16() for t in x])
    assert y.dtype == torch.bfloat16
    assert error(y, deform_conv2d(*[t.bfloat16().double() for t in x])) < 1.6e-2
