"""The problems of benchmarks/ on small shapes: every contestant computes the operator that it is timed for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import pliant
from pliant import _native
from pliant.ops.table import OPERATORS
from pliant.testing import (
    NMS_CASES,
    TOLERANCE,
    DCNCase,
    DeformConvCase,
    LRNCase,
    MSDeformAttnCase,
    NetworkCase,
    RoICase,
)

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ROI = RoICase("small", (1, 4, 9, 8), 5)
DCN = DCNCase("small", (2, 5, 6, 8), 2)
SMALL: dict[str, tuple[Any, ...]] = {
    "deform_conv2d": (
        DeformConvCase("small", (2, 4, 7, 6), 6, offset_groups=2),
        DeformConvCase("depthwise", (1, 4, 7, 6), 4, groups=4),
    ),
    "deform_conv3d": (DeformConvCase("small", (1, 4, 3, 5, 4), 6, *[(3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)]),),
    "deform_conv_transpose2d": (
        DeformConvCase("small", (2, 4, 5, 4), 6, (4, 4), (2, 2), output_padding=(0, 0), offset_groups=2),
    ),
    "ms_deform_attn": (
        MSDeformAttnCase("small", (2, 26, 2, 4), 5, ((4, 5), (2, 3))),
        MSDeformAttnCase("near", (1, 26, 2, 4), 26, ((4, 5), (2, 3)), near=2.0),
    ),
    "dcnv3": (DCN,),
    "dcnv4": (DCN,),
    "deform_roi_pool": (ROI,),
    "roi_align": (ROI,),
    "roi_pool": (ROI,),
    "local_response_norm": (LRNCase("small", (2, 11, 7, 6)),),
    "nms": NMS_CASES[:2],
    "networks": (NetworkCase("small", 10, (32, 48)),),
}
native = pytest.mark.skipif(_native.path is None, reason="there are no kernels")


@pytest.fixture(scope="module")
def problems() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import problems

        yield problems


def test_operators_are_those_of_the_table(problems: ModuleType) -> None:
    assert list(SMALL) == list(problems.PROBLEMS)
    timed = {op: cases for op, (cases, _) in problems.PROBLEMS.items() if op != "networks"}
    assert timed == {operator.name: operator.speed for operator in OPERATORS if operator.speed}


@native
@pytest.mark.parametrize(
    ("op", "case", "backward"),
    [
        pytest.param(op, case, backward, id=f"{op}-{case.name}-{'backward' if backward else 'forward'}")
        for op, cases in SMALL.items()
        for case in cases
        for backward in ((False,) if op in ("nms", "networks") else (False, True))
    ],
)
def test_contestants_agree_with_the_reference(problems: ModuleType, op: str, case: Any, backward: bool) -> None:
    from measuring import Setting

    _, build = problems.PROBLEMS[op]
    problem = build(case, Setting(backward=backward))
    names = [c.name for c in problem.contestants]
    assert len(set(names)) == len(names) and set(problem.limit) <= set(names)
    exact = problem.exact()
    errors = {c.name: c.error(lambda: exact) for c in problem.contestants if c.checked}
    assert len(errors) >= 2 and any(name.startswith("pliant") for name in errors)
    assert max(errors.values()) < TOLERANCE[torch.float32], errors


@native
def test_another_revision_computes_on_equal_tensors(problems: ModuleType, tmp_path: Path) -> None:
    import revision
    from measuring import Setting, rows

    # The other revision is this one without its cases, because those of the working tree are to be used.
    assert pliant.__file__ is not None and _native.path is not None
    site = tmp_path / "pliant"
    site.mkdir()
    for path in {*Path(pliant.__file__).parent.iterdir(), Path(_native.path)}:
        if path.name not in ("testing.py", "__pycache__"):
            (site / path.name).symlink_to(path)
    (site / "testing.py").write_text("raise ImportError('the cases of the other revision')")
    other = revision.Revision("other", tmp_path)
    try:
        cases, build = problems.PROBLEMS["deform_conv2d"]
        problem = build(cases[-1], Setting(backward=True, peers="none"))
        asked = {"op": "deform_conv2d", "case": cases[-1].name, "backward": True, "threads": 1}
        found = {row["contestant"]: row for row in rows(problem, 3, other.contestants(**asked))}
    finally:
        other.close()
    for layout in ("nchw", "channels_last"):
        ours, theirs = found[f"pliant {layout}"], found[f"pliant {layout} @ other"]
        assert theirs["median_ms"] > 0
        # The same code on the same tensors has the same error.
        assert theirs["error"] == ours["error"] < TOLERANCE[torch.float32]


def test_an_unknown_case_is_named(
    problems: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import run

    monkeypatch.setattr(sys, "argv", ["benchmarks/run.py", "--cases", "S1,S99"])
    with pytest.raises(SystemExit):
        run.main()
    assert "--cases: there is no S99, only S1, S2" in capsys.readouterr().err
