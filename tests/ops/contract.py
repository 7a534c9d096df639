"""What the tests of every operator share: its problems, memory layouts, gradients, and the calls of raw operators."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pliant.ops.table import OPERATORS, Operator

IMPLEMENTATIONS = ("native", "reference")
DIFFERENTIABLE = tuple(op for op in OPERATORS if op.gradients)

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """One call of an operator: a case, settings beside its own, and the optional tensors that are left out."""

    op: Operator
    case: Any
    variant: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        more = [f"{key}={value}" for key, value in self.variant.items()] + [f"no {name}" for name in self.without]
        return "-".join([self.op.name, self.case.name, *more])

    @property
    def settings(self) -> dict[str, Any]:
        """Return every argument that is not a tensor, and None for the tensors left out."""
        return {**self.op.settings(self.case), **self.variant, **dict.fromkeys(self.without)}

    @property
    def gradients(self) -> tuple[str, ...]:
        return tuple(name for name in self.op.gradients if name not in self.without)

    def grown(self, step: int) -> Problem:
        return replace(self, case=self.case.grown(step))

    def tensors(self, dtype: torch.dtype = torch.float32, *, channels_last: bool = False) -> Tensors:
        map = getattr(self.case, "input", ())
        drawn = self.op.tensors(self.case, dtype, channels_last=channels_last and len(map) in (4, 5))
        return {name: t for name, t in drawn.items() if name not in self.without}

    def call(self, tensors: dict[str, Any], implementation: str = "auto") -> Tensor:
        return self.op.function(**tensors, **self.settings, implementation=implementation)


def optional(op: Operator) -> tuple[str, ...]:
    """Return the tensors that may be None."""
    parameters = inspect.signature(op.function).parameters
    return tuple(name for name in op.tensors(op.cases[0]) if "None" in parameters[name].annotation)


def problems(operators: Sequence[Operator] = OPERATORS, cases: int | None = None, small: bool = False) -> list[Problem]:
    """Return the problems of some operators: every case, or the first few, with every variant.

    The first case appears without each optional tensor and without all of them too.
    """
    found = []
    for op in operators:
        drawn = (op.small if small else op.cases)[:cases]
        found += [Problem(op, case, variant) for variant in op.variants for case in drawn]
        names = optional(op)
        left_out = {(name,): None for name in names} | ({names: None} if names else {})
        found += [Problem(op, drawn[0], {}, without) for without in left_out]
    return found


def each(given: Sequence[Problem]) -> pytest.MarkDecorator:
    """Run a test on problems."""
    return pytest.mark.parametrize("problem", given, ids=lambda problem: problem.name)


def each_operator(given: Sequence[Operator]) -> pytest.MarkDecorator:
    """Run a test on operators."""
    return pytest.mark.parametrize("op", given, ids=lambda op: op.name)


# Memory layouts: the map is the first tensor.


def channels_last(t: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return t.contiguous(memory_format=formats[t.dim()]) if t.dim() in formats else t


def sliced(t: Tensor) -> Tensor:
    """Return the same values at every second place of larger memory, dimensions in another order."""
    if not t.is_floating_point():
        return torch.stack([t, t + 1], -1)[..., 0]
    room = t.new_full([2 * n + 1 for n in reversed(t.shape)], torch.nan)
    view = room.permute(*reversed(range(t.dim())))[tuple(slice(1, None, 2) for _ in t.shape)]
    return view.copy_(t)


LAYOUTS: dict[str, Callable[[Tensors], Tensors]] = {
    "contiguous": lambda tensors: tensors,
    "channels_last": lambda tensors: {n: channels_last(t) if not i else t for i, (n, t) in enumerate(tensors.items())},
    "all channels_last": lambda tensors: {n: channels_last(t) for n, t in tensors.items()},
    "others channels_last": lambda tensors: {
        n: channels_last(t) if i else t for i, (n, t) in enumerate(tensors.items())
    },
    "sliced": lambda tensors: {n: sliced(t) for n, t in tensors.items()},
}


# Gradients.


def leaves(tensors: Tensors, names: Sequence[str]) -> Tensors:
    """Return the same values as leaves, of which the named ones require gradients."""
    return {name: t.detach().requires_grad_(name in names) for name, t in tensors.items()}


def above(output: Tensor) -> Tensor:
    """Draw the gradient of an output: rounded to its dtype, the same numbers for each of them."""
    random = torch.Generator().manual_seed(1)
    return torch.randn(output.shape, generator=random, dtype=torch.float64).to(output.dtype)


def differentiate(
    problem: Problem,
    tensors: Tensors,
    implementation: str = "auto",
    *,
    grad: Callable[[Tensor], Tensor] = above,
    names: Sequence[str] | None = None,
) -> Tensors:
    """Return the output under "output", and the gradients of the named tensors, or of all that have one."""
    names = problem.gradients if names is None else names
    given = leaves(tensors, names)
    output = problem.call(given, implementation)
    found = torch.autograd.grad(output, [given[n] for n in names], grad(output)) if names else ()
    return {"output": output.detach(), **dict(zip(names, found, strict=True))}


# Raw operators: what an exported graph calls.


@dataclass
class RawCall:
    """One call of an operator of ``torch.ops.pliant``."""

    function: Any
    arguments: tuple[Any, ...]
    result: Any

    @property
    def results(self) -> tuple[Tensor, ...]:
        return self.result if isinstance(self.result, tuple) else (self.result,)


@contextmanager
def recorded() -> Iterator[list[RawCall]]:
    """Record the calls of raw operators below autograd. The eager short cut is not taken meanwhile."""
    calls: list[RawCall] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func.namespace == "pliant":
                assert not kwargs
                calls.append(RawCall(func, tuple(args), result))
            return result

    with Recorder():
        yield calls


def raw_calls(problem: Problem, tensors: Tensors, names: Sequence[str] | None = None) -> list[RawCall]:
    """Return the forward call of a problem, and the backward call for the gradients of the named tensors."""
    with recorded() as calls:
        differentiate(problem, tensors, names=names)
    return calls
