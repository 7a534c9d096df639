from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import pliant
from pliant import app
from pliant.ops import local_response_norm
from pliant.testing import TOLERANCE, LRNCase, error

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

# Of what pliant is installed from; a wheel has no benchmarks.
CHECKOUT = Path(pliant.__file__).parents[2] / "benchmarks"


@pytest.mark.skipif(not CHECKOUT.is_dir(), reason="pliant is not installed from a checkout")
def test_a_case_is_timed_and_checked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    words = ["bench", "--op", "lrn", "--cases", "G1", "--repeats", "3", "--backward", "--out", str(out)]
    status = app.main(words)
    shown, complaints = capfd.readouterr()
    assert status == 0, shown + complaints
    (result,) = json.loads(out.read_text())["results"]
    assert (result["op"], result["case"], result["threads"]) == ("local_response_norm", "G1", 1)
    rows = {row["contestant"]: row for row in result["rows"]}
    assert list(rows) == ["clone", "copy_", "pliant nchw", "pliant channels_last", "torch nchw", "torch channels_last"]
    assert result["limit"] == {"clone": 2.0, "copy_": 0.5}
    for name, row in rows.items():
        assert name in shown
        assert row["samples"] == 3 and row["min_ms"] > 0
        assert (row["error"] is None) == (name in ("clone", "copy_"))
    assert rows["pliant nchw"]["error"] < 1e-6


class Scripted:
    """A contestant whose calls take what is written down: what is made of times needs no clock, and no idle machine."""

    def __init__(self, name: str, warm_up: float, samples: list[float], turns: list[str]) -> None:
        self.name, self.turns, self.counts = name, turns, []
        self.times = iter([99.0, warm_up, *samples])

    def seconds(self, count: int) -> float:
        self.turns.append(self.name)
        self.counts.append(count)
        return count * next(self.times)

    def memory(self) -> float:
        return 3.0 * 2**20

    def error(self, exact: Callable[[], tuple[torch.Tensor, ...]]) -> float:
        return float(exact()[0])


def test_times_become_medians_beside_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "measuring", raising=False)
    import measuring

    turns: list[str] = []
    clone = Scripted("clone", 4e-4, [4e-3, 2e-3, 8e-3, 6e-3, 10e-3], turns)
    copy = Scripted("copy_", 2e-3, [1e-3] * 5, turns)
    own = Scripted("own", 0.5, [0.025, 7.0, 0.025, 0.025, 0.020], turns)  # the machine once did something else
    problem = measuring.Problem("", "", [clone, copy, own], {"clone": 2.0, "copy_": 0.5}, lambda: (torch.tensor(0.25),))
    rows = {row.pop("contestant"): row for row in measuring.rows(problem, 5)}

    same = {"error": 0.25, "samples": 5, "memory_mb": 3.0}
    keys = ("min_ms", "q1_ms", "median_ms", "q3_ms", "ratio_to_limit")
    assert rows == {
        "clone": dict(zip(keys, (2.0, 4.0, 6.0, 8.0, 0.48), strict=True)) | same,
        "copy_": dict(zip(keys, (1.0, 1.0, 1.0, 1.0, 0.08), strict=True)) | same,
        "own": dict(zip(keys, (20.0, 25.0, 25.0, 25.0, 2.0), strict=True)) | same,
    }
    # Short calls are repeated until a sample takes 2 ms, as the last warm-up says; samples are taken in turns.
    assert (clone.counts, copy.counts, own.counts) == ([1, 1] + [5] * 5, [1] * 7, [1] * 7)
    assert turns == ["clone"] * 2 + ["copy_"] * 2 + ["own"] * 2 + ["clone", "copy_", "own"] * 5


def test_an_installed_package_has_no_benchmarks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pliant, "__file__", str(tmp_path / "lib" / "pliant" / "__init__.py"))
    assert app.main(["bench"]) == 2
    assert capsys.readouterr().err.count("checkout") == 1
    assert app.main(["bench", "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: pliant bench") and "checkout" in said


@pytest.mark.skipif(not CHECKOUT.is_dir(), reason="pliant is not installed from a checkout")
def test_help_names_the_command_that_was_typed(capfd: pytest.CaptureFixture[str]) -> None:
    assert app.main(["bench", "--help"]) == 0
    said = capfd.readouterr().out
    assert said.startswith("usage: pliant bench") and "--peers" in said and "run.py" not in said


def test_help_without_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pliant, "__file__", str(tmp_path / "a" / "b" / "pliant" / "__init__.py"))
    assert app.main(["bench", "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: pliant bench") and "`make bench` in a checkout" in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= 100


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
