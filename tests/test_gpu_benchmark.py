"""benchmarks/gpu.py runs from end to end without a GPU: its tensors are on the CPU, its clock is the processor's.

Its times then mean nothing. What is tested is the report: that it is complete, and that it names whatever fails.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from pliant.testing import NMS_CASES, DeformConvCase, LRNCase, RoICase

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


class _OnTheCPU(TorchFunctionMode):
    """The CPU stands in for a GPU."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        arguments = ["cpu" if isinstance(a, str) and a == "cuda" else a for a in arguments]
        named = {k: "cpu" if isinstance(a, str) and a == "cuda" else a for k, a in (named or {}).items()}
        return function(*arguments, **named)


class _Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: _Event) -> float:
        return 1e3 * (end.at - self.at)


class _Pool(contextlib.nullcontext):  # type: ignore[type-arg]
    """A pool that works in this process."""

    def __init__(self, processes: int) -> None:
        super().__init__(self)

    def map(self, call: Callable[..., Any], items: list[Any], chunksize: int) -> list[Any]:
        return [call(item) for item in items]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The benchmark, with small shapes, and without the libraries that it could compare with."""
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    monkeypatch.setattr(gpu, "DEFORM_CONV_SPEED", [DeformConvCase("S", (1, 4, 5, 6), 4)])
    monkeypatch.setattr(gpu, "LRN_SPEED", [LRNCase("A", (1, 6, 3, 3))])
    monkeypatch.setattr(gpu, "ROI_SPEED", [RoICase("R", (1, 4, 9, 8), 5)])
    monkeypatch.setattr(gpu, "NMS_SPEED", [NMS_CASES[2]] * 3)
    for name in ("torchvision", "mmcv", "deformops", "tvdcn"):
        monkeypatch.setitem(sys.modules, name, None)
    # A few calls each are enough.
    monkeypatch.setattr(gpu, "WARM_UPS", 0)
    monkeypatch.setattr(gpu, "launching", lambda contestant: 0.0)
    monkeypatch.setattr(gpu, "checks", lambda: {"something": "ok"})
    monkeypatch.setattr(gpu, "machine", lambda: {"device": "none"})
    monkeypatch.setattr(gpu.multiprocessing, "get_context", lambda kind: SimpleNamespace(Pool=_Pool))
    for name in ("synchronize", "_sleep", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **named: empty(*(min(n, 1 << 10) for n in size), **named))
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    with _OnTheCPU():
        yield gpu
    torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before


def _run(monkeypatch: pytest.MonkeyPatch, gpu: ModuleType, out: Path, *words: str) -> tuple[int, dict[str, Any]]:
    monkeypatch.setattr(
        sys, "argv", ["benchmarks/gpu.py", "--out", str(out), "--repeats", "2", "--minutes", "999", *words]
    )
    status = gpu.main()
    return status, json.loads(out.read_text()) if out.exists() else {}


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmarks/gpu.py"])
    assert gpu.main() == 1
    assert capsys.readouterr().out == "there is no GPU that torch can use: nothing is measured\n"


def test_everything_is_timed_and_checked(
    monkeypatch: pytest.MonkeyPatch, gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, report = _run(monkeypatch, gpu, tmp_path / "made" / "found.json")
    assert status == 0, capsys.readouterr().out
    assert not report["left_out"] and not report["build_failed"]
    entries = {(e["op"], e["batch"], e["precision"], e["mode"]) for e in report["results"]}
    modes = ("forward", "forward + backward")
    # Every combination that the README names.
    for precision, batch, mode in itertools.product(("float32", "tf32", "bfloat16", "float16"), (1, 16), modes):
        assert ("deform_conv2d", batch, precision, mode) in entries
    for op, batch in (("local_response_norm", 8), ("deform_roi_pool", 1), ("roi_align", 1), ("roi_pool", 1)):
        for precision, mode in itertools.product(("float32", "bfloat16"), modes):
            assert (op, batch, precision, mode) in entries
    for entry in report["results"]:
        own = [row for row in entry["rows"] if row["contestant"].startswith("pliant")]
        assert own and len(entry["rows"]) > len(own)
        assert all(row["right"] and 0 < row["q1_us"] <= row["median_us"] <= row["q3_us"] for row in own)
        # Times are relative to one of pliant's own, of which the time of launching is known too.
        assert [row["times_pliant"] for row in own if "launching_us" in row] == [1]
    # bfloat16 and the batch of 16 come first, because time may run out.
    assert [(e["precision"], e["batch"]) for e in report["results"]][:2] == [("bfloat16", 16)] * 2


def test_entries_reach_another_process(gpu: ModuleType) -> None:
    everything = gpu.entries(gpu.PARTS)
    assert pickle.loads(pickle.dumps(everything)) == everything


def test_peers_are_timed_where_they_can_be_imported(
    monkeypatch: pytest.MonkeyPatch, gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pliant import ops

    def convolve(
        input: Any, offset: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, mask: Any
    ) -> Any:
        if input.dtype == torch.bfloat16:
            raise RuntimeError("no bfloat16\nhere")
        geometry = {"stride": stride, "padding": padding, "dilation": dilation}
        return ops.deform_conv2d(input, offset, weight, bias, mask=mask, **geometry)

    for name, operators in (("torchvision", "ops"), ("deformops", "integrations")):
        for module in (name, f"{name}.{operators}", f"{name}.{operators}.torchvision"):
            monkeypatch.setitem(sys.modules, module, SimpleNamespace(deform_conv2d=convolve))
    status, report = _run(monkeypatch, gpu, tmp_path / "found.json", "--only", "conv")
    assert status == 0
    for entry in report["results"]:
        rows = {row["contestant"]: row for row in entry["rows"]}
        low = entry["precision"] == "bfloat16"
        assert rows["torchvision float32" if low else "torchvision"]["right"]
        # A peer that fails is a line of the table.
        assert rows["deformops"].get("failed") == ("RuntimeError: no bfloat16" if low else None)
    assert "deformops              RuntimeError: no bfloat16\n" in capsys.readouterr().out


def test_what_fails_and_what_is_wrong_is_reported_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *others = gpu.entries(["conv"])[:4]
    cases, build = gpu.PROBLEMS["deform_conv2d"]

    def broken(case: DeformConvCase, setting: Any) -> Any:
        if (case, setting) == (first.case, first.setting):
            raise torch.OutOfMemoryError("too little memory\nof 139 GiB")
        problem = build(case, setting)
        if (case, setting) == (second.case, second.setting):
            values = {"pliant nchw": 0.0, "pliant channels_last": float("nan")}
            contestants = [
                replace(c, run=lambda c=c: tuple(torch.full_like(x, values[c.name]) for x in c.run()))
                if c.name in values
                else c
                for c in problem.contestants
            ]
            return replace(problem, contestants=contestants)
        return problem

    monkeypatch.setitem(gpu.PROBLEMS, "deform_conv2d", (cases, broken))
    monkeypatch.setattr(gpu, "entries", lambda parts: [first, second, *others])
    status, report = _run(monkeypatch, gpu, tmp_path / "found.json")
    assert status == 1
    fails, wrong, *right = report["results"]
    assert fails["rows"] == [{"contestant": "pliant", "failed": "OutOfMemoryError: too little memory"}]
    assert [row["right"] for row in wrong["rows"] if row["contestant"].startswith("pliant")] == [False, False]
    assert all(row["right"] for e in right for row in e["rows"] if row["contestant"].startswith("pliant"))
    out = capsys.readouterr().out
    assert "3 of pliant's results wrong, checks failed: none" in out
    assert out.count("WRONG") == 2


def test_no_time_left(
    monkeypatch: pytest.MonkeyPatch, gpu: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, report = _run(monkeypatch, gpu, tmp_path / "found.json", "--minutes", "0", "--only", "lrn")
    assert (status, report) == (0, {})
    assert "0 timed, 4 left out for lack of time" in capsys.readouterr().out
