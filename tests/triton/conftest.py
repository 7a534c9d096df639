"""Triton's kernels without a GPU: interpreted on CPU tensors, or compiled ahead of time; one process can do one.

`make test-triton` runs both, TRITON_INTERPRET set to 1 and to 0. Without it nothing here is collected.
"""

from __future__ import annotations

import os

MODE = os.environ.get("TRITON_INTERPRET")
collect_ignore = {"1": ["compiled"], "0": ["interpreted"]}.get(MODE or "", ["compiled", "interpreted"])
