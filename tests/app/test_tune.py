"""`pliant tune` without a GPU: no kernel runs, and a clock says what the test tells it."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pliant import _native, app
from pliant.app import tune
from pliant.ops.gpu import tuned as _tuned

GPU = torch.device("cuda", 0)


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    assert app.main(["tune"]) == 2
    assert capsys.readouterr() == ("", "pliant tune: there is no GPU that torch can use: nothing to tune\n")


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("xpu", "--device xpu is not one of the GPUs that torch can use here: cuda"),
        ("gpu 1", "--device gpu 1: "),
        ("cuda:3", "the kernels do not run on cuda:3: Triton is not installed"),
        (None, "the kernels do not run on cuda:1: Triton is not installed"),
    ],
)
def test_a_gpu_that_cannot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], device: str | None, says: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    monkeypatch.setattr(_native, "_lacking", lambda kind, index: "Triton is not installed")
    assert app.main(["tune", *(["--device", device] if device else [])]) == 2
    assert capsys.readouterr().err.startswith(f"pliant tune: {says}")


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Nothing is known, and tensors of "the GPU" lie on the CPU; the file that it has in the user's cache."""
    pytest.importorskip("triton")
    monkeypatch.setattr(tune, "gpu", lambda name: torch.device("cpu"))
    monkeypatch.setattr(_tuned, "_known", {})
    monkeypatch.setattr(_tuned, "_cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Test 1 (PCIe)")
    monkeypatch.setattr(torch.cpu, "get_device_name", lambda device: "NVIDIA Test 1 (PCIe)", raising=False)
    before = torch.backends.cuda.matmul.fp32_precision
    yield _tuned.path(GPU)
    torch.backends.cuda.matmul.fp32_precision = before


def test_a_file_for_each_device_and_triton(file: Path) -> None:
    import triton

    assert file.name == f"nvidia-test-1-pcie-triton-{triton.__version__}.json"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str, object], float]], None]:
    """Return a call that says how long a kernel takes with sizes; kernels themselves compute nothing."""
    of = tune.of

    def still(*arguments: object) -> list[tune.Trial]:
        return [replace(trial, run=list) for trial in of(*arguments)]

    monkeypatch.setattr(tune, "of", still)

    def tell(takes: Callable[[str, object], float]) -> None:
        from pliant.ops.conv.triton import blocks

        monkeypatch.setattr(
            tune, "seconds", lambda trial: takes(trial.kernel, getattr(blocks, trial.kernel)(trial.shape))
        )

    return tell


