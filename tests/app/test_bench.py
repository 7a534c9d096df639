from __future__ import annotations

import json
from pathlib import Path

import pytest

import pliant
from pliant import app


def test_a_case_is_timed_beside_its_limit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    assert app.main(["bench", "--op", "lrn", "--cases", "G1", "--repeats", "3", "--backward", "--out", str(out)]) == 0
    (result,) = json.loads(out.read_text())["results"]
    assert (result["op"], result["case"], result["threads"]) == ("lrn", "G1", 1)
    rows = {row["contestant"]: row for row in result["rows"]}
    assert list(rows) == ["clone", "copy_", "pliant nchw", "pliant channels_last", "torch nchw", "torch channels_last"]
    limit = 2 * rows["clone"]["median_ms"] + 0.5 * rows["copy_"]["median_ms"]
    shown = capfd.readouterr().out
    for name, row in rows.items():
        assert name in shown
        assert 0 < row["min_ms"] <= row["q1_ms"] <= row["median_ms"] <= row["q3_ms"]
        assert row["ratio_to_limit"] == pytest.approx(row["median_ms"] / limit, rel=0.02, abs=1e-3)
        assert (row["error"] is None) == (name in ("clone", "copy_"))
    assert rows["pliant nchw"]["error"] < 1e-6


def test_an_installed_package_has_no_benchmarks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pliant, "__file__", str(tmp_path / "lib" / "pliant" / "__init__.py"))
    assert app.main(["bench"]) == 2
    assert capsys.readouterr().err.count("checkout") == 1
