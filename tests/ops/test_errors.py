"""What an operator says about wrong arguments, in eager, for fake tensors and compiled; what raw operators refuse.

Every family lists its sentences in a file ``wrong.py``.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from pliant import _native, ops
from pliant.ops.table import OPERATORS, Operator

from .contract import DIFFERENTIABLE, IMPLEMENTATIONS, Problem, RawCall, each_operator, raw_calls, recorded

FAMILIES = [importlib.import_module(f".{name}.wrong", __package__) for name in {op.family: None for op in OPERATORS}]
RIGHT: dict[str, dict[str, Any]] = {op: values for family in FAMILIES for op, values in family.RIGHT.items()}
WRONG = [
    (op, change, kind, f"{op}: {sentence}")
    for family in FAMILIES
    for names, change, kind, sentence in family.WRONG
    for op in names.split()
]
RAW = [(op, change) for family in FAMILIES for op, change in family.RAW]

every = pytest.mark.parametrize(("op", "change", "kind", "sentence"), WRONG, ids=[w[-1][:70] for w in WRONG])


def _call(op: str, change: dict[str, Any], **more: Any) -> Tensor:
    found: Tensor = getattr(ops, op)(**{**RIGHT[op], **change, **more})
    return found


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@each_operator(OPERATORS)
def test_the_right_arguments_are_right(op: Operator, implementation: str) -> None:
    assert isinstance(_call(op.name, {}, implementation=implementation), Tensor)
    assert any(name == op.name for name, *_ in WRONG)


@every
def test_eager(op: str, change: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind) as raised:
        _call(op, change)
    assert str(raised.value) == sentence


def _fake(mode: FakeTensorMode, value: Any) -> Any:
    if isinstance(value, list):
        return [_fake(mode, v) for v in value]
    return mode.from_tensor(value) if isinstance(value, Tensor) else value


@every
def test_fake_tensors(op: str, change: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    with FakeTensorMode() as mode:
        fake = {name: _fake(mode, value) for name, value in {**RIGHT[op], **change}.items()}
        with pytest.raises(kind) as raised:
            getattr(ops, op)(**fake)
    assert str(raised.value) == sentence


@every
def test_compiled_whole(op: str, change: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    # With fullgraph=True torch wraps whatever is raised while tracing; the sentence stands in the message.
    torch._dynamo.reset()
    compiled = torch.compile(lambda values: getattr(ops, op)(**values) + 1, backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError) as raised:
        compiled({**RIGHT[op], **change})
    assert sentence in str(raised.value)


def _of_tensors(op: str, wanted: type[Exception]) -> tuple[dict[str, Any], str]:
    """Return the first mistake of an operator that is a tensor and raises what is wanted, and the sentence."""
    return next(
        (change, sentence)
        for name, change, kind, sentence in WRONG
        if name == op and kind is wanted and all(isinstance(v, Tensor) for v in change.values())
    )


@pytest.mark.parametrize("dynamic", [None, True])
@each_operator(OPERATORS)
def test_compiled_raises_what_eager_raises(op: Operator, dynamic: bool | None) -> None:
    # Without fullgraph=True the call runs again, eagerly. A sentence about shapes, and one about types.
    for wanted in (ValueError, TypeError):
        change, sentence = _of_tensors(op.name, wanted)
        torch._dynamo.reset()
        compiled = torch.compile(lambda values: getattr(ops, op.name)(**values), backend="aot_eager", dynamic=dynamic)
        with pytest.raises(wanted) as raised:
            compiled({**RIGHT[op.name], **change})
        assert str(raised.value) == sentence


@each_operator(OPERATORS)
def test_compiled_whole_with_free_sizes(op: Operator) -> None:
    # Where torch wraps the error while tracing, sizes may still be letters.
    change, sentence = _of_tensors(op.name, ValueError)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda values: getattr(ops, op.name)(**values), backend="eager", fullgraph=True, dynamic=True
    )
    with pytest.raises(RuntimeError) as raised:
        compiled({**RIGHT[op.name], **change})
    message = str(raised.value)
    if torch.__version__.startswith("2.10."):
        # It shows a sentence with free sizes as the parts that it is made of.
        message = "".join(re.findall(r"ConstantVariable\(str: '(.*?)'\)", message))
    assert sentence.partition(", got")[0].partition(" = ")[0] in message


@each_operator(OPERATORS)
def test_tensors_on_different_devices(op: Operator) -> None:
    (first, _), *others = ((n, v) for n, v in RIGHT[op.name].items() if isinstance(v, Tensor))
    for name, value in others:
        with pytest.raises(ValueError, match=f"^{op.name}: {name} is on meta, {first} on cpu; move one of them$"):
            _call(op.name, {name: value.to("meta")})


# Raw operators, which an exported graph calls: an error too, never a read out of bounds.


def _raw(op: str) -> tuple[RawCall, dict[str, Any]]:
    """Return the raw call of the right arguments, and its arguments by name."""
    with recorded() as calls, torch.no_grad():
        _call(op, {})
    (call,) = calls
    names = [argument.name for argument in call.function._schema.arguments]
    return call, dict(zip(names, call.arguments, strict=True))


def _raw_mistakes(op: str, call: RawCall, *kinds: type) -> Iterator[tuple[dict[str, Any], type[Exception], str]]:
    """Yield the wrong arguments that a raw operator can be given too, of some types, by the names of its schema."""
    # Numbers with a fraction are checked by the public functions alone.
    schema = {a.name: str(a.type) for a in call.function._schema.arguments}
    lists = {name: "List" in kind for name, kind in schema.items() if kind != "float"}
    lengths = {name: len(v) for name, v in zip(schema, call.arguments, strict=True) if isinstance(v, list | tuple)}
    for name, change, kind, sentence in WRONG:
        changed = {("rois" if n == "boxes" and "rois" in lists else n): value for n, value in change.items()}
        if name == op and changed.keys() <= lists.keys():
            values = {n: (v,) * lengths[n] if lists[n] and type(v) is int else v for n, v in changed.items()}
            # An empty list may stand for None here.
            same = all(v == () and lengths.get(n) == 0 for n, v in values.items())
            if not same and all(type(v) in kinds for v in values.values()):
                yield values, kind, sentence


def _refuses(call: RawCall, arguments: dict[str, Any], named: Iterable[str]) -> None:
    """Require that a raw operator refuses its arguments, and that it names one of these."""
    op = call.function._schema.name.removeprefix("pliant::").removesuffix("_backward")
    with pytest.raises((RuntimeError, TypeError, ValueError)) as raised:
        call.function(*arguments.values())
    if "Expected a value of type" not in str(raised.value):  # which torch says of what is of no type of the schema
        assert re.search(rf"{op}: ({'|'.join(named)}) does not fit the other arguments", str(raised.value))


@each_operator(OPERATORS)
def test_raw_operators_refuse_what_the_checks_refuse(op: Operator) -> None:
    call, right = _raw(op.name)
    call.function(*right.values())
    mistakes = list(_raw_mistakes(op.name, call, Tensor, int, tuple))
    assert mistakes
    for change, _, sentence in mistakes:
        # What does not fit is what was changed, or what the public function names; where numbers or the first tensor
        # were changed, it may be what is measured against them.
        tensors = all(isinstance(v, Tensor) for v in change.values()) and next(iter(right)) not in change
        named = {*change, *(name for name in right if name in sentence)} if tensors else right
        _refuses(call, {**right, **change}, named)


@pytest.mark.parametrize(("op", "change"), RAW, ids=str)
def test_raw_operators_refuse_geometry_that_does_not_fit(op: str, change: dict[str, Any]) -> None:
    call, right = _raw(op)
    assert change.keys() <= right.keys()
    _refuses(call, {**right, **change}, right)


@each_operator(DIFFERENTIABLE)
def test_raw_backward_operators_refuse_another_gradient(op: Operator) -> None:
    values = {
        name: v.requires_grad_() if name in op.gradients else v
        for name, v in ((n, v.clone() if isinstance(v, Tensor) else v) for n, v in RIGHT[op.name].items())
    }
    with recorded() as calls:
        getattr(ops, op.name)(**values).sum().backward()
    _, backward = calls
    grad, *rest = backward.arguments
    backward.function(grad, *rest)
    wrong = [grad[:-1], grad[:, :0], grad[..., :1], grad[0], grad[None]]
    # Where the map is not kept, the gradient alone has its dtype.
    wrong += [grad.double()] if any(a.name == "input" for a in backward.function._schema.arguments) else []
    names = [argument.name for argument in backward.function._schema.arguments]
    for other in wrong:
        _refuses(backward, dict(zip(names, (other.contiguous(), *rest), strict=True)), ["grad"])
    # None reaches the fake kernel where another tensor is on meta.
    elsewhere = [a.to("meta") if isinstance(a, Tensor) else a for a in rest]
    with pytest.raises(TypeError, match=r"^\w+_backward: grad must be a tensor, got NoneType"):
        backward.function(None, *elsewhere)


@each_operator(OPERATORS)
def test_raw_operators_name_a_tensor_that_is_missing(op: Operator) -> None:
    # None reaches the fake kernel where another tensor is on meta.
    call, right = _raw(op.name)
    raw = call.function._schema.name.removeprefix("pliant::")
    first, *_ = right
    for name, value in right.items():
        if isinstance(value, Tensor) and name != first:
            with pytest.raises(TypeError, match=f"^{raw}: {first} must be a tensor, got NoneType"):
                call.function(*{**right, first: None, name: value.to("meta")}.values())
            break


# The public functions of these check in their own words.
_CHECKED_BEFORE = ("local_response_norm",)


@each_operator([op for op in OPERATORS if op.family not in _CHECKED_BEFORE])
def test_raw_operators_check_fake_tensors(op: Operator) -> None:
    # An exported graph meets the checks in the fake kernel.
    call, right = _raw(op.name)
    mistakes = list(_raw_mistakes(op.name, call, Tensor))
    assert mistakes
    for change, kind, sentence in mistakes:
        with FakeTensorMode(shape_env=ShapeEnv()) as mode:
            given = [_fake(mode, v) for v in {**right, **change}.values()]
            with pytest.raises(kind) as raised:
                call.function(*given)
        assert str(raised.value).partition(":")[2] == sentence.partition(":")[2]


# Missing kernels.


@each_operator(OPERATORS)
def test_no_number_of_a_raw_call_divides_by_zero(op: Operator) -> None:
    problem = Problem(op, op.cases[0])
    for call in raw_calls(problem, problem.tensors()):
        fake = [a.detach().to("meta") if isinstance(a, Tensor) else a for a in call.arguments]
        for at, value in enumerate(call.arguments):
            numbers = value if isinstance(value, list | tuple) else [value]
            if isinstance(value, bool) or not all(isinstance(number, int) for number in numbers):
                continue
            none = [0] * len(numbers) if isinstance(value, list | tuple) else 0
            for given in (call.arguments, fake):
                with contextlib.suppress(RuntimeError, ValueError):
                    call.function(*given[:at], none, *given[at + 1 :])


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(_native, "path", None)
    monkeypatch.setattr(_native, "reason", "pliant/_C.so is not installed beside the Python files")
    monkeypatch.setattr(_native, "_warned", set())
    return "pliant/_C.so is not installed beside the Python files"


@each_operator(OPERATORS)
def test_native_says_what_is_missing(op: Operator, no_kernels: str) -> None:
    with pytest.raises(RuntimeError) as raised:
        _call(op.name, {}, implementation="native")
    assert str(raised.value) == f'{op.name}: implementation="native" is not possible here, {no_kernels}'


@each_operator(OPERATORS)
def test_auto_without_kernels_warns_once_and_computes(op: Operator, no_kernels: str) -> None:
    problem = Problem(op, op.cases[0])
    tensors = problem.tensors()
    with pytest.warns(RuntimeWarning, match=f"^{op.name}: runs on the slow reference, {no_kernels}$") as caught:
        first = problem.call(tensors)
    # It points at the line outside of pliant that called.
    assert [Path(w.filename).name for w in caught] == ["contract.py"]
    # A second warning would be an error.
    assert torch.equal(first, problem.call(tensors))
    assert torch.equal(first, problem.call(tensors, "reference"))


@each_operator([op for op in OPERATORS if op.traceable])
def test_auto_without_kernels_compiles_whole_and_warns(op: Operator, no_kernels: str) -> None:
    torch._dynamo.reset()
    problem = Problem(op, op.cases[0])
    tensors = problem.tensors()
    compiled = torch.compile(problem.call, backend="aot_eager", fullgraph=True)
    with pytest.warns(RuntimeWarning, match=f"^{op.name}: runs on the slow reference, {no_kernels}$"):
        first = compiled(tensors)
    assert torch.equal(first, problem.call(tensors, "reference"))
