"""Multi-scale deformable attention, DCNv3, DCNv4: values computed elsewhere, other formulas, and what is only theirs.

vectors.json was computed in float64 by a program that shares no code with pliant, and compared with the operators of
Deformable DETR, transformers, InternImage and deformops where they agree.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pliant.ops import dcnv3, dcnv4, deform_conv2d, ms_deform_attn
from pliant.testing import DCN_CASES, MS_DEFORM_ATTN_CASES, DCNCase, MSDeformAttnCase, error

VECTORS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "vectors.json").read_text())
on_each_implementation = pytest.mark.parametrize("implementation", ["native", "reference"])


def _of(case: dict[str, Any], *names: str) -> list[Tensor]:
    return [torch.tensor(case[name], dtype=torch.float64).requires_grad_() for name in names]


def _check_gradients(case: dict[str, Any], output: Tensor, tensors: list[Tensor], *names: str) -> None:
    if "grad" in case:
        found = torch.autograd.grad(output, tensors, torch.tensor(case["grad"], dtype=torch.float64))
        for name, g in zip(names, found, strict=True):
            assert error(g, torch.tensor(case[f"grad_{name}"], dtype=torch.float64)) < 1e-13, name


@on_each_implementation
@pytest.mark.parametrize("name", ["msda_a", "msda_b", "msda_grad"])
def test_attention_known_values(name: str, implementation: str) -> None:
    case = VECTORS[name]
    names = ("value", "sampling_locations", "attention_weights")
    value, locations, weights = tensors = _of(case, *names)
    for shapes, starts in (
        (case["spatial_shapes"], case["level_start_index"]),
        (torch.tensor(case["spatial_shapes"]), torch.tensor(case["level_start_index"])),
    ):
        output = ms_deform_attn(value, shapes, starts, locations, weights, implementation=implementation)
        assert error(output, torch.tensor(case["out"], dtype=torch.float64)) < 1e-14
        _check_gradients(case, output, tensors, *names)


@on_each_implementation
@pytest.mark.parametrize(("method", "expected"), [("bilinear", "out_default"), ("discrete", "out_discrete")])
def test_ragged_known_values(method: str, expected: str, implementation: str) -> None:
    case = VECTORS["msda_ragged"]
    value, locations, weights = _of(case, "value", "sampling_locations", "attention_weights")
    output = ms_deform_attn(
        value, case["spatial_shapes"], None, locations, weights, points=case["points"], method=method,
        implementation=implementation,
    )  # fmt: skip
    assert error(output, torch.tensor(case[expected], dtype=torch.float64)) < 1e-14


def _geometry(case: dict[str, Any]) -> dict[str, Any]:
    names = ("stride", "padding", "dilation", "groups", "offset_scale", "remove_center")
    return {"kernel_size": case["kernel"], **{name: case[name] for name in names if name in case}}


@on_each_implementation
@pytest.mark.parametrize("name", ["dcnv3_a", "dcnv3_b", "dcnv3_c", "dcnv3_grad"])
def test_dcnv3_known_values(name: str, implementation: str) -> None:
    case = VECTORS[name]
    names = ("input", "offset", "mask")
    tensors = _of(case, *names)
    output = dcnv3(*tensors, **_geometry(case), implementation=implementation)
    assert error(output, torch.tensor(case["out"], dtype=torch.float64)) < 1e-14
    _check_gradients(case, output, tensors, *names)


@on_each_implementation
@pytest.mark.parametrize("name", ["dcnv4_a", "dcnv4_b", "dcnv4_c"])
def test_dcnv4_known_values(name: str, implementation: str) -> None:
    case = VECTORS[name]
    input, packed = _of(case, "input", "offset_mask")
    output = dcnv4(input, packed, **_geometry(case), implementation=implementation)
    assert error(output, torch.tensor(case["out"], dtype=torch.float64)) < 1e-14
    # What pads the channels has no gradient.
    used = case["groups"] * 3 * (case["kernel"][0] * case["kernel"][1] - case.get("remove_center", False))
    (found,) = torch.autograd.grad(output.sum(), packed)
    assert found[..., :used].any()
    assert not found[..., used:].any()


# Other formulas.


def _by_grid_sample(case: MSDeformAttnCase, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Return multi-scale deformable attention by PyTorch's grid_sample, level by level."""
    N, _, M, D = value.shape
    Q, L = locations.shape[1], len(case.shapes)
    points = [case.points] * L if isinstance(case.points, int) else list(case.points)
    locations, weights = locations.reshape(N, Q, M, -1, 2), weights.reshape(N, Q, M, -1)
    starts = case.starts or [sum(H * W for H, W in case.shapes[:level]) for level in range(L)]
    output = value.new_zeros(N, M, D, Q)
    first = 0
    for (H, W), start, P in zip(case.shapes, starts, points, strict=True):
        maps = value[:, start : start + H * W].permute(0, 2, 3, 1).reshape(N * M, D, H, W)
        grid = 2 * locations[..., first : first + P, :].transpose(1, 2).reshape(N * M, Q, P, 2) - 1
        sampled = F.grid_sample(maps, grid, padding_mode="zeros", align_corners=False).view(N, M, D, Q, P)
        output = output + (sampled * weights[..., first : first + P].transpose(1, 2).unsqueeze(2)).sum(-1)
        first += P
    return output.permute(0, 3, 1, 2).reshape(N, Q, M * D)


