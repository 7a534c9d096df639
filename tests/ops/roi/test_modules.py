"""The deformable RoI layers: they start as pooling without offsets, and learn to look elsewhere."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.nn import DeformPSRoIPool, DeformRoIPool, parameter_groups
from pliant.ops import deform_psroi_pool, deform_roi_pool, roi_align
from pliant.testing import TOLERANCE, error

ROIS = torch.tensor([[0.0, 3, 5, 60, 50], [1, 20, 10, 90, 70], [1, 0, 0, 30, 100]])
SCALE = 0.125


def _map(channels: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, 13, 15, generator=random, dtype=torch.float64).to(dtype)


def _moved(layer: nn.Module) -> nn.Module:
    """Make a layer predict something: every parameter is drawn anew."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=random))
    return layer


VERSIONS: dict[str, dict[str, Any]] = {
    "version 1": {"version": 1},
    "version 1, mmcv": {"version": 1, "hidden": (12, 10)},
    "version 2": {"version": 2, "hidden": (12, 10)},
    "version 2, two trunks": {"version": 2, "hidden": (12, 10), "separate_mask_trunk": True},
    "version 2, mask_scale 2": {"version": 2, "hidden": (), "mask_scale": 2.0},
}
each = pytest.mark.parametrize("options", VERSIONS.values(), ids=VERSIONS)


# The layer of aligned pooling.


@each
def test_starts_as_roi_align(options: dict[str, Any]) -> None:
    layer = DeformRoIPool((3, 2), 6, SCALE, 2, **options)
    expected = roi_align(_map(), ROIS, (3, 2), SCALE, 2, True)
    factor = options.get("mask_scale", 1.0) / 2 if options["version"] == 2 else 1.0
    assert error(layer(_map(), ROIS), factor * expected) < 1e-6
    assert expected.abs().max() > 0.1


@each
def test_equals_its_parts(options: dict[str, Any]) -> None:
    layer = _moved(DeformRoIPool((3, 2), 6, SCALE, 2, gamma=0.3, **options))
    x = _map()
    flat = deform_roi_pool(x, ROIS, None, (3, 2), SCALE, 2).flatten(1)
    predicted = layer.offset_fc(flat)
    offset, mask = layer.predict(x, ROIS)
    # All x before all y, masks last.
    assert torch.equal(offset[:, 0].flatten(1), predicted[:, :6])
    assert torch.equal(offset[:, 1].flatten(1), predicted[:, 6:12])
    if options["version"] == 1:
        assert mask is None
    else:
        raw = predicted[:, 12:] if layer.mask_fc is None else layer.mask_fc(flat)
        assert torch.equal(mask[:, 0].flatten(1), options.get("mask_scale", 1.0) * raw.sigmoid())
    y = layer(x, ROIS)
    assert torch.equal(y, deform_roi_pool(x, ROIS, offset, (3, 2), SCALE, 2, 0.3, mask=mask))
    assert error(y, roi_align(x, ROIS, (3, 2), SCALE, 2, True)) > 0.01


def test_an_offset_moves_a_bin_by_its_share_of_the_roi() -> None:
    layer = DeformRoIPool(1, 2, sampling_ratio=1)
    with torch.no_grad():
        layer.offset_fc[0].bias.copy_(torch.tensor([5.0, -10.0]))
    ramp = torch.arange(40.0)
    x = torch.stack([ramp.expand(40, 40), ramp[:, None].expand(40, 40)])[None]
    # A tenth of 5 widths to the right, of 10 heights up, from the centre at (15, 19) − ½.
    y = layer(x, torch.tensor([[0.0, 10, 15, 20, 23]]))
    assert torch.allclose(y.flatten(), torch.tensor([14.5 + 5, 18.5 - 8]))


