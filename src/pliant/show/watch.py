"""Intercept every operator that a forward calls, and record which map was made from which."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from pliant.nn.deformable import DeformableConvolution
from pliant.show import deforming, operators
from pliant.show.maps import Map
from pliant.show.paths import Step

# These do not change positions, though their operators reshape and permute: nn.Linear works on the last dimension.
_STILL = (nn.Linear, nn.LocalResponseNorm)


class Watch(TorchDispatchMode):
    """Intercept every operator, and keep for each tensor that is alive which map it holds.

    Args:
        picture: (1, C, H, W), the image that the model is called with.
        still: names and classes of modules that do not change positions.

    Attributes:
        maps: for each module name the maps that each of its calls returned.
        deformable: for each module name the step of its last deformable convolution, in the order of the calls.
        classes: for each module name the name of its class.
    """

    def __init__(self, picture: Tensor, still: tuple[str | type, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.maps: dict[str, list[list[Map]]] = {}
        self.deformable: dict[str, Step] = {}
        self.classes: dict[str, str] = {}
        self.still = still
        self.nodes = WeakTensorKeyDictionary()
        H, W = picture.shape[-2:]
        self.nodes[picture] = Map("image", "", (picture.dim() - 2, picture.dim() - 1), (H, W))
        self.modules: list[str] = [""]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name not in operators.KNOWN:
            # In inference mode composite operators arrive undecomposed.
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
            used = used or inputs
            size = next((one.size for one in used if one.held_by(out.shape, axes)), None)
            size = size or (int(out.shape[axes[0]]), int(out.shape[axes[1]]))
            # The error of a path names the lowest module that cannot be followed.
            unknown = "" if all(one.blocked for one in used) else unknown
            node = Map(name, self.modules[-1], axes, size, used, step, unknown)
            self.nodes[out] = node
            if step is not None and step.offset is not None and name != "aten::grid_sampler_2d":
                self._moved(node.module, step)
            if name == "aten::copy_" and out._base is not None:
                self._written(out, node)

    def _moved(self, module: str, step: Step) -> None:
        """Keep the step of a deformable convolution, after those that were called before it."""
        self.deformable.pop(module, None)
        self.deformable[module] = step

    def _written(self, part: Tensor, node: Map) -> None:
        """Record that a map was written into `part`, a view of a larger tensor: this is how batches are padded."""
        whole = part._base
        assert whole is not None
        axes = (whole.dim() - 2, whole.dim() - 1)
        size = (int(whole.shape[axes[0]]), int(whole.shape[axes[1]]))
        start = part.storage_offset() - whole.storage_offset()
        rows, columns = whole.stride(axes[0]), whole.stride(axes[1])
        if whole.dim() < 3 or whole in self.nodes or not whole.is_contiguous() or part.stride()[-2:] != (rows, columns):
            why = "it overwrites a part of a map"
            self.nodes[whole] = Map(node.operator, node.module, axes, size, (node,), None, why)
            return
        start %= whole.stride(axes[0] - 1)
        regular = -torch.tensor([[start // rows, start % rows // columns]], dtype=torch.float64)
        step = Step(regular, torch.ones(2, dtype=torch.float64), node.size, size)
        self.nodes[whole] = Map(node.operator, node.module, axes, size, (node,), step)

    @contextmanager
    def named(self, model: nn.Module) -> Iterator[None]:
        """Keep the name of the module that is running, and the maps that each module returns."""
        handles = []
        for name, module in model.named_modules():
            self.classes[name] = type(module).__name__
            if isinstance(module, torch.jit.ScriptModule):
                continue  # does not accept hooks
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

    def _missed(self, layer: DeformableConvolution, below: Map, output: Tensor) -> bool:
        """Return whether a layer sampled a map by operators that do not show where."""
        known = output in self.nodes and self.nodes[output].step is not None
        return len(layer.kernel_size) == 2 and not layer.transposed and not below.blocked and not known

    def _deformed(self, name: str, layer: DeformableConvolution, below: Map, inputs: Any, output: Tensor) -> None:
        """Record where a layer sampled that ran on its reference, whose operators do not show its offsets."""
        input = tree_leaves(inputs)[0]
        args, kwargs = inputs
        with _disable_current_modes():
            offset, mask = layer.predict(*args, **kwargs)
        geometry = deforming.deformed(
            below, input, output, offset, mask, kernel=layer.kernel_size, stride=layer.stride, padding=layer.padding,
            dilation=layer.dilation, boundary=layer.boundary,
        )  # fmt: skip
        if geometry.step is not None:
            step = geometry.step
            self.nodes[output] = Map("pliant::deform_conv2d", name, below.axes, step.above, (below,), step)
            self._moved(name, step)

    def _ended(self, name: str, module: nn.Module, still: bool, inputs: Any, output: Any) -> None:
        self.modules.pop()
        tensors = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
        given = [self.nodes[t] for t in tree_leaves(inputs) if isinstance(t, Tensor) and t in self.nodes]
        if still and given:
            node = given[0]
            across = isinstance(module, nn.Linear) and node.axes[1] == tensors[0].dim() - 1
            for tensor in () if across else tensors:
                if node.held_by(tensor.shape):
                    self.nodes[tensor] = Map("still", name, node.axes, node.size, (node,))
        elif isinstance(module, DeformableConvolution) and given and self._missed(module, given[0], output):
            self._deformed(name, module, given[0], inputs, output)
        held = [t for t in tensors if t in self.nodes]
        if held:
            self.maps.setdefault(name, []).append([self.nodes[t] for t in held])