@on_each_implementation
@pytest.mark.parametrize("case", [c for c in MS_DEFORM_ATTN_CASES if c.queries], ids=lambda case: case.name)
def test_attention_is_grid_sample_per_level(case: MSDeformAttnCase, implementation: str) -> None:
    tensors = [t.requires_grad_() for t in case.tensors(torch.float64).values()]
    value, locations, weights = tensors
    output = ms_deform_attn(
        value, case.arguments["spatial_shapes"], case.starts, locations, weights, points=case.arguments["points"],
        implementation=implementation,
    )  # fmt: skip
    expected = _by_grid_sample(case, *tensors)
    assert error(output, expected) < 1e-12
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for found, right in zip(
        torch.autograd.grad(output, tensors, grad), torch.autograd.grad(expected, tensors, grad), strict=True
    ):
        assert error(found, right) < 1e-12


@on_each_implementation
@pytest.mark.parametrize("case", [c for c in DCN_CASES if not c.remove_center], ids=lambda case: case.name)
def test_dcnv3_is_a_depthwise_convolution_of_ones(case: DCNCase, implementation: str) -> None:
    # Offsets in the order of rows, moved by what offset_scale does to the grid.
    input, offset, mask = (t.requires_grad_() for t in case.tensors("dcnv3", torch.float64).values())
    N, _, _, C = input.shape
    _, Ho, Wo, _ = offset.shape
    (Kh, Kw), (dh, dw), G, s = case.kernel, case.dilation, case.groups, case.offset_scale
    moved = offset.view(N, Ho, Wo, G, Kw, Kh, 2).permute(0, 3, 5, 4, 6, 1, 2)
    rows, columns = torch.arange(Kh) * dh - dh * (Kh - 1) // 2, torch.arange(Kw) * dw - dw * (Kw - 1) // 2
    y = s * moved[:, :, :, :, 1] + (s - 1) * rows.view(Kh, 1, 1, 1)
    x = s * moved[:, :, :, :, 0] + (s - 1) * columns.view(1, Kw, 1, 1)
    masks = mask.view(N, Ho, Wo, G, Kw, Kh).permute(0, 3, 5, 4, 1, 2).reshape(N, -1, Ho, Wo)
    expected = deform_conv2d(
        input.permute(0, 3, 1, 2), torch.stack([y, x], 4).reshape(N, -1, Ho, Wo), input.new_ones(C, 1, Kh, Kw), None,
        case.stride, case.padding, case.dilation, masks, implementation="reference",
    )  # fmt: skip
    output = dcnv3(input, offset, mask, **case.arguments, implementation=implementation)
    assert error(output, expected.permute(0, 2, 3, 1)) < 1e-12
    tensors = (input, offset, mask)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for found, right in zip(
        torch.autograd.grad(output, tensors, grad),
        torch.autograd.grad(expected, tensors, grad.permute(0, 3, 1, 2)),
        strict=True,
    ):
        assert error(found, right) < 1e-12


@pytest.mark.parametrize("case", DCN_CASES, ids=lambda case: case.name)
def test_dcnv4_is_dcnv3_on_other_memory(case: DCNCase) -> None:
    expected = dcnv3(**case.tensors("dcnv3"), **case.arguments)
    assert torch.equal(dcnv4(**case.tensors("dcnv4"), **case.arguments), expected)


# What is only theirs.


@on_each_implementation
def test_offset_gradient_at_minus_one_is_right_sided(implementation: str) -> None:
    # With padding 1 and zero offsets the first tap of the first output lies at exactly −1.
    input = torch.arange(1.0, 10.0, dtype=torch.float64).view(1, 3, 3, 1)
    offset = torch.zeros(1, 3, 3, 18, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 3, 3, 9, dtype=torch.float64)
    dcnv3(input, offset, mask, 3, padding=1, implementation=implementation).sum().backward()
    # Tap 1 is in column 0, row 1: it lies at x = −1, y = 0, left of the pixel 1.
    assert offset.grad is not None
    assert offset.grad[0, 0, 0, 2] == 1
    assert offset.grad[0, 0, 0, 3] == 0