def test_the_paper_s_branches_are_the_defaults() -> None:
    one, two = DeformRoIPool(7, 4), DeformRoIPool(7, 4, version=2)
    assert [p.shape for p in one.parameters()] == [(98, 196), (98,)]
    assert [tuple(p.shape) for p in two.parameters() if p.dim() == 2] == [(1024, 196), (1024, 1024), (147, 1024)]
    assert (one.offset_lr_mult, two.offset_lr_mult) == (0.01, 1.0)
    assert not any(p.any() for p in one.parameters())
    first, second, last = (layer for layer in two.offset_fc if isinstance(layer, nn.Linear))
    for layer in (first, second):
        assert not layer.bias.any()
        assert 0.0095 < layer.weight.std() < 0.0105
    assert not last.weight.any() and not last.bias.any()


def test_names_in_the_state() -> None:
    def names(**options: Any) -> list[str]:
        return [
            name.removesuffix(".weight") for name in DeformRoIPool(2, 3, **options).state_dict() if "weight" in name
        ]

    assert names() == ["offset_fc.0"]
    assert names(hidden=(4, 4)) == ["offset_fc.0", "offset_fc.2", "offset_fc.4"]
    assert names(version=2, hidden=(4, 4)) == ["offset_fc.0", "offset_fc.2", "offset_fc.4"]
    # mmcv.ops.ModulatedDeformRoIPoolPack, whose mask has one hidden layer.
    mmcv = DeformRoIPool(2, 3, version=2, hidden=(5, 4), separate_mask_trunk=True)
    assert [tuple(p.shape) for n, p in mmcv.named_parameters() if "weight" in n] == [
        (5, 12),
        (4, 5),
        (8, 4),
        (5, 12),
        (4, 5),
    ]
    assert [n for n in mmcv.state_dict() if "mask" in n and "weight" in n] == ["mask_fc.0.weight", "mask_fc.2.weight"]


@each
def test_gradients_reach_the_branch(options: dict[str, Any]) -> None:
    layer = DeformRoIPool((3, 2), 6, SCALE, 2, **options)
    x = _map().requires_grad_()
    layer(x, ROIS).square().sum().backward()
    assert x.grad.abs().sum() > 0
    # At the start what is behind a layer of zeros has none yet.
    last = [trunk[-1] for trunk in (layer.offset_fc, layer.mask_fc) if trunk is not None]
    assert all(linear.weight.grad.any() and linear.bias.grad.any() for linear in last)
    _moved(layer).zero_grad()
    layer(x, ROIS).square().sum().backward()
    assert all(p.grad.any() for p in layer.parameters())


