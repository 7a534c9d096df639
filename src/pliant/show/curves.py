"""Curves with bands as SVG: text stays sharp, and colours follow the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 12, 30, 44
_LABEL = 30  # minimum distance of two labels on the horizontal axis


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Args:
        label: shown when the pointer is over a point.
        x: where it was measured, ascending.
        mean: the line.
        sd: half the height of the band around the line; None draws no band.
        color: any CSS colour, also ``var(--name)``.
        dash: stroke-dasharray, "" for a solid line.
        width: of the line in pixels.
        name: class of the SVG group, so that a page can hide it.
    """

    label: str
    x: Sequence[float]
    mean: Sequence[float]
    sd: Sequence[float] | None = None
    color: str = "currentColor"
    dash: str = ""
    width: float = 2.0
    name: str = ""


def chart(
    curves: Sequence[Curve],
    title: str,
    x_label: str,
    *,
    y_label: str = "",
    y_range: tuple[float, float] | None = None,
    shaded: tuple[float, float] | None = None,
    logarithmic: bool = False,
    percent: bool = False,
) -> str:
    """Draw curves as one SVG element that scales with its column.

    Args:
        curves: what to draw; later ones are drawn on top.
        title: above the chart.
        x_label: below the horizontal axis, with the unit.
        y_label: along the vertical axis, with the unit.
        y_range: limits of the vertical axis; None: those of the curves and bands.
        shaded: range of x with a shaded background, cut off at the ends of the axis.
        logarithmic: make the horizontal axis logarithmic.
        percent: label the vertical axis in percent.

    Returns:
        The text of an `<svg>` element. It uses the CSS variables ``--rule`` (grid), ``--faint`` (labels) and
        ``--shade`` (shaded background), and ``currentColor``.

    Raises:
        ValueError: no curve has a point, or x ≤ 0 on a logarithmic axis.
    """
    xs = sorted({float(x) for curve in curves for x in curve.x})
    if not xs:
        raise ValueError(f"chart: the curves of {title!r} have no points")
    if logarithmic and xs[0] <= 0:
        raise ValueError(f"chart: a logarithmic axis needs x > 0, got {xs[0]}")
    low, high = y_range or extent(curves)
    place = math.log if logarithmic else float
    first, last = place(xs[0]), place(xs[-1])
    span = (last - first) or 1.0

    def across(x: float) -> float:
        return _LEFT + 8 + (WIDTH - _LEFT - _RIGHT - 16) * ((place(x) - first) / span if last > first else 0.5)

    def down(y: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (min(max(y, low), high) - low) / (high - low)

    name = escape(f"{title}: {x_label}", quote=True)
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">']
    if shaded is not None:
        left = across(max(shaded[0], xs[0])) - (8 if shaded[0] <= xs[0] else 0)
        right = across(min(shaded[1], xs[-1])) + (8 if shaded[1] >= xs[-1] else 0)
        if right > left:
            height = HEIGHT - _TOP - _BOTTOM
            parts.append(f'<rect x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" height="{height}" '
                         'style="fill:var(--shade)"/>')  # fmt: skip
    text = 'font-size="12" style="fill:var(--faint)"'
    for tick in ticks(low, high):
        y, label = down(tick), f"{100 * tick:.0f}%" if percent else f"{tick:g}"
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" style="stroke:var(--rule)"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" {text}>{label}</text>')
    taken = -math.inf
    for x in xs:
        if across(x) - taken >= _LABEL:
            taken = across(x)
            parts.append(
                f'<text x="{taken:.1f}" y="{HEIGHT - _BOTTOM + 17}" text-anchor="middle" {text}>{round(x, 2):g}</text>'
            )
            parts.append(f'<path d="M{taken:.1f} {HEIGHT - _BOTTOM}v4" style="stroke:var(--faint)"/>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle" {text}>{escape(x_label)}</text>')
    across_ = (_TOP + HEIGHT - _BOTTOM) / 2
    turned = f'transform="rotate(-90 13 {across_})" text-anchor="middle"'
    parts.append(f'<text x="13" y="{across_}" {turned} {text}>{escape(y_label)}</text>')
    bold = 'font-size="14" font-weight="600" fill="currentColor" xml:space="preserve"'
    parts.append(f'<text x="{_LEFT}" y="18" {bold}>{escape(title)}</text>')
    for curve in curves:
        parts.append(_curve(curve, across, down))
    parts.append("</svg>")
    return "".join(parts)


def extent(curves: Sequence[Curve]) -> tuple[float, float]:
    """Return the limits of curves and their bands, with a margin of 5 %."""
    bands = [(m, s) for c in curves for m, s in zip(c.mean, c.sd or [0.0] * len(c.mean), strict=True)]
    low, high = min(m - s for m, s in bands), max(m + s for m, s in bands)
    margin = 0.05 * (high - low) or abs(high) or 1.0
    return low - margin, high + margin


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most `most` + 1 round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten.

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    start = math.ceil(low / step - 1e-9)
    return [round(step * (start + i), 12) for i in range(math.floor(high / step + 1e-9) - start + 1)]


def _curve(curve: Curve, across, down) -> str:  # type: ignore[no-untyped-def]
    paint, dash = f"stroke:{curve.color}", f' stroke-dasharray="{curve.dash}"' if curve.dash else ""
    points = [(across(x), down(y)) for x, y in zip(curve.x, curve.mean, strict=True)]
    parts = [f'<g class="{escape(curve.name, quote=True)}">' if curve.name else "<g>"]
    if curve.sd is not None and len(points) > 1:
        above = [f"{across(x):.1f} {down(m + s):.1f}" for x, m, s in zip(curve.x, curve.mean, curve.sd, strict=True)]
        below = [f"{across(x):.1f} {down(m - s):.1f}" for x, m, s in zip(curve.x, curve.mean, curve.sd, strict=True)]
        outline = "L".join(above + below[::-1])
        parts.append(f'<path d="M{outline}Z" style="fill:{curve.color}" fill-opacity="0.13"/>')
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    parts.append(f'<path d="M{line}" fill="none" style="{paint}" stroke-width="{curve.width}" '
                 f'stroke-linejoin="round"{dash}/>')  # fmt: skip
    for i, (x, y) in enumerate(points):
        spread = f" ± {curve.sd[i]:.3g}" if curve.sd is not None else ""
        says = escape(f"{curve.label}, {curve.x[i]:g}: {curve.mean[i]:.3g}{spread}")
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{1.3 + curve.width / 2:.1f}" style="fill:{curve.color}">'
            f"<title>{says}</title></circle>"
        )
    return "".join(parts) + "</g>"
