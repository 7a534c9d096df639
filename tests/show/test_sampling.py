"""Sampling points against the regular grid and against gradients of one-hot networks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from pliant.nn import DeformConv2d
from pliant.ops import deform_conv2d
from pliant.show import canvas
from pliant.show.sampling import draw, steps, support, trace


def deformable(generator, *args, size=1.0, shift=0.0, **kwargs):
    """A layer whose offsets are spread over about `size` pixels and depend on what it sees."""
    layer = DeformConv2d(*args, **kwargs).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
        layer.conv_offset.bias.mul_(size / 0.3).add_(shift)
    return layer


def record(chain, picture):
    """Return what every layer predicts for the picture: (offset, mask) or None."""
    with torch.no_grad():
        fixed, x = [], picture[None]
        for layer in chain:
            fixed.append(layer.predict(x) if isinstance(layer, DeformConv2d) else None)
            x = layer(x)
    return fixed


def replay(chain, fixed, picture, position, taps=None):
    """Differentiate the chain with kernels of one at every tap, or at one chosen tap (and group) of each layer.

    Offsets and masks are the `fixed` ones. Returns the gradient (H, W) at a picture of one channel.
    """
    image = torch.zeros(1, 1, *picture.shape[-2:], dtype=torch.float64, requires_grad=True)
    y, choices = image, iter(taps) if taps is not None else None
    for layer, predicted in zip(chain, fixed, strict=True):
        if isinstance(layer, nn.AvgPool2d | nn.MaxPool2d):
            padding, stride = layer.padding, layer.stride
            y = nn.functional.avg_pool2d(y, layer.kernel_size, stride, padding)
            continue
        if not isinstance(layer, nn.Conv2d | DeformConv2d):
            continue
        Kh, Kw = layer.kernel_size
        G = layer.offset_groups if predicted is not None else 1
        kernel = torch.ones(G, Kh * Kw, dtype=torch.float64) / G
        if choices is not None:
            hot = next(choices)
            kernel = torch.zeros(G * Kh * Kw, dtype=torch.float64).index_fill(0, torch.tensor(hot), 1 / G).view(G, -1)
        kernel = kernel.view(1, G, Kh, Kw)
        if predicted is None:
            y = nn.functional.conv2d(y, kernel, None, layer.stride, layer.padding, layer.dilation)
        else:
            offset, mask = predicted
            geometry = (None, layer.stride, layer.padding, layer.dilation, mask)
            extra = {"boundary": layer.boundary, "implementation": "reference"}
            y = deform_conv2d(y.expand(-1, G, -1, -1), offset, kernel, *geometry, **extra)
    (gradient,) = torch.autograd.grad(y[0, 0, position[0], position[1]], image)
    return gradient[0, 0].numpy()


def centre_of_gravity(gradient):
    y, x = np.mgrid[: gradient.shape[0], : gradient.shape[1]]
    return np.array([(gradient * y).sum(), (gradient * x).sum()]) / gradient.sum()


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_zero_offsets_give_the_regular_grid(layers):
    """9, 81 and 729 points; their coordinates are sums of one tap per layer."""
    chain = [DeformConv2d(2, 2, 3, padding=2, dilation=2) for _ in range(layers)]
    found = trace(chain, torch.zeros(2, 31, 31), (15, 14))
    taps = [np.array(t) for t in itertools.product((-2, 0, 2), repeat=2)]
    expected = np.array([np.add(sum(path), (15, 14)) for path in itertools.product(taps, repeat=layers)])
    assert found.points.shape == (9**layers, 2)
    np.testing.assert_array_equal(found.points, expected)
    np.testing.assert_array_equal(found.weights, 1.0)  # mask_scale 2: the untrained mask is 1
    assert found.inside.all()
    np.testing.assert_array_equal(found.centre, (15, 14))


def test_stride_dilation_and_padding():
    chain = [nn.Conv2d(1, 1, 3, stride=2, padding=1), nn.Conv2d(1, 1, (3, 1), stride=(1, 2), dilation=(3, 1))]
    found = trace(chain, torch.zeros(1, 41, 41), (4, 5))
    rows = [(4 + i * 3) * 2 - 1 + k for i in range(3) for k in range(3)]
    columns = [(5 * 2) * 2 - 1 + k for k in range(3)]
    expected = {(r, c) for r in rows for c in columns}
    assert {tuple(p) for p in found.points.tolist()} == expected
    np.testing.assert_array_equal(found.centre, ((4 + 3) * 2, 20))


def test_border_keeps_every_point_and_flags_those_outside():
    """At a corner of three padded layers all 729 points come back, and offsets stay with their own taps."""
    chain = [DeformConv2d(1, 1, 3, padding=1) for _ in range(3)]
    with torch.no_grad():
        for layer in chain:
            layer.conv_offset.bias[:18] = torch.arange(18.0)  # tap k moves by (2k, 2k + 1)
    found = trace(chain[:1], torch.zeros(1, 64, 64), (0, 0))
    taps = np.array([(k // 3 - 1 + 2 * k, k % 3 - 1 + 2 * k + 1) for k in range(9)])
    np.testing.assert_array_equal(found.points, taps)
    np.testing.assert_array_equal(found.inside, [False] + [True] * 8)  # tap 0 lies at (−1, 0)
    np.testing.assert_array_equal(found.weights, found.inside.astype(float))

    plain = trace([nn.Conv2d(1, 1, 3, padding=1) for _ in range(3)], torch.zeros(1, 8, 8), (0, 0))
    assert plain.points.shape == (729, 2)
    np.testing.assert_array_equal(plain.points.min(0), (-3, -3))
    # A path that falls off is lost even where its last sample is inside again.
    walks = [np.cumsum(w) for w in itertools.product((-1, 0, 1), repeat=3)]
    staying = sum((w >= 0).all() for w in walks)
    assert plain.inside.sum() == staying**2
    assert (plain.weights > 0).sum() == staying**2


@pytest.mark.parametrize("version", [1, 2])
def test_points_are_centres_of_gravity_of_one_hot_gradients(generator, version):
    """Three deformable layers, fractional offsets everywhere: every twentieth of 729 paths against autograd."""
    chain = [deformable(generator, c, 2, 3, padding=1, version=version) for c in (1, 2, 2)]
    picture = torch.rand(1, 40, 40, generator=generator, dtype=torch.float64)
    found = trace(chain, picture, (20, 19))
    assert found.points.shape == (729, 2)
    checked, fixed = 0, record(chain, picture)
    for i, (top, middle, bottom) in enumerate(itertools.product(range(9), repeat=3)):
        if i % 20 == 0:
            gradient = replay(chain, fixed, picture, (20, 19), (bottom, middle, top))
            np.testing.assert_allclose(found.weights[i], gradient.sum(), rtol=1e-10)
            np.testing.assert_allclose(found.points[i], centre_of_gravity(gradient), rtol=1e-10)
            checked += 1
    assert checked == 37


def test_weights_near_the_border_are_the_gradient_that_stays_inside(generator):
    chain = [deformable(generator, 1, 1, 3, padding=1, size=2.0) for _ in range(3)]
    picture = torch.rand(1, 9, 9, generator=generator, dtype=torch.float64)
    found, fixed = trace(chain, picture, (0, 8)), record(chain, picture)
    sums = [
        replay(chain, fixed, picture, (0, 8), taps[::-1]).sum()
        for taps in itertools.islice(itertools.product(range(9), repeat=3), 90)
    ]
    np.testing.assert_allclose(found.weights[:90], sums, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(found.inside[:90], np.array(sums) > 0)
    assert 0 < found.inside.sum() < 729
    assert np.isfinite(found.points).all()


@pytest.mark.parametrize("boundary", ["zeros", "clamp"])
def test_every_offset_group_is_traced(generator, boundary):
    chain = [
        deformable(generator, 1, 4, 3, padding=1, boundary=boundary),
        deformable(generator, 4, 2, (1, 3), padding=(0, 1), offset_groups=2, boundary=boundary),
    ]
    picture = torch.rand(1, 40, 40, generator=generator, dtype=torch.float64)
    found, fixed = trace(chain, picture, (20, 19)), record(chain, picture)
    assert found.points.shape == (2 * 3 * 9, 2)
    for i, (top, bottom) in enumerate(itertools.product(range(6), range(9))):
        gradient = replay(chain, fixed, picture, (20, 19), (bottom, top))
        np.testing.assert_allclose(found.weights[i], gradient.sum(), rtol=1e-10)
        np.testing.assert_allclose(found.points[i], centre_of_gravity(gradient), rtol=1e-10)


@pytest.mark.parametrize("position", [(0, 0), (2, 3), (3, 3)])
def test_support_is_the_gradient_of_all_taps(generator, position):
    """Strides, pooling, dilation, plain and deformable layers, borders included, pixel by pixel."""
    chain = [
        nn.Conv2d(1, 3, 3, stride=2, padding=1).double(),
        nn.BatchNorm2d(3).double(),
        nn.ReLU(),
        nn.AvgPool2d(2),
        deformable(generator, 3, 4, 3, padding=2, dilation=2, offset_groups=3),
        nn.LocalResponseNorm(3),
        deformable(generator, 4, 4, 3, padding=1, stride=2, version=1),
    ]
    picture = torch.rand(1, 33, 33, generator=generator, dtype=torch.float64)
    chain[1].eval()
    chain = nn.Sequential(*chain)
    fixed = record(chain, picture)
    np.testing.assert_allclose(
        support(chain, picture, position), replay(chain, fixed, picture, position), rtol=1e-10, atol=1e-12
    )


def test_paths_add_up_to_the_support(generator):
    chain = [deformable(generator, 1, 2, 3, padding=1), deformable(generator, 2, 2, 3, padding=1)]
    picture = torch.rand(1, 10, 10, generator=generator, dtype=torch.float64)
    np.testing.assert_allclose(trace(chain, picture, (4, 4)).weights.sum(), support(chain, picture, (4, 4)).sum())


def test_depth_stops_at_centres_of_lower_layers():
    """One level over a strided, pooled stem: the 9 taps land on centres of what the feature map's pixels see."""
    stem = [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3, padding=1), nn.MaxPool2d(2)]
    chain = nn.Sequential(nn.Sequential(*stem), DeformConv2d(2, 2, 3, padding=1))
    found = trace(chain, torch.zeros(1, 64, 64), (5, 6), depth=1)
    expected = [(4 * (5 + i) + 1.5, 4 * (6 + j) + 1.5) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    np.testing.assert_array_equal(found.points, expected)
    np.testing.assert_array_equal(found.centre, (21.5, 25.5))
    assert trace(chain, torch.zeros(1, 64, 64), (5, 6), depth=0).points.tolist() == [[21.5, 25.5]]
    assert len(trace(chain, torch.zeros(1, 64, 64), (5, 6)).points) == 729


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_uneven_same_padding_pads_at_the_end():
    chain = [DeformConv2d(1, 1, 4, padding="same", dilation=3)]
    plain = [nn.Conv2d(1, 1, 4, padding="same", dilation=3)]
    picture = torch.zeros(1, 20, 20)
    found = trace(chain, picture, (10, 10))
    np.testing.assert_array_equal(found.points, trace(plain, picture, (10, 10)).points)
    np.testing.assert_array_equal(found.points[[0, -1]], [(6, 6), (15, 15)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_offsets_that_sample_nothing(value):
    layer = DeformConv2d(1, 1, 3, padding=1, version=1)
    with torch.no_grad():
        layer.conv_offset.bias[0] = value
    found = trace([nn.Conv2d(1, 1, 1), layer], torch.zeros(1, 8, 8), (4, 4))
    np.testing.assert_array_equal(found.inside, [False] + [True] * 8)
    np.testing.assert_array_equal(found.points[1:], [(4 + i, 4 + j) for i in (-1, 0, 1) for j in (-1, 0, 1)][1:])
    assert np.isfinite(found.points).all()


def test_training_mode_and_statistics_are_left_alone():
    norm = nn.BatchNorm2d(1)
    chain = nn.Sequential(nn.Conv2d(1, 1, 3), norm)
    trace(chain, torch.rand(1, 8, 8), (1, 1))
    assert norm.training
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("layers", "picture", "position", "kwargs", "error", "says"),
    [
        ([nn.Linear(8, 8)], (1, 8, 8), (0, 0), {}, TypeError, "Linear"),
        ([nn.Unfold(3)], (1, 8, 8), (0, 0), {}, TypeError, "aten::im2col, which lays windows"),
        ([nn.Conv2d(1, 1, 3)], (1, 8, 8), (6, 0), {}, ValueError, "6 × 6"),
        ([nn.Conv2d(1, 1, 3)], (2, 1, 8, 8), (0, 0), {}, ValueError, r"\(2, 1, 8, 8\)"),
        ([nn.Conv2d(1, 1, 3)], (1, 8, 8), (0, 0), {"depth": 2}, ValueError, "depth"),
        ([nn.Conv2d(1, 1, 11, padding=5)] * 3, (1, 8, 8), (0, 0), {}, ValueError, "1771561 points"),
        ([nn.ReLU()], (1, 8, 8), (0, 0), {}, ValueError, "no convolution"),
    ],
)
def test_errors(layers, picture, position, kwargs, error, says):
    with pytest.raises(error, match=says):
        trace(layers, torch.zeros(picture), position, **kwargs)


def test_steps_say_what_they_sample(generator):
    net = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.ReLU(), deformable(generator, 1, 2, 3, padding=1))
    picture = torch.rand(1, 7, 9, generator=generator, dtype=torch.float64)
    pool, top = steps(net, picture)
    assert (pool.below, pool.above, pool.splits) == ((7, 9), (4, 5), False)
    np.testing.assert_array_equal(pool.regular.mean(0), (0, 0))
    offset, mask = record(net, picture)[2]
    at = top.positions.reshape(9, 4, 5, 2)[5, 2, 3]  # tap (1, 2) of output (2, 3)
    np.testing.assert_allclose(at, torch.tensor([2.0, 4.0]) + offset[0, 10:12, 2, 3])
    np.testing.assert_allclose(top.weights.reshape(9, 4, 5), mask[0])


def test_drawing_keeps_every_point_and_sets_those_outside_apart():
    found = trace([nn.Conv2d(1, 1, 3, padding=1)] * 2, torch.zeros(1, 16, 16), (0, 5))
    axes = canvas.sheet(3, 3).subplots()
    draw(axes, np.zeros((16, 16)), found, title="t", margin=2.0)
    lost, kept, centre = (c.get_offsets() for c in axes.collections)
    np.testing.assert_array_equal(kept, found.points[found.inside][:, ::-1])
    np.testing.assert_array_equal(lost, found.points[~found.inside][:, ::-1])
    np.testing.assert_array_equal(centre, [(5, 0)])
    assert len(kept) + len(lost) == 81
    assert axes.get_xlim() == (-2.5, 17.5)
