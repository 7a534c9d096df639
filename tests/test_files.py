from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pliant._files import apart, load, replacing, text


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


def test_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    with replacing(path) as part:
        part.write_text("after")
    assert path.read_text() == "after"


def test_no_path_leads_from_an_output_to_an_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given, folder = tmp_path / "given", tmp_path / "folder"
    given.write_text("mine")
    folder.mkdir()
    (tmp_path / "symbolic").symlink_to(given)
    (tmp_path / "hard").hardlink_to(given)
    (tmp_path / "link").symlink_to(tmp_path)
    ways = (Path("given"), folder / ".." / "given", tmp_path / "symbolic", tmp_path / "hard", tmp_path / "link/given")
    for path in (given, *ways):
        with pytest.raises(ValueError, match=r"would overwrite .*given, which is read; write to another place"):
            apart([folder / "new", path], [folder, given])
        with pytest.raises(ValueError, match="would overwrite"):
            apart([given], [path])
    (folder / "given").write_text("mine, too")
    apart([folder / "given", folder / "new"], [given, tmp_path / "none"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_text_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "file").write_bytes("{Bär}".encode(encoding))
    said = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8", "cp1252": "Windows-1252"}.get(encoding, "UTF-16")
    assert text(tmp_path / "file") == ("{Bär}", said)


def test_a_file_with_one_wrong_bit_is_refused(tmp_path: Path) -> None:
    """What a bit does not change, such as the space between records, may change; no tensor and no number may."""
    path, random = tmp_path / "file.pt", torch.Generator().manual_seed(0)
    state = {"weight": torch.randn(64, 16, generator=random), "step": 7, "names": ["a", "b"]}
    torch.save(state, path)
    whole = bytearray(path.read_bytes())
    refused = 0
    for place in torch.randint(8 * len(whole), (400,), generator=random).tolist():
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            read = load(path)
        except ValueError:
            refused += 1
        else:
            assert read.keys() == state.keys() and (read["step"], read["names"]) == (7, ["a", "b"])
            assert torch.equal(read["weight"], state["weight"])
    assert refused > 300
    whole[len(whole) // 3] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"file\.pt is not .*, or is damaged \(BadZipFile: the checksum of its record"):
        load(path)
    whole[len(whole) // 3] ^= 1
    path.write_bytes(whole)
    assert torch.equal(load(path)["weight"], state["weight"])


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
