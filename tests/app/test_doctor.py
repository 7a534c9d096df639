from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

import pliant
from pliant import _native, app
from pliant.app import doctor
from pliant.ops.roi.reference import averages
from pliant.ops.table import OPERATORS


def test_every_operator_is_checked_and_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for name in pliant.ops.__all__:
        assert re.search(rf"^{name} +forward \S+  backward +\S+  second +\S+  integers +\S+  ok$", out, re.MULTILINE), (
            name
        )
    assert max(map(len, out.split("integers")[-1].splitlines())) <= 100
    for text in (pliant.__version__, torch.__version__, str(_native.path), _native.instruction_level()):
        assert text in out


def test_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = next(operator for operator in OPERATORS if operator.name == "lrn")

    def wrong(input: torch.Tensor, implementation: str, **settings: float) -> torch.Tensor:
        factor = 1.001 if implementation == "native" else 1.0
        return factor * pliant.ops.lrn(input, **settings, implementation="reference")

    monkeypatch.setattr(doctor, "OPERATORS", (replace(right, function=wrong), right))
    assert app.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("wrong") and lines[-2].endswith("failed")
    assert lines[-1].startswith("lrn") and lines[-1].endswith("ok")


def test_a_one_sided_derivative_of_the_wrong_side_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a reference is that relies on torch's gradient of clamp at its bounds, which changed in 2.14."""

    def left_sided(position: torch.Tensor, extent: int) -> torch.Tensor:
        inside = (position > 0) & (position < extent - 1)
        return torch.where(inside, position, position.detach().clamp(0, extent - 1))

    monkeypatch.setattr(averages, "into_map", left_sided)
    wrong = [operator for operator in OPERATORS if operator.name in ("deform_roi_pool", "deform_psroi_pool")]
    for operator in wrong:
        found = doctor.errors(operator)
        assert found["integers"] > 0.01 > 1e-5 > max(found["forward"], found["backward"], found["second"])
    monkeypatch.setattr(doctor, "OPERATORS", wrong)
    assert app.main(["doctor"]) == 1
    assert capsys.readouterr().out.count("  failed\n") == 2


def test_missing_kernels_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_native, "path", None)
    monkeypatch.setattr(_native, "reason", "pliant/_C.so is not installed beside the Python files")
    assert app.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "kernels  none: pliant/_C.so is not installed" in out
    assert re.search(r"^deform_conv2d +failed: .*not installed", out, re.MULTILINE)
    assert app.main(["doctor", "--traceback"]) == 1
    assert capsys.readouterr().err.count("in _report") == len(OPERATORS)
