"""``import pliant``, the layers and ``pliant doctor`` need torch and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pliant

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


def test_torch_alone_is_enough() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(" ok\n") == len(pliant.ops.__all__)
