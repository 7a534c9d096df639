"""Operators inside torch's machinery: schema, fake tensors, torch.compile, torch.export, autocast, torch.func."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.testing._internal.optests import opcheck

from pliant import _native
from pliant.ops.table import OPERATORS, Operator
from pliant.testing import TOLERANCE, error

from .contract import (
    DIFFERENTIABLE,
    IMPLEMENTATIONS,
    LAYOUTS,
    Problem,
    Tensors,
    above,
    differentiate,
    each,
    each_operator,
    leaves,
    problems,
    raw_calls,
)

FIRST = [p for p in problems(cases=1) if not p.without]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


# Schemas and fake kernels.


# In torch 2.14 opcheck itself describes tensors that are no leaves.
@pytest.mark.filterwarnings(
    r"ignore:The \.grad attribute of a Tensor that is not a leaf:UserWarning:torch._subclasses.meta_utils"
)
@pytest.mark.parametrize(
    ("dtype", "layout"), [(torch.float32, "contiguous"), (torch.bfloat16, "channels_last")], ids=str
)
@each([p for p in problems(cases=1) if not p.variant and len(p.without) != 1])
def test_opcheck(problem: Problem, dtype: torch.dtype, layout: str) -> None:
    forward, *backward = raw_calls(problem, LAYOUTS[layout](problem.tensors(dtype)))
    names = [argument.name for argument in forward.function._schema.arguments]
    arguments = (
        a.detach().requires_grad_() if isinstance(a, Tensor) and name in problem.op.gradients else a
        for name, a in zip(names, forward.arguments, strict=True)
    )
    opcheck(forward.function, tuple(arguments), atol=1e-2, rtol=1e-2)
    for call in backward:
        grad, *rest = (a.detach() if isinstance(a, Tensor) else a for a in call.arguments)
        # Second derivatives of several tensors are long to trace, and gradgradcheck takes them too.
        grad.requires_grad_(len(problem.gradients) == 1)
        opcheck(call.function, (grad, *rest), atol=1e-2, rtol=1e-2)


def _same_as_fake(problem: Problem, tensors: Tensors) -> None:
    """Compare raw operators with their fake kernels: inductor lays out memory by what those say."""
    for call in raw_calls(problem, tensors):
        with FakeTensorMode(shape_env=ShapeEnv()) as mode:
            fake = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in call.arguments]
            claimed = call.function(*fake)
        for real, claim in zip(call.results, claimed if isinstance(claimed, tuple) else (claimed,), strict=True):
            assert (claim.dtype, claim.dim()) == (real.dtype, real.dim())
            if problem.op.whole:
                assert claim.shape == real.shape
                assert claim.stride() == real.stride() or not real.numel()
            else:
                assert isinstance(claim.shape[0], torch.SymInt)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each([p for p in problems() if not p.variant])
def test_fake_kernels_know_shapes_dtypes_and_strides(problem: Problem, dtype: torch.dtype) -> None:
    for change in LAYOUTS.values():
        _same_as_fake(problem, change(problem.tensors(dtype)))


# Sizes at which memory formats are ambiguous.
AMBIGUOUS = [(2, 4, 5), (2, 1, 1), (1, 6, 1), (1, 1, 5), (0, 4, 5)]


@pytest.mark.parametrize("size", AMBIGUOUS, ids=str)
@each([p for p in problems() if p.case.name in ("plain", "one_channel", "own_energy") and not p.variant])
def test_fake_kernels_know_ambiguous_strides(problem: Problem, size: tuple[int, int, int]) -> None:
    N, H, W = size
    axes = len(problem.case.kernel) if problem.op.family == "conv" else 2
    input = (N, problem.case.input[1], *(H, H, W)[-axes:])
    problem = replace(problem, case=replace(problem.case, input=input))
    if N == 0:
        problem = replace(problem, case=problem.case.empty())
    for last in (False, True):
        _same_as_fake(problem, problem.tensors(channels_last=last))


# torch.compile and torch.export.


def _network(problem: Problem, implementation: str = "auto") -> Callable[[Tensors], Tensor]:
    first = next(iter(problem.tensors()))

    def network(tensors: Tensors) -> Tensor:
        return problem.call({**tensors, first: tensors[first].relu()}, implementation) * 2

    return network


def _step(network: Callable[[Tensors], Tensor], problem: Problem, tensors: Tensors) -> list[Tensor]:
    given = leaves(tensors, problem.gradients)
    output = network(given)
    if problem.gradients:
        output.square().mean().backward()
    return [output.detach(), *(given[name].grad for name in problem.gradients)]


def _same_step(compiled: Any, network: Any, problem: Problem, tensors: Tensors, limit: float) -> None:
    pairs = zip(_step(compiled, problem, tensors), _step(network, problem, tensors), strict=True)
    for actual, expected in pairs:
        assert actual.dtype == expected.dtype
        assert error(actual, expected) < limit


@pytest.fixture
def free_sizes() -> Iterator[None]:
    """Sizes equal by chance are not equal by necessity, sizes may depend on values, and a scale is a constant."""
    duck = torch.fx.experimental._config.patch(use_duck_shape=False)
    with duck, torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, specialize_float=True):
        yield


@pytest.mark.usefixtures("free_sizes")
@each(FIRST)
def test_compiles_whole_and_dynamic(problem: Problem) -> None:
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        seen.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    network = _network(problem)
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=backend)
    for step in (1, 2, 4):
        tensors = problem.grown(step).tensors()
        _same_step(compiled, network, problem, tensors, TOLERANCE[torch.float32])
    assert len(seen) == 1, "other sizes must not be compiled anew"


# Importing inductor makes torch warn about itself.
@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.usefixtures("free_sizes")
@each_operator(OPERATORS)
def test_inductor(op: Operator) -> None:
    problem = Problem(op, op.cases[0])
    network = _network(problem)
    compiled = torch.compile(network, fullgraph=True, dynamic=True)
    _same_step(compiled, network, problem, problem.tensors(channels_last=True), TOLERANCE[torch.float32])


@each_operator([op for op in OPERATORS if op.traceable])
def test_the_reference_compiles_too(op: Operator) -> None:
    problem = Problem(op, op.cases[0])
    network = _network(problem, "reference")
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    _same_step(compiled, network, problem, problem.tensors(), TOLERANCE[torch.float32])


@each_operator(DIFFERENTIABLE)
def test_compiles_under_autocast(op: Operator) -> None:
    problem = Problem(op, op.cases[0])
    inner = _network(problem)

    def network(tensors: Tensors) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return inner(tensors)

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    _same_step(compiled, network, problem, problem.tensors(), TOLERANCE[torch.bfloat16])


class _Module(nn.Module):
    """A network that calls an operator on a dictionary of tensors."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.function, self.settings = problem.op.function, problem.settings
        self.names = tuple(problem.tensors())

    def forward(self, tensors: Tensors) -> Tensor:
        return self.function(**{name: tensors[name] for name in self.names}, **self.settings)


