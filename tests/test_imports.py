"""``import pliant``, the layers and ``pliant doctor`` need torch and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pliant
from pliant.app import COMMANDS

SCRIPT = """
import importlib, sys, warnings
for name in ("numpy", "matplotlib", "PIL", "triton", "rich", "cv2", "sklearn", "scipy"):
    sys.modules[name] = None
    try:
        importlib.import_module(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} is not blocked")
warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # torch's own

import torch
import pliant
from pliant.app import main

x = torch.randn(1, 4, 5, 5, requires_grad=True)
y = pliant.nn.DeformConv2d(4, 6, 3, padding=1)(x)
y = pliant.nn.LocalResponseNorm(5)(y)
y.sum().backward()
assert x.grad.shape == x.shape and x.grad.isfinite().all() and x.grad.abs().sum() > 0
status = main(["doctor"])
assert [name for name in sys.modules if name.startswith("pliant.app.")] == ["pliant.app.doctor"]
sys.exit(status)
"""


# What the command line loads before a command runs: the console script imports pliant.app and calls main.
LIGHT = """
import sys
from pliant.app import main
try:
    main(sys.argv[1:])
except SystemExit as stopped:
    status = stopped.code
loaded = [name for name in sys.modules if name.partition(".")[0] in ("pliant", "torch", "numpy")]
assert sorted(loaded) == ["pliant", "pliant.app"], loaded
sys.exit(status)
"""

# What pliant loads on top of torch: modules of its own, and nothing else.
OWN = """
import sys
import torch
before = set(sys.modules)
import pliant
assert set(sys.modules) - before == {"pliant"}
pliant.ops, pliant.nn
print(*sorted(name for name in set(sys.modules) - before if name.partition(".")[0] != "pliant"))
"""


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", script, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_torch_alone_is_enough() -> None:
    done = run(SCRIPT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(" ok\n") == len(pliant.ops.__all__)


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--help"], 0, "train a detector"),
        (["--help", "doctor"], 0, "train a detector"),
        (["trian"], 2, "invalid choice: 'trian'"),
        (["trian", "train"], 2, "invalid choice: 'trian'"),
        (["--traceback", "trian"], 2, "invalid choice: 'trian'"),
        (["--trace", "train"], 2, "unrecognized arguments: --trace"),
        ([], 2, "the following arguments are required: COMMAND"),
    ],
)
def test_the_command_line_answers_without_torch(words: list[str], status: int, says: str) -> None:
    done = run(LIGHT, *words)
    assert done.returncode == status, done.stderr
    assert says in (done.stderr if status else done.stdout)
    if "trian" in words:
        assert all(command in done.stderr for command in COMMANDS)


def test_operators_and_layers_load_nothing_of_torch_that_is_heavy() -> None:
    done = run(OWN)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


NAMES = """
import pliant
assert {"nn", "ops"} <= set(dir(pliant)) and not hasattr(pliant, "layers")
from pliant import *
assert nn is pliant.nn and ops is pliant.ops
"""


def test_names_of_the_package() -> None:
    done = run(NAMES)
    assert (done.returncode, done.stderr) == (0, "")
