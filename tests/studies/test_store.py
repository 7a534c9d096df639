from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pliant.studies import store
from pliant.studies.geometry import Study, Task

SETTINGS = {"profile": "quick", "epochs": 4, "range": (1.0, 2.0), "machine": {"jobs": 1}}


def Store(folder: Path, settings: dict[str, Any]) -> store.Store:
    return store.Store("geometry", folder, settings, Study.task_of)


def _result(seed: int, label: str = "plain") -> dict[str, Any]:
    return {"contestant": "plain", "training": "upright", "seed": seed, "label": label}


def test_resume(tmp_path: Path) -> None:
    first = Store(tmp_path / "out", SETTINGS)
    for seed in range(3):
        first.append(_result(seed, "naïve"))
    again = Store(tmp_path / "out", SETTINGS | {"machine": {"jobs": 7}})
    assert again.results == first.results
    assert again.finished == {Task("plain", "upright", seed) for seed in range(3)}
    assert again.notes == []
    assert again.model(Task("plain", "upright", 2)) == tmp_path / "out" / "models" / "plain-upright-2.pt"


@pytest.mark.parametrize("cut", [1, 20, 59])
def test_torn_last_line_is_dropped(tmp_path: Path, cut: int) -> None:
    first = Store(tmp_path, SETTINGS)
    first.append(_result(0))
    whole = first.path.read_bytes()
    first.append(_result(1))
    first.path.write_bytes(first.path.read_bytes()[:-cut])
    again = Store(tmp_path, SETTINGS)
    assert again.finished == {Task("plain", "upright", 0)}
    assert len(again.notes) == 1 and "the last line is torn" in again.notes[0]
    assert first.path.read_bytes() == whole
    again.append(_result(1))
    assert len(Store(tmp_path, SETTINGS).results) == 2


def test_damaged_line_inside(tmp_path: Path) -> None:
    first = Store(tmp_path, SETTINGS)
    first.append(_result(0))
    with first.path.open("a", encoding="utf-8") as file:
        file.write('{"contestant": "plain"}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*results\.jsonl is damaged; remove that line"):
        Store(tmp_path, SETTINGS)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    Store(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match=r"other settings \(epochs, new\); choose another folder with --out"):
        Store(tmp_path, SETTINGS | {"epochs": 5, "new": 1})
    (tmp_path / "settings.json").write_text('{"profile": "qu')
    with pytest.raises(ValueError, match=r"settings\.json is damaged"):
        Store(tmp_path, SETTINGS)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"[" * 5000, b"\x81"])
def test_settings_of_another_shape_are_named(tmp_path: Path, content: bytes) -> None:
    Store(tmp_path, SETTINGS)
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"settings\.json is damaged"):
        Store(tmp_path, SETTINGS)


@pytest.mark.parametrize(
    "line", [b"null", b"[]", b"[" * 5000, b"\x81", b'{"contestant": [], "training": 1, "seed": {}}']
)
def test_results_of_another_shape_are_named(tmp_path: Path, line: bytes) -> None:
    kept = Store(tmp_path, SETTINGS)
    kept.append(_result(0))
    kept.path.write_bytes(kept.path.read_bytes() + line + b"\n")
    with pytest.raises(ValueError, match=r"line 2 of .*results\.jsonl is damaged; remove that line"):
        Store(tmp_path, SETTINGS)


def test_of_two_results_of_a_run_the_later_counts(tmp_path: Path) -> None:
    kept = Store(tmp_path, SETTINGS)
    kept.append(_result(0))
    kept.append(_result(1))
    kept.append(_result(0, "later"))
    again = Store(tmp_path, SETTINGS)
    assert [(result["seed"], result["label"]) for result in again.results] == [(0, "later"), (1, "plain")]
    assert again.notes == [f"{kept.path}: line 3 is of a run that stands there already, and replaces it"]


def test_what_a_killed_study_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    left = [tmp_path / f"settings.json.{os.getpid()}.part", tmp_path / "models" / f"a.pt.{os.getpid()}.part"]
    for path in left:
        path.touch()
    Store(tmp_path, SETTINGS)
    assert not any(path.exists() for path in left)


def test_results_without_settings_are_refused(tmp_path: Path) -> None:
    Store(tmp_path, SETTINGS).append(_result(0))
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"has no settings\.json beside it"):
        Store(tmp_path, SETTINGS)


def test_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Store(tmp_path, SETTINGS)
    kept.append(_result(0))
    whole = kept.path.read_bytes()

    def full(file: int, data: bytes) -> None:
        os.write(file, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_write", full)
        with pytest.raises(OSError, match="No space left"):
            kept.append(_result(1))
    assert kept.path.read_bytes() == whole
    assert len(kept.results) == 1
    kept.append(_result(1))
    assert [json.loads(line)["seed"] for line in kept.path.read_text().splitlines()] == [0, 1]


def test_nan_is_no_result(tmp_path: Path) -> None:
    kept = Store(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="not JSON compliant"):
        kept.append({**_result(0), "accuracy": float("nan")})
    assert not kept.path.exists()
