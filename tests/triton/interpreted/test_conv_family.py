"""The Triton kernels of deformable convolution over one and three axes, and of its adjoint, by the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pliant.ops.conv import triton
from pliant.ops.table import OPERATORS, Operator
from pliant.testing import TOLERANCE, DeformConvCase, error

# NumPy's word for what a GPU does without a word.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

NAMES = ("input", "offset", "weight", "mask")
FAMILY = [op for op in OPERATORS if op.family == "conv" and op.name != "deform_conv2d"]
# The interpreter takes a while for every program: of each operator a few cases run here, the others in the workflows.
QUICK = ("crooked", "depthwise", "pointwise")
CASES = [
    pytest.param(op, case, id=f"{op.name}-{case.name}", marks=() if case.name in QUICK else pytest.mark.slow)
    for op in FAMILY
    for case in op.cases
]


@pytest.mark.usefixtures("atomic")
@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize(("op", "case"), CASES)
def test_matches_the_reference(op: Operator, case: DeformConvCase, clamp: bool) -> None:
    t = case.tensors()
    exact = {name: x.double().requires_grad_() for name, x in t.items()}
    boundary = "clamp" if clamp else "zeros"
    y = op.function(**exact, **case.geometry, boundary=boundary, implementation="reference")
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
    expected = torch.autograd.grad(y, [exact[name] for name in NAMES], grad.double())

    own = case.geometry
    padding = [own["padding"]] if case.output_padding is None else [own["padding"], own["output_padding"]]
    groups = [] if case.output_padding is None else [own["groups"]]
    rest: list[Any] = [own["stride"], *padding, own["dilation"], t["mask"], *groups, clamp]
    found = getattr(triton, op.name)(t["input"], t["offset"], t["weight"], t["bias"], *rest)
    assert error(found, y) < TOLERANCE[torch.float32]
    assert found.is_contiguous()
    gradients = getattr(triton, f"{op.name}_backward")(grad, *(t[n] for n in NAMES[:3]), *rest, 0b1111)
    for name, value, right in zip(NAMES, gradients, expected, strict=True):
        assert error(value, right) < TOLERANCE[torch.float32], name
        assert value.is_contiguous(), name


def test_channels_last_3d() -> None:
    (op,) = (op for op in FAMILY if op.name == "deform_conv3d")
    case = op.cases[1]
    t = case.tensors(channels_last=True)
    geometry = (case.stride, case.padding, case.dilation)
    found = triton.deform_conv3d(t["input"], t["offset"], t["weight"], t["bias"], *geometry, t["mask"], False)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    assert error(found, op.function(**t, **case.geometry, implementation="reference")) < TOLERANCE[torch.float32]