@on_each_implementation
def test_discrete_samples_clamp_into_the_level(implementation: str) -> None:
    value = torch.arange(6.0).view(1, 6, 1, 1)
    places = [(-9.0, 0.2), (0.5, 0.75), (9.0, 9.0), (math.nan, 0.5), (0.5, math.inf)]
    locations = torch.tensor(places).view(1, 5, 1, 1, 1, 2).requires_grad_()
    weights = torch.full((1, 5, 1, 1, 1), 2.0)
    output = ms_deform_attn(value, [(2, 3)], None, locations, weights, method="discrete", implementation=implementation)
    # trunc(0.2·2 + ½) = 0 of column 0; trunc(0.75·2 + ½) = 2, clamped to row 1, of column trunc(0.5·3 + ½) = 2.
    assert output.flatten().tolist() == [0.0, 10.0, 10.0, 0.0, 0.0]
    output.sum().backward()
    assert locations.grad is not None
    assert not locations.grad.any()


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        ({"spatial_shapes": torch.zeros(2, 2)}, TypeError, "spatial_shapes must be int64 or int32, got float32"),
        (
            {"spatial_shapes": torch.zeros(2, 3, dtype=torch.int64)},
            ValueError,
            "spatial_shapes must have shape (L, 2), got (2, 3)",
        ),
        ({"level_start_index": torch.zeros(2)}, TypeError, "level_start_index must be int64 or int32, got float32"),
        (
            {"level_start_index": torch.zeros(2, 1, dtype=torch.int64)},
            ValueError,
            "level_start_index must have shape (L,) = (2,), got (2, 1)",
        ),
    ],
)
def test_levels_given_as_wrong_tensors(change: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    right = {"spatial_shapes": [(3, 4), (2, 2)], "level_start_index": [0, 12], **change}
    with pytest.raises(kind) as raised:
        ms_deform_attn(
            torch.zeros(2, 16, 3, 4),
            sampling_locations=torch.zeros(2, 5, 3, 2, 1, 2),
            attention_weights=torch.zeros(2, 5, 3, 2, 1),
            **right,
        )
    assert str(raised.value) == f"ms_deform_attn: {sentence}"


def test_one_image_is_split_among_threads_in_bands() -> None:
    # One head, so that backward has nothing else to split: the sums are those of one thread, bit for bit.
    case = MSDeformAttnCase("", (1, 130, 1, 8), 200, ((9, 10), (5, 6), (2, 5)), 4)
    given = [t.requires_grad_() for t in case.tensors().values()]
    found = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        value, locations, weights = given
        output = ms_deform_attn(value, case.shapes, None, locations, weights)
        found.append(torch.autograd.grad(output.square().sum(), given))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


@pytest.mark.parametrize("channels", [8, 16, 20, 32, 37])
def test_copied_heads_give_the_same_bits(channels: int) -> None:
    # Up to four threads copy the two heads, because their pixels are read many times; nine threads read them in place.
    case = MSDeformAttnCase("", (1, 130, 2, channels), 200, ((9, 10), (5, 6), (2, 5)), 4)
    given = [t.requires_grad_() for t in case.tensors().values()]
    found = []
    for threads in (1, 3, 9):
        torch.set_num_threads(threads)
        value, locations, weights = given
        output = ms_deform_attn(value, case.shapes, None, locations, weights)
        found.append((output, *torch.autograd.grad(output.square().sum(), given)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))
    exact = [t.detach().double().requires_grad_() for t in given]
    output = ms_deform_attn(exact[0], case.shapes, None, *exact[1:], implementation="reference")
    expected = (output, *torch.autograd.grad(output.square().sum(), exact))
    assert all(error(a, b) < 1e-5 for a, b in zip(found[0], expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_random_shapes(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=random))

    shapes = tuple((draw(1, 9), draw(1, 9)) for _ in range(draw(1, 4)))
    pixels = sum(H * W for H, W in shapes)
    points = draw(1, 5) if draw(0, 1) else tuple(draw(1, 5) for _ in shapes)
    size = (draw(1, 3), pixels, draw(1, 5), draw(1, 70))
    case = MSDeformAttnCase("", size, draw(1, 40), shapes, points)
    tensors = [t.requires_grad_() for t in case.tensors(torch.float64, seed=seed).values()]
    value, locations, weights = tensors
    output = ms_deform_attn(value, shapes, None, locations, weights, points=case.arguments["points"])
    expected = _by_grid_sample(case, *tensors)
    assert error(output, expected) < 1e-12
    grad = torch.randn(output.shape, generator=random, dtype=torch.float64)
    for found, right in zip(
        torch.autograd.grad(output, tensors, grad), torch.autograd.grad(expected, tensors, grad), strict=True
    ):
        assert error(found, right) < 1e-12
