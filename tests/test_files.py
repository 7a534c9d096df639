from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pliant._files import apart, load, replacing, sweep, text


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


FULL = """
import errno, os, resource, sys, torch
from pathlib import Path
from pliant._files import load, replacing, save

path = Path(sys.argv[1])
save({"a": torch.zeros(4)}, path)
before = path.read_bytes()
# Where the disk is full decides where torch's writer fails: in a record, between two, or at the end.
for limit in (0, 100, 5000, 300_000, 795_000, 800_500):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for write in (lambda: save({"a": torch.randn(100_000), "b": torch.randn(100_000)}, path), None):
        try:
            if write is None:
                with replacing(path) as part:
                    part.write_bytes(bytes(900_000))
            else:
                write()
        except OSError as error:
            assert (error.errno, error.filename) == (errno.EFBIG, str(path)), error
        else:
            raise AssertionError(limit)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]
print("done")
"""


def test_a_full_disk_is_what_the_system_says(tmp_path: Path) -> None:
    """In a process of its own, whose files may not grow: torch's zip writer would end in an exception of its own."""
    words = [sys.executable, "-c", FULL, str(tmp_path / "file.pt")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_what_killed_processes_left_is_swept(tmp_path: Path) -> None:
    killed = subprocess.Popen(["true"])
    killed.wait()
    names = [f"a.{killed.pid}.part", f"b.pt.{os.getpid()}.part", f"a.{10**30}.part"]
    kept = [f"a.{os.getppid()}.part", "a.part", "a.x.part", ".5.part", "a.1"]
    for name in (*names, *kept):
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


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
