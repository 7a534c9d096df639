"""Random calls of every operator: kernels against references, and raw operators with arguments that do not fit.

The tests run a few examples; ``make fuzz MINUTES=60`` goes on for longer, with other examples each time. Each raw
call is noted in a file before it is made, so that one that ends the process is known.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from pliant.ops.table import OPERATORS, Operator
from pliant.testing import TOLERANCE

from .contract import (
    IMPLEMENTATIONS,
    LAYOUTS,
    Problem,
    Tensors,
    above,
    differentiate,
    each_operator,
    optional,
    raw_calls,
)
from .strategies import cases

FEW, MANY = 4, 50  # examples of a test, and of one round of many minutes
SELDOM, OFTEN = 8, 256  # wrong calls of one raw call: in a test, and where there are many minutes
# What a coordinate may be, and what a number in a raw call.
NOWHERE = (math.nan, math.inf, -math.inf, 3e38, -3e38, 1e19, -1e12, 2.0**31, -(2.0**33), 1e5, 1e-45, -1.0, -0.999999)
NUMBERS = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 7, 2**16, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1)
# How often a rounding error in what a kernel reads its result may be off by.
ROUNDINGS = 32


@dataclass
class Fuzz:
    """How long to go on, where the current raw call is noted, and how many calls there were, and were not refused."""

    minutes: float
    last: Path
    calls: int = 0
    fitted: int = 0

    @contextmanager
    def noting(self) -> Iterator[Callable[[str], None]]:
        """Yield what notes a call: what the file says outlives the process, and it is opened only once."""
        with self.last.open("wb", buffering=0) as file:

            def note(call: str) -> None:
                file.seek(0)
                file.truncate(file.write(call.encode()))

            yield note

    def run(self, check: Callable[[st.DataObject], None]) -> None:
        """Check examples: a few, the same each time, or others until the time is over."""
        end = time.monotonic() + 60 * self.minutes
        seed = time.time_ns() if self.minutes else 0
        while True:
            examples = hypothesis.settings(
                max_examples=MANY if self.minutes else FEW,
                database=None,
                deadline=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            hypothesis.seed(seed)(examples(hypothesis.given(st.data())(check)))()
            seed += 1
            if time.monotonic() >= end:
                return


@pytest.fixture
def fuzz(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    tests = sum(item.path == request.path for item in request.session.items)
    found = Fuzz(request.config.getoption("--minutes") / tests, tmp_path / "call.txt")
    yield found
    if found.minutes:
        with capsys.disabled():
            fitted = f" ({found.fitted} not refused)" if found.fitted else ""
            print(f"{request.node.name}: {found.calls} calls{fitted}; the last one is noted in {found.last}")


def _problem(op: Operator, data: st.DataObject) -> Problem:
    left_out = tuple(name for name in optional(op) if data.draw(st.booleans()))
    return Problem(op, data.draw(cases(op)), data.draw(st.sampled_from(op.variants)), left_out)


def _drawn(problem: Problem, data: st.DataObject, dtype: torch.dtype, spoilt: bool) -> Tensors:
    """Return the tensors of a problem, some of the coordinates out of this world."""
    seed = data.draw(st.integers(0, 2**31))
    tensors = problem.op.tensors(problem.case, dtype, seed=seed)
    random = torch.Generator().manual_seed(seed)
    for name, view in problem.op.beside(tensors).items():
        if spoilt and name not in ("mask", "attention_weights", "scores"):
            wild = torch.rand(view.shape, generator=random) < 0.2
            values = torch.tensor(NOWHERE, dtype=torch.float64)[
                torch.randint(len(NOWHERE), view.shape, generator=random)
            ]
            view.copy_(torch.where(wild, values.to(view.dtype), view))
    return {name: t for name, t in tensors.items() if name not in problem.without}


def _moved(tensors: Tensors, fixed: Tensors, seed: int) -> Tensors:
    """Return tensors with every value moved by one rounding error, but for those that are coordinates."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for name, t in tensors.items():
        if name in fixed or not t.is_floating_point():
            found[name] = t
            continue
        signs = torch.randint(2, t.shape, generator=random, dtype=torch.int8) * 2 - 1
        found[name] = t + t * (signs * torch.finfo(t.dtype).eps).to(t.dtype)
    return found


