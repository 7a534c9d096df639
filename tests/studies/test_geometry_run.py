from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pliant.app import main
from pliant.data import FashionMNIST
from pliant.studies import runner, store
from pliant.studies.geometry import Protocol, Study, Task, build
from pliant.studies.geometry import study as geometry
from pliant.studies.geometry.protocol import STRENGTHS, epoch, exam, examinations
from pliant.studies.geometry.single import run_one
from pliant.train import Recipe

TINY = ["study", "geometry", "--quick", "--epochs", "1", "--pictures", "64"]


# Results are compared bit for bit with those of a study with a job for each core: each of its processes has one thread.
pytestmark = pytest.mark.usefixtures("one_thread")


def _tell(number: int, epochs: int) -> None:
    pass


def _run(task: Task, path: Path) -> dict[str, Any]:
    quick = Protocol.of("quick")
    protocol = replace(quick, recipe=replace(quick.recipe, epochs=1), train=64, test=16)
    data = Study(protocol, path, 1).load()
    return run_one(task, protocol, data, "cpu", path / "net.pt", _tell)


def _lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = [*TINY, "--jobs", "1", "--out", str(out), "--contestants", "plain,deform-v1-1"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "The quick study: few epochs, one seed. 4 runs of 1 epoch" in said
    assert "[4/4] deformable v1, 1 layer, augmented, seed 0: clean" in said
    assert "points against the best control" in said
    assert said.endswith(f"Report, with curves and figures: {out / 'report.html'}\n")
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")
    results = _lines(out)
    assert [(r["contestant"], r["training"]) for r in results] == [
        (c, t) for t in ("upright", "augmented") for c in ("plain", "deform-v1-1")
    ]
    for r in results:
        assert {kind: list(by) for kind, by in r["accuracy"].items()} == {
            "clean": ["0"],
            **{kind: [f"{s:g}" for s in strengths] for kind, strengths in STRENGTHS.items()},
        }
        assert (r["profile"], r["epochs"], r["seed"]) == ("quick", 1, 0)
        assert (r["effective_dilation"] is None) == (r["contestant"] == "plain")
        build(r["contestant"]).load_state_dict(
            torch.load(out / "models" / f"{r['contestant']}-{r['training']}-0.pt", weights_only=True)
        )
    deformed = results[1]
    assert {row["layer"] for row in deformed["effective_dilation"]} == {"conv5"} == set(deformed["spearman"])
    assert deformed["offsets"]["conv5"]["mean_abs"] > 0
    settings = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    assert (settings["data"]["train"], settings["data"]["test"]) == (64, 16)
    assert settings["inside"]["rotation"] == [15, 30]

    # Again: nothing is repeated. With another protocol: refused in one sentence.
    before = (out / "results.jsonl").read_bytes()
    assert main(command) == 0
    assert "4 of them finished before" in capsys.readouterr().out
    assert (out / "results.jsonl").read_bytes() == before
    assert main([*command, "--epochs", "2"]) == 2
    assert "holds results of other settings (epochs, optimiser); choose another" in capsys.readouterr().err


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*TINY, "--jobs", "2", "--out", str(out), "--contestants", "deform-v2-3"]) == 0
    one = _run(Task("deform-v2-3", "augmented", 0), tmp_path)
    (two,) = (r for r in _lines(out) if r["training"] == "augmented")
    # What came over JSON has the same keys and, bit for bit, the same numbers.
    assert _timeless(two) == _timeless(one)


def _timeless(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in ("train_seconds", "test_seconds")}


def test_same_seed_same_result(tmp_path: Path) -> None:
    first, second, other = (_run(Task("deform-v2-3", "augmented", seed), tmp_path) for seed in (3, 3, 4))
    assert _timeless(first) == _timeless(second)
    assert first["offsets"] != other["offsets"]


