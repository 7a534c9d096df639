"""benchmarks/gpu.py runs from end to end without a GPU: its tensors lie on the CPU, its clock is the processor's.

What it says is then no figure; that it says it, whatever is missing or fails, is what is tested.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
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
    """Whoever asks for a GPU gets the CPU."""

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
    """Processes that are this one."""

    def __init__(self, processes: int) -> None:
        super().__init__(self)

    def map(self, call: Callable[..., Any], items: list[Any], chunksize: int) -> list[Any]:
        return [call(item) for item in items]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The benchmark, with small shapes, two repeats, and no torchvision and no deformops."""
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("gpu", "gpu_checks", "gpu_problems"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import gpu
    import gpu_problems

    monkeypatch.setattr(gpu_problems, "DEFORM_CONV_SPEED", [DeformConvCase("S", (1, 4, 5, 6), 4)])
    monkeypatch.setattr(gpu_problems, "LRN_SPEED", [LRNCase("A", (1, 6, 3, 3))])
    monkeypatch.setattr(gpu_problems, "ROI_SPEED", [RoICase("R", (1, 4, 9, 8), 5)])
    monkeypatch.setattr(gpu_problems, "NMS_SPEED", [NMS_CASES[2]] * 3)
    find = importlib.util.find_spec
    hidden = ("torchvision", "deformops")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in hidden else find(name, *rest))
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
    # What was promised, in every combination.
    for precision, batch, mode in itertools.product(("float32", "tf32", "bfloat16", "float16"), (1, 16), modes):
        assert ("deform_conv2d", batch, precision, mode) in entries
    for op, batch in (("local_response_norm", 256), ("deform_roi_pool", 1), ("roi_align", 1), ("roi_pool", 1)):
        for precision, mode in itertools.product(("float32", "bfloat16"), modes):
            assert (op, batch, precision, mode) in entries
    for entry in report["results"]:
        own = next(row for row in entry["rows"] if row["contestant"] == "pliant")
        assert own["right"] and 0 < own["q1_us"] <= own["median_us"] <= own["q3_us"]
        assert len(entry["rows"]) >= 2
    # bfloat16 and the batch of 16 come first: time may end.
    assert [(e["precision"], e["batch"]) for e in report["results"]][:2] == [("bfloat16", 16)] * 2


def test_peers_stand_beside_where_they_can_be_imported(
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
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: True)
    status, report = _run(monkeypatch, gpu, tmp_path / "found.json", "--only", "conv")
    assert status == 0
    for entry in report["results"]:
        rows = {row["contestant"]: row for row in entry["rows"]}
        low = entry["precision"] == "bfloat16"
        assert rows["torchvision float32" if low else "torchvision"]["right"]
        # A peer that cannot is a line of the table.
        assert rows["deformops"].get("failed") == ("RuntimeError: no bfloat16" if low else None)
    assert "deformops              RuntimeError: no bfloat16\n" in capsys.readouterr().out


def test_what_fails_and_what_is_wrong_is_said_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch, gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = gpu.problems

    def broken(options: Any) -> list[Any]:
        found = problems(options)[:4]

        def fails() -> Any:
            raise torch.OutOfMemoryError("too little memory\nof 139 GiB")

        def wrong() -> Any:
            return [replace(c, run=lambda: (torch.zeros(16, 4, 5, 6),)) for c in contestants()]

        contestants = found[1].contestants
        return [replace(found[0], contestants=fails), replace(found[1], contestants=wrong, mode="forward"), *found[2:]]

    monkeypatch.setattr(gpu, "problems", broken)
    status, report = _run(monkeypatch, gpu, tmp_path / "found.json", "--only", "conv")
    assert status == 1
    first, second, *others = report["results"]
    assert first["rows"] == [{"contestant": "pliant", "failed": "OutOfMemoryError: too little memory"}]
    assert next(row for row in second["rows"] if row["contestant"] == "pliant")["failed"].startswith("ValueError")
    assert all(row["right"] for e in others for row in e["rows"] if row["contestant"] == "pliant")
    out = capsys.readouterr().out
    assert "2 of pliant's results wrong, checks failed: none" in out


def test_no_time_left(
    monkeypatch: pytest.MonkeyPatch, gpu: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, report = _run(monkeypatch, gpu, tmp_path / "found.json", "--minutes", "0", "--only", "lrn")
    assert (status, report) == (0, {})
    assert "0 timed, 8 left out for lack of time" in capsys.readouterr().out
