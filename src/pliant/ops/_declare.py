"""What torch must know about an operator, written once for all of them.

:func:`declare` takes an operator's schema, its checks, its reference and its kernels for GPUs. It registers the schema,
the fake kernels, first and second derivatives and the GPU kernels, and returns the function that runs the operator:
reference or kernel, under autocast, with a short cut for eager calls on the CPU. CPU kernels register themselves, in
csrc/.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.overrides import handle_torch_function

from pliant import _check, _native

# Every CPU kernel refuses an argument in these words, before it reads any element (csrc/abi.h).
REFUSAL = "does not fit the other arguments"


def handed_over(function: Callable[..., Tensor], arguments: dict[str, Any]) -> Tensor:
    """Hand a call of a public operator to what overrides torch functions: torch.fx, subclasses of Tensor.

    ``torch.fx.symbolic_trace`` records the operator as one node, without its checks. As in torch.nn.functional, the
    first lines of every public operator ask whether a tensor overrides it: a decorator costs every call more.

    Args:
        function: the public operator.
        arguments: all its arguments by name.
    """
    result: Tensor = handle_torch_function(function, tuple(arguments.values()), **arguments)
    return result


class Extra(NamedTuple):
    """A second output of the forward kernel, with the shape of the first, that only the backward kernel reads."""

    name: str
    dtype: torch.dtype


def declare(
    name: str,
    arguments: str,
    shape: Callable[..., Sequence[int]],
    reference: Callable[..., Tensor],
    triton: Callable[[], ModuleType],
    *,
    gradients: Sequence[str] = (),
    bias: str = "",
    lowered: Sequence[str] = ("input",),
    also: Sequence[str] = (),
    elementwise: bool = False,
    contiguous: bool = False,
    forgotten: str = "",
    extra: Extra | None = None,
    linear: Callable[..., Tensor] | bool = False,
    fake: Callable[..., Tensor] | None = None,
) -> Callable[..., Tensor]:
    """Declare an operator and its derivatives to torch.

    Args:
        name: the operator's name in ``torch.ops.pliant``.
        arguments: the schema of its arguments, in the order of the public function; the first is a tensor.
        shape: raises unless the arguments fit each other, and returns the size of the output.
        reference: computes the output from the arguments, differentiable any number of times.
        triton: imports the module with the GPU kernels: functions `name` and ``{name}_backward``.
        gradients: the tensors in which the operator is differentiable; empty: it has no gradient.
        bias: the tensor of `gradients` that is added per channel; its gradient is a sum and needs no kernel.
        lowered: tensors that run in the low precision under autocast.
        also: other public names of the operator.
        elementwise: the output has the shape and the strides of the first tensor; else its memory format.
        contiguous: the output and all gradients are contiguous, whatever the memory format of the first tensor.
        forgotten: a tensor that backward does not read and that is not kept: the backward kernel gets
            ``SymInt[] {forgotten}_size, bool channels_last`` instead.
        extra: a second output of the kernel for its own backward.
        linear: for an operator with a tensor `forgotten`, whose backward must be linear: returns the gradient of
            backward's first argument, from the gradient above and the arguments of the backward kernel. True stands
            for the operator itself on the gradient above, where it is linear in `forgotten`.
        fake: the fake kernel, where the size of the output depends on values.

    Returns:
        a function that runs the operator. It takes an implementation (see ``_native.chosen``), the arguments, and as
        `called` the public function's name where that is not the operator's.
    """
    what = Declaration(name, arguments, gradients, bias, forgotten, extra, elementwise, contiguous)
    if (forgotten != "") != (linear is not False):
        raise ValueError(f"{name}: a tensor that is forgotten needs `linear`, and nothing else does")
    what.define()

    def fake_forward(*given: Any) -> Any:
        what.require_tensors(name, given)
        if fake is not None:
            return fake(*given)
        if elementwise:
            return torch.empty_like(given[0])
        size = shape(*given)
        output = given[0].new_empty(size).to(memory_format=what.format(given[0]))
        return output if extra is None else (output, given[0].new_empty(size, dtype=extra.dtype))

    torch.library.register_fake(f"pliant::{name}", fake_forward, lib=_native.library)
    _native.on_gpu(name, lambda *given: getattr(triton(), name)(*given), *also)
    backward = None
    if what.wanted:
        backward = Backward(what, reference, linear)
        again = f"{name}_backward"
        torch.library.register_fake(f"pliant::{again}", backward.fake, lib=_native.library)
        for op, derivative, keep in (
            (name, backward.gradients, backward.keep),
            (again, backward.second_gradients, backward.keep_again),
        ):
            torch.library.register_autograd(f"pliant::{op}", derivative, setup_context=keep, lib=_native.library)
        _native.on_gpu(again, lambda *given: getattr(triton(), again)(*given))
    return _runner(what, shape, reference, [what.names.index(n) for n in lowered], backward)


class Declaration:
    """The arguments of an operator's forward and backward kernels, and where each stands."""

    def __init__(
        self,
        name: str,
        arguments: str,
        gradients: Sequence[str],
        bias: str,
        forgotten: str,
        extra: Extra | None,
        elementwise: bool,
        contiguous: bool,
    ) -> None:
        self.name, self.schema, self.extra = name, arguments, extra
        self.elementwise, self.contiguous = elementwise, contiguous
        self.types, self.names = zip(*(part.rsplit(" ", 1) for part in arguments.split(", ")), strict=True)
        self.tensors = [i for i, kind in enumerate(self.types) if kind in ("Tensor", "Tensor?")]
        self.required = [i for i in self.tensors if self.types[i] == "Tensor"]
        self.bias = self.names.index(bias) if bias else -1
        self.forgotten = self.names.index(forgotten) if forgotten else -1
        # The tensors whose gradients the backward kernel computes: a bit of `wanted` and the position of each.
        computed = [self.names.index(n) for n in gradients if n != bias]
        self.wanted = [(1 << bit, i) for bit, i in enumerate(computed)]
        self.several = len(computed) > 1
        # What the backward kernel reads after the gradient: the forward kernel's arguments except the bias.
        self.read = [i for i in range(len(self.names)) if i != self.bias]
        # The position of each of them in the backward kernel's arguments, counted after the gradient.
        self.slot = {i: at + (0 <= self.forgotten < i) for at, i in enumerate(self.read)}
        # The tensors among them, which autograd saves.
        self.kept = [self.slot[i] for i in self.tensors if i not in (self.bias, self.forgotten)]
        if extra is not None:
            self.kept.append(len(self.read) + (forgotten != ""))

    def format(self, first: Tensor) -> torch.memory_format:
        """Return the memory format of the output and of the first tensor's gradient."""
        return torch.contiguous_format if self.contiguous else torch._prims_common.suggest_memory_format(first)

    def require_tensors(self, op: str, given: Sequence[Any]) -> None:
        """Raise TypeError unless every tensor is one; those that are optional may be None."""
        for i in self.tensors:
            if given[i] is not None or i in self.required:
                _check.tensors(op, **{self.names[i]: given[i]})

    def define(self) -> None:
        """Define the schemas of both kernels."""
        more = "" if self.extra is None else f", Tensor {self.extra.name}"
        output = f"(Tensor output{more})" if more else "Tensor"
        _native.library.define(f"{self.name}({self.schema}) -> {output}")
        if not self.wanted:
            return
        read = [
            f"SymInt[] {self.names[i]}_size, bool channels_last"
            if i == self.forgotten
            else f"{self.types[i]} {self.names[i]}"
            for i in self.read
        ]
        found = ", ".join(f"Tensor {self.names[i]}" for _, i in self.wanted)
        # `wanted` holds one bit per gradient, in the order of the outputs; gradients not asked for are returned empty.
        wanted, found = (", int wanted", f"({found})") if self.several else ("", "Tensor")
        _native.library.define(f"{self.name}_backward(Tensor grad, {', '.join(read)}{more}{wanted}) -> {found}")


