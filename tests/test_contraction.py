"""Where bins lie and which boxes overlap is computed without fused multiply-adds, whatever flags a build is given."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FUSED = re.compile(r"\bvfn?m(add|sub)")
# What a compiler does by default on arm64, on a processor level where the test can run.
FLAGS = "-march=x86-64-v3 -ffp-contract=fast"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="looks for x86-64 instructions with binutils"
)


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """How CMakeLists.txt compiles every file of csrc/ where the user's flags ask for fused multiply-adds."""
    build = tmp_path_factory.mktemp("build")
    cmake = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert cmake is not None, "there is no cmake here: make install puts one into .venv"
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
        "CMAKE_CXX_FLAGS": FLAGS,
        "Python_EXECUTABLE": sys.executable,
    }
    run([cmake, "-S", str(ROOT), "-B", str(build), *(f"-D{name}={value}" for name, value in settings.items())], build)
    entries = json.loads((build / "compile_commands.json").read_text())
    return {str(Path(entry["file"]).relative_to(ROOT)): shlex.split(entry["command"]) for entry in entries}


def fused(command: list[str], folder: Path) -> bool:
    """Return whether the object that a compile command makes has fused multiply-adds."""
    run([*command[: command.index("-o")], "-o", "object.o", *command[command.index("-o") + 2 :]], folder)
    listing = run(["objdump", "-d", "--no-show-raw-insn", "object.o"], folder)
    assert "file format" in listing
    return FUSED.search(listing) is not None


@pytest.mark.parametrize("file", ["csrc/roi/placement.cpp", "csrc/nms.cpp"])
def test_contraction_is_off(file: str, commands: dict[str, list[str]]) -> None:
    assert all(flag in commands[file] for flag in shlex.split(FLAGS))
    # The last flag counts.
    assert [flag for flag in commands[file] if flag.startswith("-ffp-contract")][-1] == "-ffp-contract=off"


def test_placement_has_no_fused_multiply_add(commands: dict[str, list[str]], tmp_path: Path) -> None:
    command = commands["csrc/roi/placement.cpp"]
    assert not fused(command, tmp_path)
    # There would be some without the flag of CMakeLists.txt for this file.
    assert fused([*command, "-ffp-contract=fast"], tmp_path)
