"""Every instruction level that the processor has: the tests around this one run at the highest, here run the others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pliant import _native

LEVELS = ("baseline", "v3", "v4")
HERE = Path(__file__).parent
RUNS = _native.instruction_level().removeprefix("x86-64-")
LOWER = LEVELS[: LEVELS.index(RUNS)] if RUNS in LEVELS else ()
# What has loops of its own for a level.
TESTS = ("conv/test_products.py", "local_response_norm/test_values.py", "test_reference.py", "test_bits.py")

pytestmark = [
    pytest.mark.skipif(_native.path is None, reason="there are no kernels"),
    pytest.mark.skipif("PLIANT_LEVEL" in os.environ, reason="this is the inner run"),
]


def _run(level: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PLIANT_LEVEL": level}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("level", LOWER)
def test_kernels_at_a_lower_level(level: str) -> None:
    # Of the bits those of float32 alone: all types would take a minute per level.
    only = "not other_products and not an_image_alone and (products or conv or local_response)"
    only += " and (not test_bits or float32)"
    ran = _run(level, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", only, *(str(HERE / test) for test in TESTS))
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("level", LEVELS)
def test_the_level_that_was_asked_for_runs(level: str) -> None:
    ran = _run(level, "-c", "from pliant import _native; print(_native.instruction_level())")
    if level in (*LOWER, RUNS):
        assert ran.returncode == 0 and ran.stdout.strip().removeprefix("x86-64-") == level
    else:
        assert f"has, {RUNS}; got {level}" in ran.stderr


def test_a_level_that_there_is_not_is_refused_when_kernels_are_loaded() -> None:
    ran = _run("v5", "-c", "import pliant.ops")
    message = f"PLIANT_LEVEL must be baseline, v3 or v4, and at most what this processor has, {RUNS}; got v5"
    assert ran.returncode != 0 and ran.stderr.splitlines()[-1] == f"ValueError: {message}"