def test_learns_where_the_object_is() -> None:
    # A bright square to the right of every box: the layer learns to look there.
    torch.manual_seed(0)
    x = torch.zeros(1, 1, 24, 24)
    x[..., 8:16, 12:20] = 1
    x = x + 0.05 * torch.arange(24.0)
    layer = DeformRoIPool(2, 1, sampling_ratio=2, gamma=1.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    box = torch.tensor([[0.0, 4, 8, 14, 16]])
    before = layer(x, box).mean().item()
    for _ in range(30):
        optimizer.zero_grad()
        (-layer(x, box).mean()).backward()
        optimizer.step()
    assert layer(x, box).mean().item() > before + 0.3
    assert (layer.predict(x, box)[0][:, 0] > 0).all()


def test_learning_rates_are_the_papers() -> None:
    model = nn.ModuleList(
        [
            nn.Linear(3, 3),
            DeformRoIPool(2, 3),
            DeformRoIPool(2, 3, version=2, hidden=(4,), separate_mask_trunk=True),
            DeformPSRoIPool(2, 3),
        ]
    )
    rest, slow = parameter_groups(model, 1.0)
    assert (rest["lr"], slow["lr"]) == (1.0, 0.01)
    assert {id(p) for p in slow["params"]} == {id(p) for p in model[1].parameters()}
    _, branches = parameter_groups(model, 1.0, 0.5)
    assert {id(p) for p in branches["params"]} == {id(p) for layer in model[1:] for p in layer.parameters()}


@each
def test_no_rois(options: dict[str, Any]) -> None:
    layer = DeformRoIPool((3, 2), 6, SCALE, 2, **options)
    for rois in (torch.zeros(0, 5), [torch.zeros(0, 4)] * 2):
        y = layer(_map(), rois)
        assert y.shape == (0, 6, 3, 2)
        y.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


def test_rois_as_a_list() -> None:
    layer = _moved(DeformRoIPool(3, 6, SCALE, version=2, hidden=(8,)))
    listed = [ROIS[:1, 1:], ROIS[1:, 1:]]
    assert torch.equal(layer(_map(), listed), layer(_map(), ROIS))


@each
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_predicts_low_and_pools_wide_offsets(low: torch.dtype, options: dict[str, Any]) -> None:
    layer = _moved(DeformRoIPool((3, 2), 6, SCALE, 2, **options))
    seen = []
    layer.offset_fc[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", low):
        y = layer(_map(), ROIS)
        offset, mask = layer.predict(_map(), ROIS)
    assert set(seen) == {low}
    assert y.dtype == low
    assert offset.dtype == torch.float32 and (mask is None or mask.dtype == torch.float32)
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_dtype_and_device_are_the_parameters(dtype: torch.dtype) -> None:
    layer = DeformRoIPool(2, 6, SCALE, version=2, hidden=(4,), device="meta", dtype=dtype)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", dtype)}
    real = layer.to_empty(device="cpu")
    real.reset_parameters()
    y = real(_map(dtype=dtype), ROIS)
    assert y.dtype == dtype
    assert y.isfinite().all()


def test_copies() -> None:
    layer = _moved(DeformRoIPool(2, 6, SCALE, version=2, hidden=(4,), separate_mask_trunk=True))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(_map(), ROIS), layer(_map(), ROIS))
    other = DeformRoIPool(2, 6, SCALE, version=2, hidden=(4,), separate_mask_trunk=True)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(_map(), ROIS), layer(_map(), ROIS))


def test_compiles_whole() -> None:
    torch._dynamo.reset()
    layer = _moved(DeformRoIPool(2, 6, SCALE, 2, version=2, hidden=(4,)))
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for rois in (ROIS, ROIS[:2]):
        assert error(compiled(_map(), rois), layer(_map(), rois)) < 1e-5


# The position-sensitive layer.


def test_starts_as_position_sensitive_pooling() -> None:
    layer = DeformPSRoIPool(3, 6, classes=2, spatial_scale=SCALE)
    scores = _map(4 * 9)
    expected = deform_psroi_pool(scores, ROIS, None, 3, SCALE, group_size=3)
    assert torch.equal(layer(scores, _map(), ROIS), expected)
    assert expected.abs().max() > 0.1


def test_position_sensitive_equals_its_parts() -> None:
    layer = DeformPSRoIPool(
        4, 6, classes=2, spatial_scale=SCALE, group_size=2, part_size=3, sample_per_part=2, trans_std=0.4
    )
    _moved(layer)
    features, scores = _map(), _map(4 * 4)
    offset = layer.predict(features, ROIS)
    assert offset.shape == (3, 4, 3, 3)
    maps = layer.conv_offset(features)
    assert maps.shape[1] == 2 * 2 * 9
    for n, c in ((0, 0), (1, 3)):
        # Part (row, column) of channel c is pooled from one map alone.
        alone = deform_psroi_pool(maps[:, c * 9 + 5 : c * 9 + 6], ROIS, None, 3, SCALE, sample_per_part=2)
        assert torch.allclose(offset[n, c, 1, 2], alone[n, 0, 1, 2])
    expected = deform_psroi_pool(
        scores, ROIS, offset, 4, SCALE, group_size=2, part_size=3, sample_per_part=2, trans_std=0.4
    )
    assert torch.equal(layer(scores, features, ROIS), expected)
    still = deform_psroi_pool(scores, ROIS, None, 4, SCALE, group_size=2, sample_per_part=2)
    assert error(expected, still) > 0.01


