"""What channels lose to each other, against the operator itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pliant.ops import local_response_norm
from pliant.show import canvas, lrn

CONSTANTS = {"size": 4, "alpha": 0.8, "beta": 0.75, "k": 1.5}


@pytest.fixture
def x():
    return torch.randn(7, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


@pytest.mark.parametrize("even", ["left", "right"])
def test_after_is_the_operator(x, even):
    found = lrn.inhibition(x, even=even, **CONSTANTS)
    expected = local_response_norm(x[None], even=even, implementation="reference", **CONSTANTS)[0]
    np.testing.assert_allclose(found.after, expected, rtol=1e-12)
    np.testing.assert_array_equal(found.before, x)


@pytest.mark.parametrize("even", ["left", "right"])
def test_losses_are_differences_of_the_operator_with_neighbours_silenced(x, even):
    def run(t):
        return local_response_norm(t[None], even=even, implementation="reference", **CONSTANTS)[0].abs()

    found = lrn.inhibition(x, even=even, **CONSTANTS)
    for i in range(len(x)):
        only = torch.zeros_like(x)
        only[i] = x[i]
        np.testing.assert_allclose(np.abs(found.alone[i]), run(only)[i], rtol=1e-12)
        np.testing.assert_allclose(found.lost[i], run(only)[i] - run(x)[i], rtol=1e-9, atol=1e-12)
        for j in range(len(x)):
            silent = x.clone()
            silent[j] = 0
            expected = 0.0 if i == j else (run(silent)[i] - run(x)[i]).mean()
            np.testing.assert_allclose(found.taken[i, j], expected, rtol=1e-9, atol=1e-12)


def test_a_lone_channel_loses_nothing_and_batches_of_one_are_taken():
    found = lrn.inhibition(torch.ones(1, 3, 2, 2) * torch.tensor([0.0, 5.0, 0.0]).view(1, 3, 1, 1), **CONSTANTS)
    assert not found.lost.any()
    assert not found.taken.any()


@pytest.mark.parametrize(
    ("shape", "kwargs", "says"),
    [
        ((2, 3, 4, 4), {"size": 3}, r"\(2, 3, 4, 4\)"),
        ((3, 4, 4), {"size": 0}, "size=0"),
        ((3, 4, 4), {"size": 3, "k": 0.0}, "k > 0"),
        ((3, 4, 4), {"size": 3, "even": "both"}, "'both'"),
    ],
)
def test_errors(shape, kwargs, says):
    with pytest.raises(ValueError, match=says):
        lrn.inhibition(torch.ones(shape), **kwargs)


def test_drawing(x):
    figure = canvas.sheet(14, 3.2)
    lrn.draw(figure, lrn.inhibition(x, **CONSTANTS), np.zeros((64, 64)))
    axes = figure.axes
    heights = sorted(p.get_height() for p in axes[1].patches)
    row, column = np.unravel_index(np.abs(x.numpy()).sum(0).argmax(), (5, 6))
    assert np.isclose(heights[-1], x[:, row, column].abs().max())
    assert len(axes[1].patches) == 14
    assert canvas.png(figure).startswith(b"\x89PNG")
