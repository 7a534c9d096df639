"""Record what a network does to one picture: which map came from which, and where each layer sampled the one below.

A forward runs once, in evaluation mode. Every operator it calls is seen where PyTorch dispatches it, whoever calls it:
modules, functions, methods of tensors, scripted code. So nothing has to be known of a model's classes, only of
operators, and branches need no special care. Hooks on the modules give the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from pliant.models.two_stage import TwoStage
from pliant.show import operators
from pliant.show.paths import Step, Trace, follow, spread

if TYPE_CHECKING:
    import numpy as np


# They leave places where they are, by detours of operators: nn.Linear works on the last dimension.
_STILL = (nn.Linear, nn.LocalResponseNorm)


@dataclass(frozen=True, eq=False)
class Node:
    """One map on its way through the network.

    Args:
        operator: that made it.
        module: name of the innermost module that called the operator.
        axes: which dimensions of the tensor are rows and columns.
        size: height and width.
        inputs: the maps that it was made of.
        step: where it samples its only input, or None where it stays in place.
        unknown: why it cannot be followed, or "".
    """

    operator: str
    module: str
    axes: tuple[int, int]
    size: tuple[int, int]
    inputs: tuple[Node, ...] = ()
    step: Step | None = None
    unknown: str = ""
    # Of the best way down from here: see `choice`.
    blocked: bool = field(init=False)
    enlarged: bool = field(init=False)
    taps: int = field(init=False)

    def __post_init__(self) -> None:
        down = choice(self)
        larger = self.step is not None and bool((self.step.stride < 1).any())
        object.__setattr__(self, "blocked", bool(self.unknown) or (down is not None and down.blocked))
        object.__setattr__(self, "enlarged", larger or (down is not None and down.enlarged))
        own = self.step is not None and self.step.taps > 1
        object.__setattr__(self, "taps", own + (down.taps if down is not None else 0))


def choice(node: Node, through: str | None = None) -> Node | None:
    """Return which of its inputs a path takes from a node; None at the picture.

    Of several maps that are added, joined or multiplied: one of the node's own size (not the gate of a channel), that
    can be followed, that goes through the module `through` if one is named, that was not enlarged on its way (of a
    pyramid the lateral input), whose way down has most convolutions of more than one tap (of a residual block the
    convolutions, not the shortcut), and of equals the first.
    """
    best: Node | None = None
    rank: tuple[Any, ...] = ()
    for one in node.inputs:
        # A gate of 1 × 1 keeps its own size, a step is the only input.
        own = node.step is not None or one.size == node.size
        here = (own, not one.blocked, through is not None and _passes(one, through), not one.enlarged, one.taps)
        if best is None or here > rank:
            best, rank = one, here
    return best


def _passes(node: Node, through: str) -> bool:
    """Return whether a way down from a node goes through a module."""
    seen: set[int] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if one.module == through or one.module.startswith(f"{through}."):
            return True
        waiting += one.inputs
    return False


class Recording:
    """What one forward of a model did to one picture; made by :func:`record`.

    Everything asked of it costs no further forward: a trace of 729 points takes milliseconds.

    Attributes:
        size: height and width of the picture.
        output: what the model returned.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.output: Any = None
        self._maps: dict[str, list[list[Node]]] = {}
        self._deformable: dict[str, Step] = {}
        self._classes: dict[str, str] = {}

    def layers(self) -> list[str]:
        """Return the names of all modules that made a map which can be traced, in the order in which they ended."""
        return [name for name, calls in self._maps.items() if any(not n.blocked for nodes in calls for n in nodes)]

    def deformable(self) -> dict[str, Step]:
        """Return name → step of every deformable convolution, in the order of their calls; of two calls the last.

        ``step.offset`` (T, 2, Ho, Wo) and ``step.mask`` (T, Ho, Wo) or None are what was predicted for this picture.
        """
        return dict(self._deformable)

    def map_size(self, layer: str | None = None, *, call: int = -1, output: int = -1) -> tuple[int, int]:
        """Return height and width of a module's output map; Args as in :meth:`trace`."""
        return self.node(layer, call=call, output=output).size

    def nearest(self, point: tuple[float, float], layer: str | None = None, **which: int) -> tuple[int, int]:
        """Return the position of a module's output map whose centre is nearest to a point (y, x) of the picture."""
        origin, stride = _placing(self._chain(layer, None, **which)[0])
        Ho, Wo = self.map_size(layer, **which)
        row, column = ((torch.tensor(point, dtype=torch.float64) - origin) / stride).round().tolist()
        return int(min(max(row, 0), Ho - 1)), int(min(max(column, 0), Wo - 1))

    def centres(self, layer: str | None = None, **which: int) -> np.ndarray:
        """Return the centres of the positions of a module's output map, (Ho, Wo, 2), (y, x) in the picture."""
        origin, stride = _placing(self._chain(layer, None, **which)[0])
        Ho, Wo = self.map_size(layer, **which)
        grid = torch.stack(torch.meshgrid(torch.arange(Ho), torch.arange(Wo), indexing="ij"), -1)
        return (origin + grid * stride).numpy()

    def samples(self, layer: str, **which: int) -> np.ndarray:
        """Return where a module with a kernel samples, (T, Ho, Wo, 2), (y, x) in the picture, by the centres below it.

        Args as in :meth:`trace`; of a module that holds several layers with kernels the last counts.
        """
        chain, _ = self._chain(layer, None, **which)
        places = chain[-1].positions.unflatten(1, chain[-1].above)
        origin, stride = _placing(chain[:-1])
        found: np.ndarray = (origin + places * stride).numpy()
        return found

    def trace(
        self,
        position: tuple[int, int],
        layer: str | None = None,
        depth: int | None = None,
        *,
        through: str | None = None,
        regular: bool = False,
        call: int = -1,
        output: int = -1,
    ) -> Trace:
        """Trace the sampling points of one position of a map back to the picture.

        What they are says :func:`pliant.show.sampling.trace`. Where maps are added, joined or multiplied, paths take
        one of them: one of this size (not the gate of a channel), not enlarged on its way (of a pyramid the lateral
        input), with most convolutions of more than one tap on its way down (of a residual block the convolutions, not
        the shortcut), and of equals the first.

        Args:
            position: (row, column) on the map.
            layer: name of the module whose output the map is; None: the model's own, or if that holds no map that can
                be traced, the last deformable convolution's, or the last map of all.
            depth: how many of the topmost convolutions of more than one tap begin paths; None: all.
            through: name of a module that paths should take where they have the choice, such as "neck.lateral.3".
            regular: leave offsets and masks aside: the grids that the layers would have without them.
            call: which call of a module that is called several times.
            output: which of the maps that the module returned.

        Raises:
            KeyError: there is no such module, or it was not called.
            TypeError: something on the way cannot be followed: the sentence names its module.
            ValueError: position, depth, call or output do not exist; more than a million points.
        """
        chain, names = self._chain(layer, through, call=call, output=output)
        if regular:
            chain = [replace(step, offset=None, mask=None) for step in chain]
        return follow(chain, position, depth, names)

    def steps(
        self, layer: str | None = None, *, through: str | None = None, call: int = -1, output: int = -1
    ) -> list[tuple[str, Step]]:
        """Return the names and steps of the layers that paths take, from the picture upwards; Args as in :meth:`trace`.

        Of what moves nothing there is no step.
        """
        chain, names = self._chain(layer, through, call=call, output=output)
        return list(zip(names, chain, strict=True))

    def support(self, position: tuple[int, int], layer: str | None = None, **which: Any) -> np.ndarray:
        """Compute how much one position of a map samples every pixel, (H, W), as :func:`pliant.show.sampling.support`.

        Args as in :meth:`trace`, of which it takes the same way down.
        """
        chain, _ = self._chain(layer, which.pop("through", None), **which)
        return spread(chain, position)

    def node(self, layer: str | None = None, *, call: int = -1, output: int = -1) -> Node:
        """Return the map that a module made; Args and errors as in :meth:`trace`."""
        if layer is None:
            layer = self.default_layer()
        if layer not in self._maps:
            raise KeyError(f"trace: {layer!r} made no map; there are {', '.join(map(repr, self._maps)) or 'none'}")
        calls = self._maps[layer]
        if not -len(calls) <= call < len(calls):
            raise ValueError(f"trace: {layer!r} was called {len(calls)} times, there is no call {call}")
        if not -len(calls[call]) <= output < len(calls[call]):
            raise ValueError(f"trace: {layer!r} returned {len(calls[call])} maps, there is no output {output}")
        return calls[call][output]

    def default_layer(self) -> str:
        """Return the module whose map is meant where none is named; see :meth:`trace`."""
        own = self._maps.get("")
        if own is not None and not own[-1][-1].blocked and own[-1][-1].size != (1, 1):
            return ""
        names = [name for name in self.layers() if name and not self._maps[name][-1][-1].blocked]
        for name in reversed(self._deformable):
            if name in names:
                return name
        if not names:
            raise ValueError("trace: no map of this model can be traced")
        return names[-1]

    def _chain(self, layer: str | None, through: str | None, **which: int) -> tuple[list[Step], list[str]]:
        """Return the steps from the picture to a module's map, and the names of their modules."""
        node: Node | None = self.node(layer, **which)
        chain, names = [], []
        while node is not None:
            if node.unknown:
                where = f"module {node.module!r} ({self._classes[node.module]})" if node.module else "the model itself"
                raise TypeError(
                    f"trace: {where} cannot be followed: {node.unknown}. If it leaves every position where it is, "
                    "name it in record(…, still=[…])"
                )
            if node.step is not None:
                chain.append(node.step)
                names.append(node.module)
            node = choice(node, through)
        if not chain:
            raise ValueError("trace: there is no convolution and no pooling between the picture and this map")
        return chain[::-1], names[::-1]


