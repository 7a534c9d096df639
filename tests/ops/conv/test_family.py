"""Deformable convolution over one and three axes, and its adjoint: values from elsewhere, properties, layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant import ops
from pliant.nn import DeformConv1d, DeformConv3d, DeformConvTranspose2d, OffsetStatistics
from pliant.ops import deform_conv1d, deform_conv2d, deform_conv3d, deform_conv_transpose2d
from pliant.testing import (
    DEFORM_CONV1D_CASES,
    DEFORM_CONV3D_CASES,
    DEFORM_CONV_TRANSPOSE2D_CASES,
    DeformConvCase,
    error,
)

# Tiny cases computed in NumPy, sample by sample from the formulas, in float64. That code has the layout of tvdcn, and
# agrees with grid_sample of volumes (1.8e-15) and with autograd through deform_conv2d for the transposed one (5e-16).
VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors.json").read_text())
TENSORS = ("input", "offset", "weight", "bias", "mask")
on_each = pytest.mark.parametrize("implementation", ["native", "reference"])
BOUNDARIES = ("zeros", "clamp")


@on_each
@pytest.mark.parametrize("name", VECTORS)
def test_known_values(name: str, implementation: str) -> None:
    given = dict(VECTORS[name])
    expected = torch.tensor(given.pop("out"), dtype=torch.float64)
    given |= {n: torch.tensor(given[n], dtype=torch.float64) for n in TENSORS if n in given}
    assert error(getattr(ops, name)(**given, implementation=implementation), expected) < 1e-12


@on_each
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("case", DEFORM_CONV1D_CASES, ids=lambda case: case.name)
def test_a_sequence_is_a_map_of_one_row(case: DeformConvCase, boundary: str, implementation: str) -> None:
    t = case.tensors(torch.float64)
    moves = torch.stack([torch.zeros_like(t["offset"]), t["offset"]], 2).flatten(1, 2)
    row = {"input": t["input"], "offset": moves, "weight": t["weight"], "mask": t["mask"]}
    geometry = {
        "stride": (1, *case.stride),
        "padding": (0, *case.padding),
        "dilation": (1, *case.dilation),
        "boundary": boundary,
    }
    expected = deform_conv2d(**{n: x.unsqueeze(2) for n, x in row.items()}, bias=t["bias"], **geometry)
    found = deform_conv1d(**t, **case.geometry, boundary=boundary, implementation=implementation)
    assert error(found, expected.squeeze(2)) < 1e-12


@on_each
def test_a_volume_is_what_grid_sample_reads(implementation: str) -> None:
    # A 1×1×1 kernel with the identity as weight returns the samples themselves.
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    offset = 3 * torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    index = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (4, 5, 6)), indexing="ij")).double()
    sizes = torch.tensor([4.0, 5.0, 6.0], dtype=torch.float64).view(3, 1, 1, 1)
    grid = ((2 * (index + offset) + 1) / sizes - 1).flip(1).movedim(1, -1)
    expected = F.grid_sample(x, grid, align_corners=False)
    weight = torch.eye(3, dtype=torch.float64).view(3, 3, 1, 1, 1)
    assert error(deform_conv3d(x, offset, weight, implementation=implementation), expected) < 1e-12


@on_each
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_volume_of_one_plane_is_a_map(boundary: str, implementation: str) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 6, 5, dtype=torch.float64), torch.randn(6, 2, 3, 3, dtype=torch.float64)
    offset = 2 * torch.randn(2, 36, 6, 5, dtype=torch.float64)
    expected = deform_conv2d(x, offset, weight, padding=1, boundary=boundary)
    moves = F.pad(offset.unflatten(1, (18, 2)), (0, 0, 0, 0, 1, 0)).flatten(1, 2)
    found = deform_conv3d(
        x.unsqueeze(2),
        moves.unsqueeze(2),
        weight.unsqueeze(2),
        padding=(0, 1, 1),
        boundary=boundary,
        implementation=implementation,
    )
    assert error(found.squeeze(2), expected) < 1e-12


@on_each
def test_integer_offsets_shift_a_volume(implementation: str) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 2, 5, 6, 7, dtype=torch.float64), torch.randn(3, 2, 2, 2, 2, dtype=torch.float64)
    move = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64).repeat(8).view(1, 24, 1, 1, 1).expand(1, 24, 4, 5, 6)
    shifted = F.pad(x, (0, 3, 2, 0, 0, 1))[:, :, 1:, :6, 3:]
    expected = F.conv3d(shifted, weight)
    assert error(deform_conv3d(x, move, weight, implementation=implementation), expected) < 1e-12


@on_each
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("case", DEFORM_CONV_TRANSPOSE2D_CASES, ids=lambda case: case.name)
def test_transposed_is_the_adjoint(case: DeformConvCase, boundary: str, implementation: str) -> None:
    # ⟨T(x), u⟩ = ⟨x, D(u)⟩ for every u, with the same offsets, masks and weight.
    t = case.tensors(torch.float64)
    bias = t.pop("bias")
    found = deform_conv_transpose2d(**t, **case.geometry, boundary=boundary, implementation=implementation)
    u = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    geometry = {name: getattr(case, name) for name in ("stride", "padding", "dilation")}
    # Where the output is padded by more than a stride, D has positions that T does not have.
    H, W = case.input[2:]
    more = [0, F.conv2d(u[:1, :1], t["weight"][:1, :1], **geometry).shape[3] - W, 0, 0]
    offset, mask = F.pad(t["offset"], more), F.pad(t["mask"], more)
    down = deform_conv2d(u, offset, t["weight"], mask=mask, **geometry, boundary=boundary)[..., :H, :W]
    torch.testing.assert_close((found * u).sum(), (t["input"] * down).sum())
    whole = deform_conv_transpose2d(**t, bias=bias, **case.geometry, boundary=boundary, implementation=implementation)
    assert error(whole, found + bias.view(-1, 1, 1)) < 1e-12


@on_each
def test_transposed_without_offsets_is_torchs(implementation: str) -> None:
    # An output padding that is larger than the stride, too: torch allows it up to the dilation.
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 5, 3, dtype=torch.float64), torch.randn(4, 3, 3, 2, dtype=torch.float64)
    options: dict[str, Any] = {"stride": (2, 1), "padding": (1, 0), "output_padding": (1, 2), "dilation": (1, 3)}
    expected = F.conv_transpose2d(x, weight, None, **options, groups=2)
    offset = x.new_zeros(2, 12, 5, 3)
    found = deform_conv_transpose2d(x, offset, weight, **options, groups=2, implementation=implementation)
    assert error(found, expected) < 1e-12


LAYERS: dict[str, tuple[Any, Any, tuple[int, ...], dict[str, Any]]] = {
    "1d": (DeformConv1d, nn.Conv1d, (2, 16, 13), {"kernel_size": 4, "stride": 2, "padding": 3, "groups": 4}),
    "1d same": (DeformConv1d, nn.Conv1d, (2, 16, 13), {"kernel_size": 3, "padding": "same", "dilation": 2}),
    "3d": (
        DeformConv3d,
        nn.Conv3d,
        (2, 16, 5, 6, 4),
        {"kernel_size": (3, 2, 1), "stride": (1, 2, 1), "padding": (1, 0, 1), "dilation": (2, 1, 1), "groups": 2},
    ),
    "transposed": (
        DeformConvTranspose2d,
        nn.ConvTranspose2d,
        (2, 16, 5, 4),
        {"kernel_size": (4, 3), "stride": 2, "padding": 1, "output_padding": 1, "groups": 2, "dilation": (1, 2)},
    ),
}


def _layer(name: str, **more: Any) -> tuple[Any, nn.Module, Tensor]:
    """Return a layer, the convolution whose weights it has, and an input, in float64."""
    torch.manual_seed(0)
    kind, plain, size, options = LAYERS[name]
    conv = plain(16, 12, **options).double()
    layer = kind(16, 12, **options, **more).double()
    layer.load_state_dict(conv.state_dict(), strict=False)
    return layer, conv, torch.randn(size, dtype=torch.float64)


@pytest.mark.parametrize("offset_groups", [1, 4])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_starts_as_the_convolution(name: str, version: int, offset_groups: int) -> None:
    layer, conv, x = _layer(name, version=version, offset_groups=offset_groups)
    assert error(layer(x), conv(x)) < 1e-12
    assert repr(layer).startswith(f"{type(layer).__name__}(")


@pytest.mark.parametrize("name", LAYERS)
def test_predictions_move_the_samples(name: str) -> None:
    layer, _, x = _layer(name, offset_groups=2)
    nn.init.normal_(layer.conv_offset.weight, std=0.2)
    offset, mask = layer.predict(x)
    geometry: dict[str, Any] = {n: getattr(layer, n) for n in ("stride", "padding", "dilation")}
    if layer.transposed:
        geometry |= {"output_padding": layer.output_padding, "groups": layer.groups}
    operator = getattr(ops, {"x": "deform_conv1d", "zyx": "deform_conv3d"}.get(layer.axes, "deform_conv_transpose2d"))
    expected = operator(x, offset, layer.weight, layer.bias, mask=mask, **geometry)
    assert torch.equal(layer(x), expected)
    moves = layer.offsets(offset)
    grid = x.shape[2:] if layer.transposed else expected.shape[2:]
    assert moves.shape == (2, 2, *layer.kernel_size, *grid, len(layer.axes))
    assert torch.equal(moves[1, 1].movedim(-1, -1 - len(grid)).flatten(), offset[1].chunk(2)[1].flatten())
    # Where the map is sampled, and what lies outside it: the statistics count as the layer does.
    size = layer.map_size(F.pad(x, (0, 0, 0, 1)) if layer.transposed else x)
    assert size == tuple(expected.shape[2:] if layer.transposed else x.shape[2:])
    with OffsetStatistics(layer) as statistics:
        layer(x)
    assert 0 < statistics.report()[""]["outside"] < 1


@pytest.mark.parametrize("name", ["1d", "3d", "transposed"])
def test_guides(name: str) -> None:
    layer, conv, x = _layer(name, guide_channels=5)
    grid = x.shape[2:] if layer.transposed else conv(x).shape[2:]
    guide = torch.randn(2, 5, *grid, dtype=torch.float64)
    assert error(layer(x, guide), conv(x)) < 1e-12
    nn.init.normal_(layer.conv_offset.weight, std=0.2)
    assert error(layer(x, guide), conv(x)) > 0.01
    with pytest.raises(TypeError, match=rf"^{type(layer).__name__}: guide must be a tensor, this layer predicts"):
        layer(x)


def test_errors_of_layers() -> None:
    with pytest.raises(
        ValueError, match=r"^DeformConvTranspose2d: output_padding must be less than stride or dilation"
    ):
        DeformConvTranspose2d(4, 4, 3, output_padding=1)
    with pytest.raises(ValueError, match=r"^DeformConvTranspose2d: offset_groups=4 must divide 6 output channels$"):
        DeformConvTranspose2d(4, 6, 3, offset_groups=4)
    with pytest.raises(
        TypeError, match=r"^DeformConvTranspose2d: padding must be an int or a pair of ints, got 'same'$"
    ):
        DeformConvTranspose2d(4, 6, 3, padding="same")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^DeformConv3d: stride must be an int or three ints, got \(1, 2\)$"):
        DeformConv3d(4, 6, 3, (1, 2))
    with pytest.raises(ValueError, match=r"^DeformConv1d: input must have shape \(N, C, W\), got \(4, 8\)$"):
        DeformConv1d(4, 6, 3)(torch.zeros(4, 8))


def test_every_case_of_a_volume_is_read_where_it_lies() -> None:
    # channels_last_3d in, channels_last_3d out, with the same numbers.
    for case in (c for c in DEFORM_CONV3D_CASES if min(c.input[1:]) > 1):
        t, last = case.tensors(), case.tensors(channels_last=True)
        found = deform_conv3d(**last, **case.geometry)
        assert found.is_contiguous(memory_format=torch.channels_last_3d)
        assert torch.equal(found, deform_conv3d(**t, **case.geometry)), case.name
