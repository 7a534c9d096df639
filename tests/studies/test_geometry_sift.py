from __future__ import annotations

import numpy as np
import pytest
import torch

from pliant.data import FashionMNIST, Ranges, draw, render
from pliant.studies.geometry.sift import SiftWords


def test_histograms_count_words() -> None:
    split = FashionMNIST.load().train.first(60)
    canvas = render(split.pictures, draw(Ranges(), 60, torch.Generator().manual_seed(0)))
    machine = SiftWords(0)
    described = machine.describe([*canvas, torch.zeros(1, 64, 64)])
    assert len(described[-1]) == 0
    lengths = np.concatenate([np.square(d).sum(1) for d in described])
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)  # RootSIFT: squares of unit sum
    machine.fit(described[:-1], split.labels.numpy())
    seen = machine.histograms(described)
    np.testing.assert_allclose(np.square(seen[:-1]).sum(1), 1, rtol=1e-5)
    assert (seen[-1] == 0).all()
    alone = machine.histograms(described[7:8])
    np.testing.assert_array_equal(alone[0], seen[7])
    words = len(machine.words.cluster_centers_)
    assert machine.parameters == words * 128 + 10 * (words + 1)
    again = SiftWords(0).fit(described[:-1], split.labels.numpy())
    np.testing.assert_array_equal(again.machine.coef_, machine.machine.coef_)
    # It knows what it has seen.
    assert (machine.predict(described[:-1]) == split.labels.numpy()).mean() > 0.9


def test_no_keypoints_at_all() -> None:
    machine = SiftWords(0)
    with pytest.raises(ValueError, match="no image has a keypoint"):
        machine.fit(machine.describe(torch.zeros(3, 1, 64, 64)), np.arange(3))