def _placing(chain: list[Step]) -> tuple[Tensor, Tensor]:
    """Return the centre of position (0, 0) of the topmost map in the picture, and how far it is to the next."""
    origin, stride = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    for step in reversed(chain):
        origin, stride = origin * step.stride + step.regular.mean(0), stride * step.stride
    return origin, stride


def record(
    model: nn.Module,
    picture: Tensor,
    call: Callable[[nn.Module, Tensor], Any] | None = None,
    *,
    still: Iterable[str | type] = (),
) -> Recording:
    """Run a model over one picture, in evaluation mode, and record where its layers looked.

    Followed are convolutions (also transposed), deformable convolutions of this library and of torchvision, average and
    maximum pooling, interpolation (nearest, bilinear), padding with a constant, slices, permutations, and everything
    that works on each place by itself or keeps the places it normalises over: activations, sums, products, batch,
    layer and group normalization, both local response normalizations over channels, concatenation, dropout. Anything
    else (attention, a fully connected layer, RoI pooling) makes a map that has no way back to the picture: asking for
    it raises an error that names the module.

    Args:
        model: any module; its weights, statistics and training mode stay as they are.
        picture: (C, H, W) or (1, C, H, W), on the model's device, as the model wants it.
        call: how the model is called, ``call(model, picture)`` with (1, C, H, W); None: ``model(picture)``, and for the
            detectors of `pliant.models` with a list of one.
        still: names or classes of modules that leave every position where it is, whatever they compute: of their
            output maps those of the input's size are treated as the input.

    Returns:
        A :class:`Recording`.

    Raises:
        ValueError: the picture has another shape.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 3, 2, padding=1))
    >>> found = record(net, torch.zeros(1, 9, 9)).trace((2, 2))
    >>> found.points.shape, found.centre.tolist(), found.layers
    ((81, 2), [4.0, 4.0], ('2', '0'))
    """
    shape = tuple(picture.shape)
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[0] != 1):
        raise ValueError(f"trace: picture must have shape (C, H, W) or (1, C, H, W), got {shape}")
    # A tensor of its own: the caller's may be one that the model keeps.
    picture = picture.detach().reshape(1, *shape[-3:])
    if call is None:
        call = _listed if isinstance(model, TwoStage) else _batched
    found = Recording((shape[-2], shape[-1]))
    watch = _Watch(found, picture, model, tuple(still))
    with torch.no_grad(), _evaluation(model), watch.named(model), watch:
        found.output = call(model, picture)
    return found


