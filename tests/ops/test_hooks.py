"""Operators and layers where others look inside: checkpointing, hooks of saved tensors, torch.fx, overridden functions.

A part is an operator or a layer as a module that takes one map; what else it reads are its parameters and buffers.
"""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from pliant.nn import (
    DCNv3,
    DCNv4,
    DeformConv1d,
    DeformConv2d,
    DeformConv3d,
    DeformConvTranspose2d,
    DeformPSRoIPool,
    DeformRoIPool,
    LocalResponseNorm,
    MSDeformAttn,
)
from pliant.ops.table import OPERATORS, Operator

from .contract import DIFFERENTIABLE, Problem, each_operator, leaves, raw_calls


class Alone(nn.Module):
    """An operator on one of its cases, differentiable tensors as parameters and others as buffers."""

    def __init__(self, op: Operator) -> None:
        super().__init__()
        problem = Problem(op, op.cases[0])
        self.function, self.settings = op.function, problem.settings
        (self.first, self.drawn), *others = problem.tensors().items()
        self.names = [name for name, _ in others]
        for name, t in others:
            if name in op.gradients:
                self.register_parameter(f"own_{name}", nn.Parameter(t))
            else:
                self.register_buffer(f"own_{name}", t)

    def forward(self, x: Tensor) -> Tensor:
        others = {name: getattr(self, f"own_{name}") for name in self.names}
        return self.function(**{self.first: x, **others}, **self.settings)


class OnBoxes(nn.Module):
    """A layer that pools boxes; with score maps where it takes these and the features apart."""

    def __init__(self, layer: nn.Module, scores: Tensor | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("rois", torch.tensor([[0.0, 0, 0, 5, 6], [1, 2, 1, 7, 5], [1, 3, 3, 6, 8]]))
        self.register_buffer("scores", scores)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, self.rois) if self.scores is None else self.layer(self.scores, x, self.rois)


class OnPixels(nn.Module):
    """A layer that takes channels last, or pixels in one dimension; attention asks at the pixels of one level."""

    def __init__(self, layer: nn.Module, size: tuple[int, int] = (9, 8)) -> None:
        super().__init__()
        self.layer, self.size = layer, size
        self.register_buffer("reference", torch.linspace(0.1, 0.9, 2 * 72 * 2).view(2, 72, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, DCNv3):
            return self.layer(x.permute(0, 2, 3, 1))
        pixels = x.flatten(2).transpose(1, 2)
        if isinstance(self.layer, DCNv4):
            return self.layer(pixels, self.size)
        return self.layer(pixels, self.reference, pixels, [self.size])


class Reshaped(nn.Module):
    """A layer of sequences or volumes, made of the pixels of a map."""

    def __init__(self, layer: nn.Module, *size: int) -> None:
        super().__init__()
        self.layer, self.size = layer, size

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(2, 4, *self.size))


class Root(nn.Module):
    """A module around a part, without annotations: torch.fx cannot pickle those that are strings."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "DeformConv2d v1": lambda: DeformConv2d(4, 6, 3, padding=1, version=1),
    "DeformConv2d v2": lambda: DeformConv2d(4, 6, (2, 3), padding="same", version=2, offset_groups=2),
    "DeformConv1d": lambda: Reshaped(DeformConv1d(4, 6, 3, padding=1), 72),
    "DeformConv3d": lambda: Reshaped(DeformConv3d(4, 6, (2, 3, 1), padding="same", offset_groups=2), 3, 3, 8),
    "DeformConvTranspose2d": lambda: DeformConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    "DeformRoIPool v1": lambda: OnBoxes(DeformRoIPool((3, 2), 4, version=1)),
    "DeformRoIPool v2": lambda: OnBoxes(DeformRoIPool((3, 2), 4, version=2, hidden=(8,), separate_mask_trunk=True)),
    "DeformPSRoIPool": lambda: OnBoxes(DeformPSRoIPool(2, 4), torch.randn(2, 8, 9, 8)),
    "MSDeformAttn": lambda: OnPixels(MSDeformAttn(4, 1, 2, 3)),
    "MSDeformAttn discrete": lambda: OnPixels(MSDeformAttn(4, 1, 2, 3, method="discrete")),
    "DCNv3": lambda: OnPixels(DCNv3(4, groups=2, center_feature_scale=True)),
    "DCNv4": lambda: OnPixels(DCNv4(4, groups=2, dw_kernel_size=3, center_feature_scale=True)),
    "LocalResponseNorm": lambda: LocalResponseNorm(5, 0.5),
    "LocalResponseNorm spatial": lambda: LocalResponseNorm(3, 0.5, region="spatial"),
}
PARTS: dict[str, Callable[[], nn.Module]] = {op.name: partial(Alone, op) for op in DIFFERENTIABLE} | LAYERS
each_part = pytest.mark.parametrize("name", PARTS)


def _part(name: str) -> tuple[nn.Module, Tensor]:
    """Return a part and the map it takes."""
    torch.manual_seed(0)
    part = PARTS[name]()
    if name in LAYERS:
        with torch.no_grad():
            for parameter in part.parameters():
                # Branches start at zero: nothing would move.
                parameter.copy_(0.2 * torch.randn(parameter.shape))
        x = torch.randn(2, 4, 9, 8)
    else:
        x = part.drawn
    return part, x


def _gradients(part: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Return the output of a function, and the gradients of its input and of a part's parameters."""
    leaf = x.detach().clone().requires_grad_()
    output = function(leaf)
    # By name: a traced module holds its parameters in the order of their use.
    wanted = [leaf, *(parameter for _, parameter in sorted(part.named_parameters()))]
    for t in wanted:
        t.grad = None
    output.square().sum().backward()
    return [output.detach(), *(t.grad for t in wanted)]


