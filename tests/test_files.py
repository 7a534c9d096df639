from __future__ import annotations

import os
from pathlib import Path

import pytest

from pliant._files import replacing


def test_what_was_there_stays_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with replacing(path) as part:
        part.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(UnicodeEncodeError), replacing(path) as part:
        part.write_text("half, then \ud800", encoding="utf-8")
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]


def test_two_processes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, own = tmp_path / "file", os.getpid()
    with replacing(path) as part:
        part.write_text("first")
        monkeypatch.setattr("pliant._files.os.getpid", lambda: own + 1)
        with replacing(path) as other:
            other.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["file"]