def test_the_walk_ends_at_the_fastest_and_the_kernels_take_it(
    file: Path, clock: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    from pliant.ops.conv.triton import blocks

    def takes(kernel: str, size: blocks.Blocks) -> float:
        if kernel != "forward":
            # Within the noise.
            return 1e-4 if size.warps == 4 else 0.98e-4
        return 1e-5 * (1 + abs(size.P - 128) / 16 + abs(size.warps - 2) + abs(size.stages - 3))

    clock(takes)
    assert app.main(["tune", "--cases", "S4", "--batch", "1"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4
    name = "forward bfloat16: 64 channels, 64 outputs, 9 taps, up to 4096 positions"
    assert out[0].startswith(f"{name}: 90.0 µs, 10.0 µs with the best of ")
    assert out[0].endswith("; kept: P 128, O 64, C 32, taps 1, warps 2, stages 3")
    assert all(line.endswith("kept: the table's") for line in out[1:3])
    assert out[3] == f"1 new size in {file}"
    assert json.loads(file.read_text())["sizes"] == {name: [128, 64, 32, 1, 2, 3, None]}

    # As another process finds it.
    _tuned._known.clear()
    assert _tuned.known(GPU) == {name: [128, 64, 32, 1, 2, 3, None]}
    _tuned._known[torch.device("cpu")] = _tuned.known(GPU)
    forward, samples, _ = tune.of(tune.CASES["S4"], "bfloat16", torch.device("cpu"))
    assert blocks.forward(forward.shape) == blocks.Blocks(128, 64, 32, 1, 2, 3)
    assert blocks.samples(samples.shape) == blocks.TABLE["samples"](samples.shape)
    # A second time starts from the table again, and keeps what is not beaten.
    assert app.main(["tune", "--cases", "S4", "--batch", "1"]) == 0
    assert capsys.readouterr().out.startswith(f"{name}: 90.0 µs, 10.0 µs")
    assert len(json.loads(file.read_text())["sizes"]) == 1
    assert app.main(["tune", "--forget"]) == 0
    _tuned._known.clear()
    assert not file.exists() and not _tuned.known(GPU)
    assert "is deleted" in capsys.readouterr().out
    assert app.main(["tune", "--forget"]) == 0
    assert "was not there" in capsys.readouterr().out


def test_sizes_that_do_not_run_or_compute_something_else_are_passed_over(
    file: Path, clock: Callable[..., None]
) -> None:
    from pliant.ops.conv.triton import blocks

    clock(lambda kernel, size: 1.0 / (size.P * size.warps * size.stages))
    trial = tune.of(tune.CASES["S4"], "bfloat16", torch.device("cpu"))[0]

    def run() -> list[torch.Tensor]:
        size = blocks.forward(trial.shape)
        if size.warps > 8:
            raise RuntimeError("out of resources")
        return [torch.tensor([1.0, torch.nan if size.P > 128 else 2.0 if size.stages > 2 else 1.0])]

    best, _, _, tried, failed = tune.search(replace(trial, run=run), tune.seconds)
    assert best == blocks.Blocks(128, 64, 32, 1, 8, 2)
    assert 0 < failed < tried
    assert not _tuned.known(torch.device("cpu"))


def test_no_time_left(file: Path, clock: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    clock(lambda kernel, size: 1.0)
    assert app.main(["tune", "--cases", "S4", "--minutes", "-1"]) == 0
    name = "forward bfloat16: 64 channels, 64 outputs, 9 taps, up to 4096 positions"
    assert capsys.readouterr().out.splitlines() == [
        f"-1 minutes are over (--minutes); left out: {name}, and what comes after it",
        "nothing faster was found",
    ]
    assert not file.exists()


def test_a_shape_of_ones_own(file: Path, clock: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    clock(lambda kernel, size: 1.0)
    words = ["--input", "2,12,9,10", "--outputs", "20", "--kernel", "5", "--groups", "4", "--offset-groups", "3"]
    assert app.main(["tune", *words, "--batch", "1", "--dtypes", "tf32"]) == 0
    name = "forward tf32: 1 channels, 5 outputs, 25 taps, up to 256 positions"
    assert capsys.readouterr().out.startswith(name)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--cases", "S1,T1"], "--cases must be some of S1, S2, S3, S4, S5, S6, S7, S8, got T1"),
        (["--dtypes", "float64"], "--dtypes must be some of bfloat16, float16, float32, tf32, got 'float64'"),
        (["--batch", "one"], "--batch and --input must be whole numbers with commas between them"),
        (["--batch", "0"], "--batch must be positive, got 0"),
        (["--input", "3,4"], "--input must be four numbers, N,C,H,W, got 3,4"),
        (["--input", "1,4,5,5", "--groups", "3"], "--input and its sizes must be positive"),
    ],
)
def test_arguments_that_do_not_fit(file: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    assert app.main(["tune", *words]) == 2
    assert capsys.readouterr().err.startswith(f"pliant tune: {says}")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "does not hold sizes of kernels"),
        ('{"kernels": 1, "sizes": {"a": [64, 64, 32, 1, 3, 1, null]}}', "does not hold sizes of kernels"),
        ('{"kernels": 1, "sizes": {"a": [64, 64, 32, 1, 4, 0, null]}}', "does not hold sizes of kernels"),
        ('{"kernels": 1, "sizes": {"a": [64, 64, 32, 1, 4, 1, "168"]}}', "does not hold sizes of kernels"),
        ('{"kernels": 0, "sizes": {}}', "was tuned for another version of the kernels"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_once(file: Path, content: str, says: str) -> None:
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.warns(RuntimeWarning, match=says) as said:
        assert _tuned.known(GPU) == {}
    assert len(said) == 1
    assert str(file) in str(said[0].message)
    # Warnings are errors here.
    assert _tuned.known(GPU) == {}


@pytest.mark.parametrize(
    ("platform", "variables", "folder"),
    [
        ("linux", {"XDG_CACHE_HOME": "/caches"}, "/caches/pliant/tuned"),
        ("linux", {}, "/home/someone/.cache/pliant/tuned"),
        ("darwin", {"XDG_CACHE_HOME": "/caches"}, "/home/someone/Library/Caches/pliant/tuned"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/pliant/tuned"),
    ],
)
def test_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], folder: str
) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/someone"))
    monkeypatch.setattr(sys, "platform", platform)
    assert _tuned._cache() == Path(folder)


def test_who_has_no_home_has_no_tuned_sizes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(_tuned, "_known", {})
    monkeypatch.setattr(tune, "gpu", lambda name: GPU)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert _tuned.known(GPU) == {}
    assert app.main(["tune", "--forget"]) == 2
    assert capsys.readouterr().err.startswith("pliant tune: there is no folder for tuned sizes: Could not determine")


def test_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    # One run takes a millisecond by the device's clock; the first is no replay of a graph.
    runs: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = len(runs)

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: Event) -> float:
            return 1.0 * (end.at - self.at)

    class Graph:
        def replay(self) -> None:
            runs.extend(["replayed"] * 10)

    devices = types.SimpleNamespace(Event=Event, device=lambda device: nullcontext())
    monkeypatch.setattr(torch, "get_device_module", lambda device: devices)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())
    for device in (GPU, torch.device("xpu", 0)):
        runs.clear()
        shape = types.SimpleNamespace(device=device)
        trial = tune.Trial("forward", shape, torch.float32, lambda: runs.append("run") or [], "name")
        assert tune.seconds(trial) == pytest.approx(1e-3)
        assert runs.count("replayed") == (50 if device == GPU else 0)
        assert runs.count("run") == (11 if device == GPU else 51)
