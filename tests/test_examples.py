"""Every example runs as a newcomer would run it, and prints what it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"


def _run(name: str) -> str:
    # One thread, and every warning an error.
    done = subprocess.run(
        [sys.executable, "-W", "error", FOLDER / name],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern + r"\s*([-+]?[0-9.]+(?:e[-+][0-9]+)?)", text)
    assert found, f"{pattern!r} is not in:\n{text}"
    return float(found[1])


def test_replace_a_convolution() -> None:
    out = _run("01_replace_a_convolution.py")
    assert _number("largest difference:", out) < 1e-5
    assert _number(r"mean \|offset\|", out) > 0


def test_look_elsewhere() -> None:
    out = _run("02_look_elsewhere.py")
    assert _number("deformable convolution 3×3: error", out) < 0.5 * _number("convolution 3×3:            error", out)
    assert _number("right:  samples moved by", out) > 0.5
    assert _number("left:   samples moved by", out) < -0.5


def test_local_response_norm() -> None:
    out = _run("03_local_response_norm.py")
    assert "first vector: [0.0714286, 0.0666667, 0.1, 0.137931]" in out
    assert "last vector:  [0.0107328, 0.0080515, 0.0083199, 0.0110919]" in out
    assert _number("largest difference of the two conventions:", out) < 1e-13


def test_three_settings() -> None:
    out = _run("04_three_settings.py")
    assert "the output is channels_last too: True" in out
    differences = [float(d) for d in re.findall(r"differs by (\S+)", out)]
    assert len(differences) == 4
    assert max(differences[:3]) < 1e-5
    assert 1e-4 < differences[3] < 5e-2


def test_watch_the_offsets() -> None:
    calm, exploding = _run("05_watch_the_offsets.py").split("Adam with 1, multiplier 1")
    assert "(4, 0.001)" in calm
    assert "warned" not in calm
    # The first layer leaves the map by far. The last bits decide whether the second one does.
    assert "warned: offsets of layer '2' explode" in exploding
    assert _number("step 30: layer 2: mean \\|offset\\|", exploding) > 240  # ten times the side of the map


def test_deform_a_network() -> None:
    out = _run("06_deform_a_network.py")
    assert _number("largest difference:", out) < 1e-5 * _number("of values up to", out)
    assert re.findall(r"(\d) layers", out) == ["4", "8", "3", "4"]
    assert "'layer3.0.conv1' moves its samples" in out
    assert "deformable in the end: 0" in out


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_is_short_and_tested(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60
    assert path.name in Path(__file__).read_text()