@pytest.mark.parametrize("strict", [False, True])
@each_operator(OPERATORS)
def test_export_keeps_one_node_and_free_sizes(op: Operator, strict: bool) -> None:
    problem = Problem(op, op.cases[0])
    module, tensors = _Module(problem), problem.tensors()
    free = {name: dict.fromkeys(range(t.dim()), torch.export.Dim.AUTO) for name, t in tensors.items()}
    program = torch.export.export(module, (tensors,), dynamic_shapes=(free,), strict=strict)
    nodes = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert sum(getattr(target, "namespace", "") == "pliant" for target in nodes) == 1
    other = problem.grown(3).tensors()
    assert torch.equal(program.module()(other), module(other))


# Autocast.


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@each_operator(DIFFERENTIABLE)
def test_autocast_runs_low_and_keeps_wide_tensors(op: Operator, low: torch.dtype, implementation: str) -> None:
    problem = Problem(op, op.cases[1])
    tensors = problem.tensors()
    given = leaves(tensors, op.gradients)
    with torch.autocast("cpu", low):
        output = problem.call(given, implementation)
        # What low layers before it produce is taken too, and float64 stays.
        first = next(iter(tensors))
        again = problem.call({**tensors, first: tensors[first].to(low)}, implementation)
        exact = problem.tensors(torch.float64)
        assert torch.equal(problem.call(exact, implementation), differentiate(problem, exact, implementation)["output"])
    assert output.dtype == again.dtype == low
    # The same as casting by hand: what is predicted is not rounded on the way.
    lowered = [name for name in op.gradients if name not in op.wide]
    rounded = {name: t.to(low) if name in lowered else t for name, t in tensors.items()}
    assert torch.equal(output, problem.call(rounded, implementation))
    assert torch.equal(output, again)
    assert error(output, problem.call(tensors, "reference")) < 4 * TOLERANCE[low]
    output.square().sum().backward()
    for name in op.gradients:
        gradient = given[name].grad
        assert gradient.dtype == torch.float32, name
        assert gradient.isfinite().all() and gradient.any(), name