@each_operator(OPERATORS)
def test_kernels_agree_with_references(op: Operator, fuzz: Fuzz) -> None:
    def check(data: st.DataObject) -> None:
        problem, dtype = _problem(op, data), data.draw(st.sampled_from(op.dtypes))
        tensors = _drawn(problem, data, dtype, data.draw(st.booleans()))
        layout = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))]
        torch.set_num_threads(data.draw(st.integers(1, 2)))
        given = layout(tensors)
        found, expected = (differentiate(problem, given, i) for i in IMPLEMENTATIONS)
        fuzz.calls += 2 + 2 * bool(problem.gradients)
        # Sums may cancel: what rounding of the operands alone changes is no error of a kernel.
        fixed, changed = op.beside(op.tensors(problem.case, dtype)), []
        for seed in range(2):

            def grad(output: Tensor, seed: int = seed) -> Tensor:
                return _moved({"": above(output)}, {}, seed)[""]

            changed.append(differentiate(problem, _moved(tensors, fixed, seed), "reference", grad=grad))
        for name, actual in found.items():
            if not actual.is_floating_point():
                assert torch.equal(actual, expected[name]), name
                continue
            wanted = expected[name].double()
            assert actual.shape == wanted.shape, name
            assert torch.equal(actual.isfinite(), wanted.isfinite()), name
            if actual.numel() == 0:
                continue
            difference = torch.where(wanted.isfinite(), actual.double() - wanted, 0).abs().amax()
            scale = wanted.nan_to_num(0, 0, 0).abs().amax()
            moved = max((c[name].double() - wanted).nan_to_num(0, 0, 0).abs().amax() for c in changed)
            limit = TOLERANCE[dtype] * scale + ROUNDINGS * moved
            assert difference <= limit, f"{name}: {difference:.3g} > {limit:.3g}, of {scale:.3g}"

    fuzz.run(check)


@contextmanager
def little_memory() -> Iterator[None]:
    """Let allocations of more than a gigabyte fail, so that a size of 2³¹ ends in an error and not in swap."""
    if sys.platform != "linux" or "ASAN_OPTIONS" in os.environ:  # which has a limit of its own
        yield
        return
    resource = importlib.import_module("resource")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@each_operator(OPERATORS)
def test_raw_operators_survive_whatever_they_are_given(op: Operator, fuzz: Fuzz) -> None:
    def check(data: st.DataObject) -> None:
        problem = _problem(op, data)
        tensors = _drawn(problem, data, data.draw(st.sampled_from(op.dtypes)), data.draw(st.booleans()))
        random = Random(data.draw(st.integers(0, 2**31)))
        for call in raw_calls(problem, tensors):
            for _ in range(OFTEN if fuzz.minutes else SELDOM):
                arguments = list(call.arguments)
                for at in random.sample(range(len(arguments)), random.randint(1, 3)):
                    arguments[at] = _wrong(arguments[at], random)
                note(f"{call.function} {[_described(a) for a in arguments]}\n")
                fuzz.calls += 1
                try:
                    with little_memory():
                        result = call.function(*arguments)
                except (RuntimeError, TypeError, ValueError, NotImplementedError, OverflowError, MemoryError):
                    continue
                # It did fit: all that was written can be read.
                fuzz.fitted += 1
                for t in result if isinstance(result, tuple) else (result,):
                    assert t.device.type == "meta" or t.double().nan_to_num().sum().isfinite() in (True, False)

    with fuzz.noting() as note:
        fuzz.run(check)


def _described(value: Any) -> Any:
    return (value.dtype, tuple(value.shape), value.stride(), value.device) if isinstance(value, Tensor) else value


def _wrong(value: Any, random: Random) -> Any:
    """Return another argument of a raw call in place of this one."""
    if isinstance(value, Tensor) or value is None:
        return _wrong_tensor(torch.zeros(2, 3) if value is None else value, random)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice(NUMBERS)
    if isinstance(value, float):
        return random.choice((*NOWHERE, 0.0, 1.0))
    if isinstance(value, list | tuple):
        return random.choices(NUMBERS if value and isinstance(value[0], int) else (0,), k=random.randint(0, 4))
    return value


KINDS = ("none", "shorter", "longer", "empty", "flat", "more", "huge", "dtype", "meta", "order")


def _wrong_tensor(t: Tensor, random: Random) -> Any:
    kind = random.choice(KINDS)
    if kind == "none":
        return None
    if kind == "flat" or t.dim() == 0:
        return t.reshape(-1)
    if kind == "more":
        return t[None]
    if kind == "dtype":
        return t.to(random.choice((torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool)))
    if kind == "meta":
        return t.to("meta")
    at = random.randrange(t.dim())
    if kind == "order":
        return t.transpose(at, random.randrange(t.dim()))
    if kind == "huge":
        # As many elements as 64 bits count, in the memory of one.
        size = random.choice((2**31 - 1, 2**31, 2**40, 2**61))
        return t.new_zeros([1] * t.dim()).expand([size if d == at else 1 for d in range(t.dim())])
    length = {"shorter": t.shape[at] - 1, "longer": t.shape[at] + 1, "empty": 0}[kind]
    return t.new_zeros([max(length, 0) if d == at else n for d, n in enumerate(t.shape)])
