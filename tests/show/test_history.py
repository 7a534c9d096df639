"""The picture of histograms over training."""

from __future__ import annotations

import numpy as np
import pytest

from pliant.show import canvas, history


def histogram(counts, mean, unit="map pixels"):
    return {"edges": [0.0, 1.0, 2.0], "counts": counts, "unit": unit, "mean": mean, "nonfinite": 0}


def test_histograms_of_a_run_are_drawn_where_they_were_counted():
    names = ["a", "b", "c", "d", "pool"]
    units = ["map pixels"] * 4 + ["extents of the RoI"]
    records = [{"kind": "step", "step": 1, "loss": 2.0}]
    for step, counts in ((10, [4, 0]), (20, [3, 1]), (40, [1, 3])):
        found = {n: histogram(counts, counts[1] / 4, unit) for n, unit in zip(names, units, strict=True)}
        records.append({"kind": "evaluation", "step": step, "AP": 0.1, "offsets": found})
    figure = canvas.sheet(9, 5)
    history.draw(figure, records, step="step")
    panels = figure.axes[:5]
    assert [axes.get_title() for axes in panels] == names
    for axes in panels:
        np.testing.assert_array_equal(axes.lines[0].get_xydata(), [(10, 0.0), (20, 0.25), (40, 0.75)])
        mesh = axes.collections[0]
        np.testing.assert_allclose(mesh.get_array() ** 2, [[100, 75, 25], [0, 25, 75]])
        np.testing.assert_array_equal(mesh.get_coordinates()[0, :, 0], [5, 15, 30, 50])
    assert [axes.get_ylabel() for axes in panels] == [
        "length of offsets, map pixels", "", "", "", "length of offsets, extents of the RoI"
    ]  # fmt: skip
    assert not figure.axes[5].axison


def test_one_record_of_a_layer_is_a_column():
    figure = canvas.sheet(3, 2.5)
    history.draw(figure, [{"kind": "offsets", "layer": "", "step": 7, **histogram([0, 0], None)}])
    (axes, _) = figure.axes
    assert axes.get_title() == "the model"
    assert axes.get_xlim() == (6.5, 7.5)


def test_records_without_histograms_are_an_error():
    with pytest.raises(ValueError, match="no histograms"):
        history.draw(canvas.sheet(1, 1), [{"kind": "step", "step": 1}, {"kind": "evaluation", "step": 1, "AP": 0.5}])
