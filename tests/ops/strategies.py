"""Random cases of every operator, as strategies of hypothesis: for test_fuzz.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from pliant.ops.table import Operator
from pliant.testing import DCNCase, DeformConvCase, LRNCase, MSDeformAttnCase, NMSCase, RoICase

Draw = Callable[[st.SearchStrategy[Any]], Any]


def cases(op: Operator) -> st.SearchStrategy[Any]:
    """Return random cases of an operator: shapes that no kernel was written for, and no case of the tests has."""
    kind = type(op.cases[0])
    if kind not in _OF_KIND:
        raise LookupError(f"tests/ops/strategies.py draws no {kind.__name__}, which {op.name} needs")

    @st.composite
    def drawn(draw: Draw) -> Any:
        return _OF_KIND[kind](draw, op)

    return drawn()


def _whole(draw: Draw, least: int, most: int) -> int:
    found: int = draw(st.integers(least, most))
    return found


def _one_of(draw: Draw, *values: Any) -> Any:
    return draw(st.sampled_from(values))


def _axis(draw: Draw, longest: int, most_taps: int) -> tuple[int, int, int, int, int]:
    """Return the size of a map, kernel, stride, padding and dilation along one axis: the kernel fits."""
    n, k, s, d = _whole(draw, 1, longest), _whole(draw, 1, most_taps), _whole(draw, 1, 3), _whole(draw, 1, 3)
    needed = max(0, (d * (k - 1) + 2 - n) // 2)
    return n, k, s, needed + _whole(draw, 0, 2), d


def _conv(draw: Draw, op: Operator) -> DeformConvCase:
    axes, transposed = len(op.cases[0].kernel), op.cases[0].output_padding is not None
    # A volume has many more pixels than a map of the same sides.
    sides = (7, 3) if axes == 3 else (13, 5)
    size, kernel, stride, padding, dilation = zip(*(_axis(draw, *sides) for _ in range(axes)), strict=True)
    more = None
    if transposed:
        # What is cut off leaves at least one row and one column.
        whole = [(n - 1) * s + d * (k - 1) for n, s, d, k in zip(size, stride, dilation, kernel, strict=True)]
        padding = tuple(min(p, n // 2) for p, n in zip(padding, whole, strict=True))
        more = tuple(_whole(draw, 0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
    groups, offset_groups = _one_of(draw, 1, 1, 2, 3), _one_of(draw, 1, 2, 3)
    # Offset groups divide the channels of the larger map.
    moved, other = groups * offset_groups * _whole(draw, 1, 9), groups * _whole(draw, 1, 9)
    if draw(st.booleans()):
        # Columns that fill several vectors and panels.
        moved, other = moved * _one_of(draw, 1, 8), other * _one_of(draw, 1, 8)
    if _whole(draw, 0, 4) == 0:
        groups = other = moved
    C, O = (other, moved) if transposed else (moved, other)
    input = (_whole(draw, 1, 3), C, *size)
    return DeformConvCase("drawn", input, O, kernel, stride, padding, dilation, groups, offset_groups, more)


def _roi(draw: Draw, op: Operator) -> RoICase:
    Ph, Pw, part, group, classes = (_whole(draw, 1, 5) for _ in range(5))
    square, each = op.name == "deform_psroi_pool", _one_of(draw, 1, 2, 9, 40)
    Pw = Ph if square else Pw
    C = each * (classes * group**2 if square else Ph * Pw if op.name.startswith("ps") else 1)
    return RoICase(
        "drawn",
        (_whole(draw, 1, 3), C, _whole(draw, 1, 13), _whole(draw, 1, 13)),
        _one_of(draw, 0, 1, 3, 8),
        (Ph, Pw),
        _one_of(draw, 1.0, 0.25, 1 / 16, 1 / 3),
        _one_of(draw, -1, 0, 0, 1, 2, 5),
        group,
        part,
        _whole(draw, 1, 5),
        classes,
    )


def _lrn(draw: Draw, op: Operator) -> LRNCase:
    spatial = op.name == "local_response_norm" and draw(st.booleans())
    dims = _whole(draw, 4 if spatial else 2, 5)
    shape = [_one_of(draw, 1, 2, 3), *(_one_of(draw, 1, 2, 3, 5, 8, 17) for _ in range(dims - 1))]
    if dims < 5:
        shape[_whole(draw, 1, dims - 1)] *= _one_of(draw, 1, 1, 9, 31)
    size, even = _whole(draw, 1, 12), _one_of(draw, "left", "right")
    size += spatial and size % 2 == 0
    beta = _one_of(draw, 0.5, 0.75, 1.0, 0.6, 2.5, 0.0, -0.5)
    case = LRNCase("drawn", tuple(shape), size, beta=beta, even=even)
    return replace(case, region="spatial") if spatial else case


def _nms(draw: Draw, op: Operator) -> NMSCase:
    return NMSCase("drawn", _whole(draw, 0, 200), _whole(draw, 1, 20), _whole(draw, 1, 9))


def _attention(draw: Draw, op: Operator) -> MSDeformAttnCase:
    shapes = tuple((_whole(draw, 1, 7), _whole(draw, 1, 7)) for _ in range(_whole(draw, 1, 4)))
    points: int | tuple[int, ...] = _whole(draw, 1, 5)
    if draw(st.booleans()):
        points = tuple(_whole(draw, 1, 4) for _ in shapes)
    # Pixels that no level covers, at the end; levels one after another.
    S = sum(H * W for H, W in shapes) + _whole(draw, 0, 3)
    N, M, D = _whole(draw, 1, 3), _whole(draw, 1, 5), _one_of(draw, 1, 3, 8, 16, 32, 37)
    return MSDeformAttnCase("drawn", (N, S, M, D), _whole(draw, 0, 20), shapes, points)


def _dcn(draw: Draw, op: Operator) -> DCNCase:
    (H, Kh, sh, ph, dh), (W, Kw, sw, pw, dw) = _axis(draw, 13, 5), _axis(draw, 13, 5)
    groups = _whole(draw, 1, 4)
    C = groups * _one_of(draw, 1, 3, 8, 16, 37)
    # DCNv3 and DCNv4 leave out the centre of odd, square kernels of more than one tap alone.
    centre = Kh == Kw and Kh % 2 == 1 and Kh > 1 and draw(st.booleans())
    scale = _one_of(draw, 1.0, 0.5, 2.0)
    return DCNCase(
        "drawn", (_whole(draw, 1, 3), H, W, C), groups, (Kh, Kw), (sh, sw), (ph, pw), (dh, dw), scale, centre
    )


_OF_KIND: dict[type, Callable[[Draw, Operator], Any]] = {
    DeformConvCase: _conv,
    RoICase: _roi,
    LRNCase: _lrn,
    NMSCase: _nms,
    MSDeformAttnCase: _attention,
    DCNCase: _dcn,
}