class Backward:
    """First derivatives by the backward kernel, second ones through the reference."""

    def __init__(
        self, what: Declaration, reference: Callable[..., Tensor], linear: Callable[..., Tensor] | bool
    ) -> None:
        self.what, self.reference, self.linear = what, reference, linear
        self.kernel = getattr(torch.ops.pliant, f"{what.name}_backward").default

    def fake(self, grad: Tensor, *given: Any) -> Tensor | tuple[Tensor, ...]:
        what = self.what
        read = {what.names[i]: given[what.slot[i]] for i in what.required if i != what.forgotten}
        _check.tensors(f"{what.name}_backward", grad=grad, **read)
        wanted = given[-1] if what.several else 1
        found = []
        for bit, i in what.wanted:
            t = given[what.slot[i]]
            if i == what.forgotten:
                last = given[what.slot[i] + 1]
                format = torch.channels_last if last else torch.contiguous_format
                found.append(grad.new_empty(t).to(memory_format=format))
            elif t is None or not wanted & bit:
                found.append(grad.new_empty(0))
            elif what.elementwise:
                found.append(torch.empty_like(t))
            else:
                format = what.format(t) if i == 0 else torch.contiguous_format
                found.append(t.new_empty(t.shape).to(memory_format=format))
        return tuple(found) if what.several else found[0]

    def keep(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Save what the backward kernel reads: tensors through autograd, everything else on `ctx`."""
        what = self.what
        given = [inputs[i] for i in what.read]
        if what.forgotten >= 0:
            t = inputs[what.forgotten]
            last = torch._prims_common.suggest_memory_format(t) == torch.channels_last
            at = what.slot[what.forgotten]
            given[at : at + 1] = [tuple(t.shape), last]
        if what.extra is not None:
            given.append(output[1])
        ctx.save_for_backward(*[given[at] for at in what.kept])
        for at in what.kept:
            given[at] = None
        ctx.given = given

    def recall(self, ctx: Any) -> list[Any]:
        """Return what :meth:`keep` saved. Saved-tensor hooks run here, so this is never called below autograd."""
        given = [*ctx.given]
        for at, t in zip(self.what.kept, ctx.saved_tensors, strict=True):
            given[at] = t
        return given

    def gradients(self, ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        return self.compute(ctx.needs_input_grad, grad, self.recall(ctx))

    def compute(self, needs: Sequence[bool], grad: Tensor, given: list[Any]) -> tuple[Tensor | None, ...]:
        """Return a gradient for each of the operator's arguments that needs one."""
        what = self.what
        result: list[Tensor | None] = [None] * len(what.names)
        wanted = 0
        for bit, i in what.wanted:
            if needs[i]:
                wanted |= bit
        if wanted:
            found = self.kernel(grad, *given, wanted) if what.several else (self.kernel(grad, *given),)
            for (bit, i), g in zip(what.wanted, found, strict=True):
                if wanted & bit:
                    result[i] = g
        if what.bias >= 0 and needs[what.bias]:
            result[what.bias] = grad.sum([0, *range(2, grad.dim())])
        return tuple(result)

    def again(self, above: Tensor | None, *read: Any) -> Tensor:
        """Run the operator on the gradient above, in place of the tensor that was forgotten."""
        at = self.what.slot[self.what.forgotten]
        result: Tensor = getattr(torch.ops.pliant, self.what.name)(*read[:at], above, *read[at + 2 :])
        return result

    def keep_again(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Save all arguments of the backward kernel."""
        kept = [0, *(at + 1 for at in self.what.kept)]
        ctx.save_for_backward(*[inputs[at] for at in kept])
        ctx.given = [None if at in kept else a for at, a in enumerate(inputs)]

    def second_gradients(self, ctx: Any, *above: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of the backward kernel's arguments, from those of its outputs."""
        what = self.what
        given = [*ctx.given]
        for at, t in zip([0, *(at + 1 for at in what.kept)], ctx.saved_tensors, strict=True):
            given[at] = t
        result: list[Tensor | None] = [None] * len(given)
        grad, *read = given
        if self.linear is True:
            result[0] = self.again(above[0], *read)
            return tuple(result)
        if self.linear is not False:
            result[0] = self.linear(above[0], *read)
            return tuple(result)
        arguments = [None if i == what.bias else read[what.slot[i]] for i in range(len(what.names))]
        positions = [i for _, i in what.wanted]

        def output(*tensors: Tensor | None) -> Tensor:
            changed = dict(zip(positions, tensors, strict=True))
            return self.reference(*(changed.get(i, a) for i, a in enumerate(arguments)))

        wanted = read[-1] if what.several else 1
        result[0], *found = _twice(output, grad, [arguments[i] for i in positions], wanted, above)
        for i, g in zip(positions, found, strict=True):
            result[1 + what.slot[i]] = g
        return tuple(result)


def _twice(
    function: Callable[..., Tensor],
    grad: Tensor,
    tensors: Sequence[Tensor | None],
    wanted: int,
    above: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Differentiate the gradients of `function`, which is differentiable any number of times.

    Args:
        function: computes the output from `tensors`.
        grad: the output's gradient, from which the first derivatives were computed.
        tensors: the arguments to differentiate `function` in; None stays None.
        wanted: one bit per tensor whose first derivative was computed.
        above: the upstream gradients of those first derivatives, None where there is none.

    Returns:
        The gradients of `grad` and of each tensor.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Every tensor gets its own autograd node; for a third derivative it stays connected to the saved tensor.
        saved = [None if t is None else t.view_as(t) if again else t.detach() for t in (grad, *tensors)]
        present = [t for t in saved if t is not None]
        for t in present:
            if not t.requires_grad:
                t.requires_grad_()
        output = function(*saved[1:])
        if not output.requires_grad:
            # Without boxes nothing depends on the tensors.
            return [None if t is None else torch.zeros_like(t) for t in saved]
        asked = [(t, g) for i, (t, g) in enumerate(zip(saved[1:], above, strict=True)) if wanted >> i & 1]
        pairs = [(t, g) for t, g in asked if t is not None and g is not None]
        first = torch.autograd.grad(output, [t for t, _ in pairs], saved[0], create_graph=True)
        second = torch.autograd.grad(first, present, [g for _, g in pairs], create_graph=again, allow_unused=True)
    found = iter(second)
    return [None if t is None else next(found) for t in saved]


def _runner(
    what: Declaration,
    shape: Callable[..., Sequence[int]],
    reference: Callable[..., Tensor],
    lowered: Sequence[int],
    backward: Backward | None,
) -> Callable[..., Tensor]:
    """Return the function that runs an operator, by its kernel or by its reference; see :func:`declare`.

    It first tries a short cut for eager calls on the CPU, which costs a third of the path through the dispatcher and
    torch.library. If a kernel refuses its arguments there, the checks of the full path say what is wrong; every other
    exception propagates.
    """
    overload = getattr(torch.ops.pliant, what.name).default
    kernel = overload._op  # without the overload's own call, a function of Python
    record = None if backward is None else _recorded(what, kernel, backward).apply
    tensors = [(i, what.types[i] == "Tensor") for i in what.tensors]
    single = what.extra is None
    compiled = torch._C._dispatch_has_kernel_for_dispatch_key(f"pliant::{what.name}", "CPU")
    # Every line here adds to the cost of every call in a small network: no generators, no name looked up twice.
    compiling, tracing = torch.compiler.is_compiling, torch._C._get_tracing_state
    modes, transforms = torch._C._len_torch_dispatch_stack, torch._C._are_functorch_transforms_active
    autocast, recording, below = torch.is_autocast_enabled, torch.is_grad_enabled, torch._C._AutoDispatchBelowAutograd

    def run(implementation: str, *given: Any, called: str = "") -> Tensor:
        if (
            implementation == "auto"
            and compiled
            and _native.path is not None
            and not compiling()
            and tracing() is None
            and modes() == 0
            and forward_ad._current_level < 0
            and not transforms()
            and not autocast("cpu")
        ):
            differentiable = False
            for i, needed in tensors:
                t = given[i]
                if t is None:
                    if needed:
                        break
                elif (type(t) is not Tensor and type(t) is not Parameter) or not t.is_cpu:
                    break
                else:
                    differentiable |= t.requires_grad
            else:
                output: Tensor
                try:
                    if differentiable and record is not None and recording():
                        output = record(*given)
                        return output
                    with below():
                        found = kernel(*given)
                    output = found if single else found[0]
                    return output
                except RuntimeError as error:
                    if REFUSAL not in str(error):
                        raise
        return run_checked(implementation, called or what.name, *given)

    def run_checked(implementation: str, op: str, *given: Any) -> Tensor:
        what.require_tensors(op, given)
        kind = given[0].device.type
        given = tuple(_check.autocast(kind, a) if i in lowered else a for i, a in enumerate(given))
        shape(*given)
        output: Tensor
        if _native.chosen(op, implementation, given[0], compiled):
            found = overload(*given)
            output = found if single else found[0]
            return output
        output = reference(*given)
        if what.elementwise or backward is None:
            return output
        return output.contiguous(memory_format=what.format(given[0]))

    return run


def _recorded(what: Declaration, kernel: Callable[..., Any], backward: Backward) -> Any:
    """Return the operator as an autograd function, which costs less than what torch.library registers."""
    below, keep, recall, compute = torch._C._AutoDispatchBelowAutograd, backward.keep, backward.recall, backward.compute

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Tensor:
            with below():
                output = kernel(*inputs)
            keep(ctx, inputs, output)
            result: Tensor = output if what.extra is None else output[0]
            return result

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            given = recall(ctx)
            if torch.is_grad_enabled():
                return compute(ctx.needs_input_grad, grad, given)
            with below():
                return compute(ctx.needs_input_grad, grad, given)

    return Recorded