@each_operator([op for op in OPERATORS if not op.gradients])
def test_autocast_leaves_operators_without_gradients_alone(op: Operator) -> None:
    problem = Problem(op, op.cases[0])
    expected = problem.call(problem.tensors())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(problem.call(problem.tensors()), expected)


# What the kernels do not have.


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own
@each_operator(DIFFERENTIABLE)
def test_forward_mode_runs_on_the_reference(op: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    # A kernel without a forward derivative would return tangents of zero and say nothing.
    monkeypatch.setattr(_native, "_warned", set())
    problem = Problem(op, op.small[-1])
    tensors, step = problem.tensors(torch.float64), 1e-6
    values = tuple(tensors[name] for name in op.gradients)
    ways = tuple(above(t) for t in values)

    def of(*given: Tensor, implementation: str = "auto") -> Tensor:
        return problem.call({**tensors, **dict(zip(op.gradients, given, strict=True))}, implementation)

    with pytest.warns(
        RuntimeWarning, match=f"^{op.name}: runs on the slow reference, the kernels have no forward-mode"
    ):
        _, tangent = torch.func.jvp(of, values, ways)
    ends = [of(*(v + sign * step * way for v, way in zip(values, ways, strict=True))) for sign in (1, -1)]
    assert error(tangent, (ends[0] - ends[1]) / (2 * step)) < 1e-6
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(of(*(forward_ad.make_dual(v, way) for v, way in zip(values, ways, strict=True))))
    assert torch.equal(found.tangent, tangent)
    with pytest.raises(
        RuntimeError, match=f'^{op.name}: implementation="native" is not possible here, the kernels have'
    ):
        torch.func.jvp(lambda *given: of(*given, implementation="native"), values, ways)


@each_operator(DIFFERENTIABLE)
def test_functional_transforms_run_on_the_reference(op: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch refuses to differentiate an operator of a library inside torch.func.grad.
    monkeypatch.setattr(_native, "_warned", set())
    problem = Problem(op, op.cases[0])
    tensors = problem.tensors(torch.float64)

    def loss(given: Tensors) -> Tensor:
        return problem.call({**tensors, **given}).square().sum()

    wanted = {name: tensors[name] for name in op.gradients}
    with pytest.warns(RuntimeWarning, match=f"^{op.name}: runs on the slow reference, torch.func does not see through"):
        found = torch.func.grad(loss)(wanted)
    given = leaves(wanted, op.gradients)
    loss(given).backward()
    for name in op.gradients:
        assert error(found[name], given[name].grad) < 1e-12, name
