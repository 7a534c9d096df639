"""The install line of README, the docs and every hint, run as a stranger runs it: in a clone, in a new environment."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pliant

ROOT = Path(__file__).parents[1]
# What a fresh clone does not have.
MADE = (".*", "build", "dist", "runs", "site", "__pycache__", "*.so", "*.egg-info")


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "CMakeLists.txt").is_file(), reason="the tests are not in a clone of the repository")
def test_the_install_line_installs_what_the_next_commands_need(tmp_path: Path) -> None:
    line = pliant._INSTALL.format(extra="train,study").partition(" in ")[0]
    assert line in (ROOT / "README.md").read_text(encoding="utf-8")
    clone, environment, elsewhere = tmp_path / "clone", tmp_path / "environment", tmp_path / "elsewhere"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(*MADE))
    elsewhere.mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    # The pinned torch, here and where pip builds: otherwise pip takes the newest one, with gigabytes for GPUs.
    pins = str(ROOT / "constraints.txt")
    variables = {**os.environ, "PIP_CONSTRAINT": pins, "PIP_BUILD_CONSTRAINT": pins}
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        variables.pop(name, None)

    def run(*words: str, where: Path = elsewhere) -> str:
        program = str(environment / "bin" / words[0])
        done = subprocess.run([program, *words[1:]], cwd=where, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    run("pip", "install", "torch")
    run(*shlex.split(line), where=clone)
    assert run("pliant", "--version").strip() == f"pliant {pliant.__version__}"
    assert run("pliant", "doctor").count("  ok\n") == len(pliant.ops.__all__)
    scene = clone / "src" / "pliant" / "app" / "explore" / "bundled" / "scene-1.png"
    run("pliant", "predict", "mdconv-c3-c5-mdpool", str(scene))
    assert len(json.loads((elsewhere / "runs" / "predict" / "detections.json").read_text())) > 1
    run("pliant", "show", "deform-v2-3", str(scene), "--evaluations", "2")
    assert (elsewhere / "runs" / "show" / "report.html").stat().st_size > 10_000
    help_ = run("pliant", "train", "detector", "--help")
    assert "--data.source" in help_
