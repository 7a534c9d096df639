"""Charts as text: well-formed, and drawn where the numbers are."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET

import pytest

from pliant.show.curves import HEIGHT, WIDTH, Curve, chart, extent, ticks


def positions(svg):
    return [(float(c.get("cx")), float(c.get("cy"))) for c in ET.fromstring(svg).iter("circle")]


def test_points_lie_in_proportion():
    svg = chart(
        [Curve("a & b", [0.5, 1, 2], [0.2, 0.4, 0.8], [0.1, 0.0, 0.1])], "t <1>", "x", y_range=(0, 1), logarithmic=True
    )
    (x0, y0), (x1, y1), (x2, y2) = positions(svg)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)  # coordinates are written with one decimal
    assert y0 - y1 == pytest.approx((y1 - y2) / 2, abs=0.11)
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in positions(svg))
    assert "a &amp; b, 0.5: 0.2 ± 0.1" in svg


def test_shading_stays_on_the_chart_and_bands_need_deviations():
    svg = chart([Curve("a", [1, 2], [1, 2])], "t", "x", shaded=(-5, 1.5))
    rect = next(e for e in ET.fromstring(svg).iter("rect"))
    (x0, _), (x1, _) = positions(svg)
    right = float(rect.get("x")) + float(rect.get("width"))
    assert float(rect.get("x")) < x0
    assert right == pytest.approx((x0 + x1) / 2, abs=0.2)
    assert "fill-opacity" not in svg
    assert "fill-opacity" in chart([Curve("a", [1, 2], [1, 2], [0, 1])], "t", "x")
    assert "<rect" not in chart([Curve("a", [1, 2], [1, 2])], "t", "x", shaded=(3, 4))


def test_labels_never_overlap():
    svg = chart([Curve("a", [0, 1, 2, 3, 50, 100], [0] * 6)], "t", "x")
    labels = [float(m) for m in re.findall(r'<text x="([\d.]+)" y="243"', svg)]
    assert len(labels) == 3
    assert all(b - a >= 30 for a, b in itertools.pairwise(labels))


def test_one_point_and_flat_curves():
    ET.fromstring(chart([Curve("a", [3], [0.0])], "t", "x"))
    assert extent([Curve("a", [1], [2.0])]) == (0.0, 4.0)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.33, 0.57, [0.35, 0.4, 0.45, 0.5, 0.55]), (-3, 12, [0, 5, 10])],
)
def test_ticks(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("curves", "kwargs", "says"),
    [([], {}, "the curves of 't' have no points"), ([Curve("a", [0], [1])], {"logarithmic": True}, "x > 0, got 0")],
)
def test_errors(curves, kwargs, says):
    with pytest.raises(ValueError, match=says):
        chart(curves, "t", "x", **kwargs)