def test_position_sensitive_gradients_and_state() -> None:
    layer = DeformPSRoIPool(3, 6, classes=2, spatial_scale=SCALE)
    assert list(layer.state_dict()) == ["conv_offset.weight", "conv_offset.bias"]
    assert layer.offset_lr_mult == 1.0
    scores, features = _map(18).requires_grad_(), _map().requires_grad_()
    layer(scores, features, ROIS).square().sum().backward()
    assert all(p.grad.any() for p in layer.parameters())
    assert scores.grad.any() and not features.grad.any()
    _moved(layer)
    layer(scores, features, ROIS).square().sum().backward()
    assert features.grad.any()


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_position_sensitive_autocast(low: torch.dtype) -> None:
    layer = _moved(DeformPSRoIPool(3, 6, spatial_scale=SCALE))
    with torch.autocast("cpu", low):
        y = layer(_map(9), _map(), ROIS)
        offset = layer.predict(_map(), ROIS)
    assert (y.dtype, offset.dtype) == (low, torch.float32)
    assert error(offset, layer.predict(_map(), ROIS)) < 4 * TOLERANCE[low]


def test_position_sensitive_without_rois() -> None:
    layer = DeformPSRoIPool(3, 6, spatial_scale=SCALE)
    y = layer(_map(9), _map(), torch.zeros(0, 5))
    assert y.shape == (0, 1, 3, 3)
    y.sum().backward()
    assert not layer.conv_offset.weight.grad.any()


# Words.


def test_representations() -> None:
    assert DeformRoIPool(7, 4, 0.25, 2).extra_repr() == (
        "output_size=(7, 7), channels=4, spatial_scale=0.25, sampling_ratio=2, gamma=0.1, version=1, hidden=()"
    )
    assert (
        DeformRoIPool((7, 3), 4, version=2, hidden=[8]).extra_repr().endswith("version=2, hidden=(8,), mask_scale=1.0")
    )
    assert DeformPSRoIPool(3, 4, 2).extra_repr() == (
        "output_size=3, channels=4, classes=2, spatial_scale=1.0, group_size=3, part_size=3, sample_per_part=4, "
        "trans_std=0.1"
    )


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: DeformRoIPool(0, 4), "DeformRoIPool: output_size must be at least 1, got 0"),
        (
            lambda: DeformRoIPool(2, 4, version=3),
            "DeformRoIPool: version must be 1 (offsets) or 2 (offsets and mask), got 3",
        ),
        (
            lambda: DeformRoIPool(2, 4, separate_mask_trunk=True),
            "DeformRoIPool: separate_mask_trunk needs version 2, version 1 has no mask",
        ),
        (lambda: DeformRoIPool(2, 4, mask_scale=0), "DeformRoIPool: mask_scale must be positive and finite, got 0"),
        (lambda: DeformRoIPool(2, 0), "DeformRoIPool: channels and hidden must be at least 1, got 0 and ()"),
        (
            lambda: DeformRoIPool(2, 4, hidden=(8, 0)),
            "DeformRoIPool: channels and hidden must be at least 1, got 4 and (8, 0)",
        ),
        (lambda: DeformPSRoIPool(0, 4), "DeformPSRoIPool: output_size must be at least 1, got 0"),
        (lambda: DeformPSRoIPool(2, 4, classes=0), "DeformPSRoIPool: classes must be at least 1, got 0"),
        (
            lambda: DeformRoIPool(2, 4)(_map(), ROIS),
            "DeformRoIPool: input must have 4 channels, got shape (2, 6, 13, 15)",
        ),
        (
            lambda: DeformRoIPool(2, 6)(_map()[0], ROIS),
            "DeformRoIPool: input must have shape (N, C, H, W), got (6, 13, 15)",
        ),
        (
            lambda: DeformPSRoIPool(2, 4)(_map(4), _map(), ROIS),
            "DeformPSRoIPool: features must have 4 channels, got shape (2, 6, 13, 15)",
        ),
    ],
)
def test_error_sentences(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        make()
    assert str(raised.value) == sentence
