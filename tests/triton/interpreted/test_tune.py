"""Every size that `pliant tune` may try computes what the table's does: run by the interpreter, on CPU tensors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pliant.app import tune
from pliant.ops.conv.triton import blocks
from pliant.ops.gpu import tuned as _tuned
from pliant.testing import DeformConvCase

SMALL = DeformConvCase("small", (1, 20, 2, 3), 18, (1, 2), padding=(0, 0))
DEPTHWISE = DeformConvCase("depthwise", (1, 18, 2, 3), 18, (1, 2), padding=(0, 0), groups=18)


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_tuned, "_known", {})
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize(
    ("case", "kernel"),
    [
        *((SMALL, kernel) for kernel in tune.KERNELS),
        *(pytest.param(DEPTHWISE, kernel, marks=pytest.mark.slow) for kernel in tune.KERNELS),
    ],
    ids=lambda what: getattr(what, "name", what),
)
def test_every_neighbour_computes_the_same(case: DeformConvCase, kernel: str) -> None:
    device = torch.device("cpu")
    trial = next(t for t in tune.of(case, "float32", device) if t.kernel == kernel)
    sizes = []

    def timer(trial: tune.Trial) -> float:
        sizes.append(getattr(blocks, kernel)(trial.shape))
        return 1.0

    best, before, after, tried, failed = tune.search(trial, timer)
    # None is faster: the neighbours of the table's are all that is tried, and all are right.
    table = blocks.TABLE[kernel](trial.shape)
    assert sizes == [table, *blocks.neighbours(trial.shape, kernel, table)]
    assert (best, before, after, tried, failed) == (table, 1.0, 1.0, len(sizes), 0)
    assert len(sizes) > 4
    assert not _tuned.known(device)