def _equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert expected[1].any()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_every_layer_of_the_table_is_here() -> None:
    assert {op.layer for op in OPERATORS if op.layer} == {name.partition(" ")[0] for name in LAYERS}


REGIONS: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "alone": lambda part: part,
    "first": lambda part: lambda x: part(x).tanh(),
    "last": lambda part: lambda x: part(x.tanh()),
    "between": lambda part: lambda x: part(x.tanh()).tanh(),
}


@pytest.mark.parametrize("nested", [False, True], ids=["once", "nested"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize("place", REGIONS)
@each_part
def test_gradient_checkpointing(name: str, place: str, reentrant: bool, nested: bool) -> None:
    part, x = _part(name)
    region = REGIONS[place](part)
    calls = []
    counted = part.register_forward_pre_hook(lambda *_: calls.append(None))
    expected = _gradients(part, region, x)
    assert len(calls) == 1
    again = partial(checkpoint, region, use_reentrant=reentrant)
    if nested:
        again = partial(checkpoint, lambda x: checkpoint(region, x, use_reentrant=reentrant), use_reentrant=reentrant)
    _equal(_gradients(part, again, x), expected)
    assert len(calls) > 2, "nothing was computed again"
    counted.remove()


def test_checkpointed_layers_in_a_row() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(DeformConv2d(4, 4, 3, padding=1) for _ in range(3)), LocalResponseNorm(3))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    x = torch.randn(2, 4, 9, 8)

    def run(x: Tensor) -> Tensor:
        for layer in net:
            x = checkpoint(layer, x, use_reentrant=False)
        return x

    _equal(_gradients(net, run, x), _gradients(net, net, x))


@each_part
def test_saved_tensors_on_the_cpu(name: str) -> None:
    part, x = _part(name)
    expected = _gradients(part, part, x)

    def run(x: Tensor) -> Tensor:
        with save_on_cpu():
            return part(x)

    _equal(_gradients(part, run, x), expected)


@each_part
def test_hooks_of_saved_tensors_see_every_tensor_once(name: str) -> None:
    part, x = _part(name)
    expected = _gradients(part, part, x)
    packed: list[Tensor] = []
    unpacked: list[int] = []

    def pack(t: Tensor) -> int:
        packed.append(t.detach().clone())
        return len(packed) - 1

    def unpack(i: int) -> Tensor:
        unpacked.append(i)
        return packed[i]

    def run(x: Tensor) -> Tensor:
        with saved_tensors_hooks(pack, unpack):
            return part(x)

    _equal(_gradients(part, run, x), expected)
    assert packed
    assert sorted(unpacked) == list(range(len(packed)))


@each_operator(DIFFERENTIABLE)
def test_what_hooks_pack_is_all_that_is_kept(op: Operator) -> None:
    problem = Problem(op, op.cases[0])
    given = {n: t * 1 if n in op.gradients else t for n, t in leaves(problem.tensors(), op.gradients).items()}
    alive = {name: weakref.ref(given[name]) for name in op.gradients}
    with saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
        output = problem.call(given)
    given.clear()
    assert output.grad_fn is not None
    assert [name for name, ref in alive.items() if ref() is not None] == []


@each_part
def test_what_a_hook_changes_is_what_backward_reads(name: str) -> None:
    part, x = _part(name)
    expected = _gradients(part, part, x)

    def run(x: Tensor) -> Tensor:
        with saved_tensors_hooks(lambda t: t, lambda t: torch.zeros_like(t)):
            return part(x)

    found = _gradients(part, run, x)
    assert torch.equal(found[0], expected[0])
    assert not all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", [KeyError, RuntimeError, ValueError, NotImplementedError])
@each_part
def test_an_exception_of_a_hook_passes(name: str, kind: type[Exception]) -> None:
    part, x = _part(name)
    leaf = x.requires_grad_()

    # Once: whoever catches it and tries again would hide it.
    times = [1, 1]

    def refuse(t: Any, which: int) -> Any:
        times[which] -= 1
        if times[which] >= 0:
            raise kind("a hook's own")
        return t

    with saved_tensors_hooks(partial(refuse, which=0), lambda t: t), pytest.raises(kind, match="a hook's own"):
        part(leaf)
    with saved_tensors_hooks(lambda t: t, partial(refuse, which=1)):
        output = part(leaf)
    with pytest.raises(kind, match="a hook's own"):
        output.sum().backward()


@pytest.mark.filterwarnings("ignore:Warning only once for all operators:UserWarning")  # torch's own
@each_operator(OPERATORS)
def test_an_exception_of_the_kernel_passes(op: Operator) -> None:
    # The kernels' own refusal makes the checks look for words; everything else is not a refusal.
    problem = Problem(op, op.cases[0])
    tensors = problem.tensors()
    (call, *_) = raw_calls(problem, tensors)
    name = call.function.name().partition("::")[2]

    calls: list[Any] = []

    def broken(*given: Any) -> Any:
        calls.append(given)
        raise RuntimeError("out of memory")

    for given in (tensors, leaves(tensors, problem.gradients)):
        calls.clear()
        with torch.library._scoped_library("pliant", "IMPL") as library:
            library.impl(name, broken, "CPU", allow_override=True)
            with pytest.raises(RuntimeError, match="out of memory"):
                problem.call(given)
        assert len(calls) == 1, "it was called again"


# torch.fx and overridden functions.


@each_part
def test_fx_traces_operators_as_leaves(name: str) -> None:
    part, x = _part(name)
    traced = torch.fx.symbolic_trace(Root(part))
    called = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    public = [op.function for op in OPERATORS]
    operators = [target for target in called if target in public]
    if name in LAYERS:
        assert operators
    else:
        assert called == operators == [next(op.function for op in OPERATORS if op.name == name)]
    expected = _gradients(part, part, x)
    _equal(_gradients(traced, traced, x), expected)
    for twin in (copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        _equal(_gradients(twin, twin, x), expected)


@each_operator([op for op in OPERATORS if not op.gradients])
def test_fx_traces_operators_without_gradients(op: Operator) -> None:
    part = Alone(op)
    traced = torch.fx.symbolic_trace(Root(part))
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [op.function]
    for twin in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        assert torch.equal(twin(part.drawn), part(part.drawn))


class Seen(Tensor):
    """A tensor that notes which functions are called on it."""

    calls: ClassVar[list[Any]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.calls.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


@each_operator(OPERATORS)
def test_a_subclass_of_tensor_sees_one_call(op: Operator) -> None:
    problem = Problem(op, op.cases[0])
    tensors = problem.tensors()
    expected = problem.call(tensors)
    for name in tensors:
        given = {n: t.as_subclass(Seen) if n == name else t for n, t in tensors.items()}
        Seen.calls.clear()
        output = problem.call(given)
        assert Seen.calls == [op.function], name
        assert type(output) is Seen
        assert torch.equal(output.as_subclass(Tensor), expected)


@each_operator(OPERATORS)
def test_a_function_mode_sees_one_call(op: Operator) -> None:
    problem = Problem(op, op.cases[0])
    tensors = problem.tensors()
    calls = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(func)
            return func(*args, **(kwargs or {}))

    expected = problem.call(tensors)
    with Mode():
        output = problem.call(tensors)
    assert calls == [op.function]
    assert torch.equal(output, expected)


@each_operator(DIFFERENTIABLE)
def test_gradients_of_a_subclass(op: Operator) -> None:
    problem = Problem(op, op.cases[0])
    tensors = problem.tensors()
    first = next(iter(tensors))
    found = []
    for leaf in (tensors[first].clone().requires_grad_(), tensors[first].clone().as_subclass(Seen).requires_grad_()):
        problem.call({**tensors, first: leaf}).square().sum().backward()
        found.append(leaf.grad.as_subclass(Tensor))
    assert found[0].any()
    assert torch.equal(*found)