@pytest.mark.parametrize("broken", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_full_disk_and_interruption_keep_what_is_finished(
    tmp_path: Path, broken: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Task] = []

    def run_one(task: Task, *_: object) -> dict[str, Any]:
        if len(ran) == 1:
            raise broken
        ran.append(task)
        accuracy: dict[str, Any] = {}
        for kind, strength, _ in examinations():
            accuracy.setdefault(kind, {})[strength] = 0.5
        return {
            "contestant": task.contestant, "label": task.contestant, "training": task.training, "seed": task.seed,
            "profile": "quick", "accuracy": accuracy, "train_seconds": 1.0, "parameters": 1, "multiply_adds": 1,
        }  # fmt: skip

    monkeypatch.setattr(geometry, "run_one", run_one)
    command = [*TINY, "--jobs", "1", "--out", str(tmp_path), "--contestants", "plain"]
    assert main(command) == (1 if isinstance(broken, OSError) else 130)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "1 finished runs are kept in" in said and "the same command goes on from there" in said
    assert ("The disk is full" in said) == isinstance(broken, OSError)
    assert [r["training"] for r in _lines(tmp_path)] == ["upright"]
    if isinstance(broken, OSError):
        assert main([*command, "--traceback"]) == 1
        assert ", in run_one\n" in capsys.readouterr().err
    broken = KeyboardInterrupt()
    ran.clear()
    assert main(command) == 0
    assert [r["training"] for r in _lines(tmp_path)] == ["upright", "augmented"]


def test_a_failing_process_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong in a process arrives with its sentence, and nothing is left running."""
    (tmp_path / "taken").touch()
    study = Study(Protocol("quick", Recipe(1), 64, 16), tmp_path / "taken" / "x", 1, ("plain",), jobs=2)
    data = study.load()
    kept = store.Store("geometry", tmp_path / "out", {}, Study.task_of)
    # The processes save weights into study.out/models, for which there is no room: a file has the name of a folder.
    with pytest.raises((OSError, RuntimeError), match=r"taken") as failed:
        runner.run(study, kept, data, _Silent())
    assert "in run_one\n" in str(failed.value.__cause__)  # where it arose
    assert kept.results == []


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")
def test_no_process_outlives_a_study_that_is_killed(tmp_path: Path) -> None:
    command = [*TINY, "--seeds", "1000", "--jobs", "2", "--contestants", "plain", "--out", str(tmp_path)]
    started = [sys.executable, "-c", "from pliant.app import main; main()", *command]
    with subprocess.Popen(started, stdout=subprocess.PIPE, text=True) as study:
        next(line for line in study.stdout if line.startswith("[1/"))
        children = Path(f"/proc/{study.pid}/task/{study.pid}/children").read_text(encoding="utf-8").split()
        study.kill()
    try:
        assert len(children) >= 2
        until = time.monotonic() + 300  # a busy machine may take long to end them; a worker that stays, stays for good
        while any(map(_running, children)) and time.monotonic() < until:
            time.sleep(0.1)
        assert not any(map(_running, children))
    finally:
        for child in filter(_running, children):
            os.kill(int(child), signal.SIGKILL)


def _running(process: str) -> bool:
    """Say whether there is such a process: one that has ended and that nobody asked after is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class _Silent:
    def epoch(self, task: Task, epoch: int, epochs: int) -> None:
        pass

    def finished(self, task: Task, result: dict[str, Any]) -> None:
        pass


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, sentence in (
        (["--contestants", "plain,resnet"], "there is no contestant resnet; there are sift, plain"),
        (["--seeds", "0"], "at least 1 seed, got 0"),
        (["--jobs", "0"], "at least 1 job, got 0"),
        (["--device", "gpu"], "torch cannot compute on device 'gpu' here"),
        (["--device", "meta"], "torch cannot compute on device 'meta' here"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--pictures", "8"], "8 training images are less than one batch of"),
        (["--data", str(tmp_path / "nowhere")], "train-images-idx3-ubyte nor"),
    ):
        assert main([*TINY, "--out", str(tmp_path / "out"), *arguments]) == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tests_are_the_same_for_everyone() -> None:
    split = FashionMNIST.load().test.first(20)
    kinds = [(kind, strength) for kind, strength, _ in examinations()]
    assert kinds[0] == ("clean", "0") and len(kinds) == len(set(kinds)) == 1 + sum(map(len, STRENGTHS.values()))
    for _, _, ranges in examinations():
        (first, _), = exam(split, ranges)  # fmt: skip
        (second, labels), = exam(split, ranges)  # fmt: skip
        assert torch.equal(first, second) and torch.equal(labels, split.labels)


def test_epochs_differ_and_contestants_see_the_same() -> None:
    split = FashionMNIST.load().train.first(40)
    random, again = (torch.Generator().manual_seed(1) for _ in range(2))
    epochs = [list(epoch(split, "augmented", 16, random)) for _ in range(2)]
    assert [len(labels) for _, labels in epochs[0]] == [16, 16]
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])
    assert torch.equal(next(epoch(split, "augmented", 16, again))[0], epochs[0][0][0])