def _batched(model: nn.Module, picture: Tensor) -> Any:
    return model(picture)


def _listed(model: nn.Module, picture: Tensor) -> Any:
    return model([picture[0]])


class _Watch(TorchDispatchMode):
    """See every operator, and keep for each living tensor which map it holds."""

    def __init__(self, found: Recording, picture: Tensor, model: nn.Module, still: tuple[str | type, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found, self.still = found, still
        self.nodes = WeakTensorKeyDictionary()
        axes = (picture.dim() - 2, picture.dim() - 1)
        self.nodes[picture] = Node("picture", "", axes, found.size)
        self.modules: list[str] = [""]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name not in operators.KNOWN:
            # In inference mode composite operators arrive in one piece.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if any(t in self.nodes for t in given):
            self._seen(func, name, args, kwargs, given, result)
        return result

    def _seen(self, func: Any, name: str, args: Any, kwargs: Any, given: list[Tensor], result: Any) -> None:
        values = operators.arguments(func, args, kwargs)
        pointwise = torch.Tag.pointwise in func.tags
        inputs = tuple(self.nodes[t] for t in given if t in self.nodes)
        for out in (t for t in tree_leaves(result) if isinstance(t, Tensor) and t.dim() >= 2):
            axes, step, unknown, used = operators.geometry(name, pointwise, values, self.nodes, out)
            if axes is None:
                continue
            size, used = (int(out.shape[axes[0]]), int(out.shape[axes[1]])), used or inputs
            # The error of a path names the first module on the way up that cannot be followed.
            unknown = "" if all(one.blocked for one in used) else unknown
            node = Node(name, self.modules[-1], axes, size, used, step, unknown)
            self.nodes[out] = node
            if step is not None and step.offset is not None:
                self.found._deformable.pop(node.module, None)
                self.found._deformable[node.module] = step
            if name == "aten::copy_" and out._base is not None:
                self._written(out, node)

    def _written(self, part: Tensor, node: Node) -> None:
        """Let the tensor that `part` is a window of hold what was written there (how batches are padded)."""
        whole = part._base
        assert whole is not None
        axes = (whole.dim() - 2, whole.dim() - 1)
        size = (int(whole.shape[axes[0]]), int(whole.shape[axes[1]]))
        start = part.storage_offset() - whole.storage_offset()
        rows, columns = whole.stride(axes[0]), whole.stride(axes[1])
        if whole.dim() < 3 or whole in self.nodes or not whole.is_contiguous() or part.stride()[-2:] != (rows, columns):
            self.nodes[whole] = Node(node.operator, node.module, axes, size, (node,), None, "it writes into a map")
            return
        start %= whole.stride(axes[0] - 1)
        regular = -torch.tensor([[start // rows, start % rows // columns]], dtype=torch.float64)
        step = Step(regular, torch.ones(2, dtype=torch.float64), node.size, size)
        self.nodes[whole] = Node(node.operator, node.module, axes, size, (node,), step)

    @contextmanager
    def named(self, model: nn.Module) -> Iterator[None]:
        """Keep the name of the module at work, and the maps that each one returns."""
        handles = []
        for name, module in model.named_modules():
            self.found._classes[name] = type(module).__name__
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks from outside
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: self.modules.append(name)))
            still = any(name == s if isinstance(s, str) else isinstance(module, s) for s in (*_STILL, *self.still))
            handles.append(
                module.register_forward_hook(
                    lambda module, args, kwargs, output, name=name, still=still: self._ended(
                        name, module, still, (args, kwargs), output
                    ),
                    with_kwargs=True,
                )
            )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _ended(self, name: str, module: nn.Module, still: bool, inputs: Any, output: Any) -> None:
        self.modules.pop()
        tensors = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
        given = [self.nodes[t] for t in tree_leaves(inputs) if isinstance(t, Tensor) and t in self.nodes]
        if still and given:
            node = given[0]
            across = isinstance(module, nn.Linear) and node.axes[1] == tensors[0].dim() - 1
            for tensor in () if across else tensors:
                if tensor.dim() > node.axes[1] and tuple(tensor.shape[a] for a in node.axes) == node.size:
                    self.nodes[tensor] = Node("still", name, node.axes, node.size, (node,))
        held = [t for t in tensors if t in self.nodes]
        if held:
            self.found._maps.setdefault(name, []).append([self.nodes[t] for t in held])


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Keep batch normalization and dropout from seeing this pass."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was in training:
            module.training = was
