from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import pliant
from pliant import app
from pliant.ops import local_response_norm
from pliant.testing import TOLERANCE, LRNCase, error

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_case_is_timed_beside_its_limit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    assert app.main(["bench", "--op", "lrn", "--cases", "G1", "--repeats", "3", "--backward", "--out", str(out)]) == 0
    (result,) = json.loads(out.read_text())["results"]
    assert (result["op"], result["case"], result["threads"]) == ("local_response_norm", "G1", 1)
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


@pytest.mark.parametrize("size", [3, 5])
def test_onednn_answers_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "peers", raising=False)
    import peers

    case = LRNCase("small", (2, 11, 7, 6), size)
    t = case.tensors(channels_last=True)
    try:
        runs = [peers.onednn_lrn(case, t, backward) for backward in (False, True)]
    except LookupError as reason:
        pytest.skip(str(reason))
    x = t["input"].double().requires_grad_()
    y = local_response_norm(x, **case.arguments, implementation="reference")
    expected = (y.detach(), *torch.autograd.grad(y, x, t["grad"].double()))
    for count, run in enumerate(runs, 1):
        found = run()
        assert len(found) == count
        assert all(f.is_contiguous(memory_format=torch.channels_last) for f in found)
        assert max(map(error, found, expected)) < TOLERANCE[torch.float32]


def test_a_peer_that_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "peers", raising=False)
    import peers

    monkeypatch.setenv("CXX", "no-such-compiler")
    case = LRNCase("small", (2, 11, 7, 6))
    t = case.tensors(channels_last=True)
    makers = {"oneDNN": lambda: peers.onednn_lrn(case, t, True), "here": lambda: 1}
    assert list(peers.available(makers)) == [("here", 1)]
