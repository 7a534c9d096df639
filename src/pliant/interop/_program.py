"""Export a model with torch.export, and rewrite the operators that another format lacks."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from pliant.interop import _rewriting

# The dimensions that `dynamic` leaves open, by rank: of maps (N, C, H, W) and of RoIs (R, 5) or boxes (n, 4).
FREE = {4: (0, 2, 3), 2: (0,)}


def program(
    op: str,
    model: nn.Module,
    args: Sequence[Any] | Tensor,
    kwargs: Mapping[str, Any] | None,
    dynamic: bool,
    dynamic_shapes: Any,
    *,
    clamp: bool,
    gather: bool = False,
) -> ExportedProgram:
    """Export a model, and rewrite the operators that ONNX and OpenVINO lack.

    Args:
        op: name of the caller, for errors.
        model: in evaluation mode.
        args: example inputs, or the only one.
        kwargs: more inputs, by name.
        dynamic: whether the batch, height and width of maps and the number of RoIs may change.
        dynamic_shapes: those of torch.export, instead of `dynamic`.
        clamp: whether ``boundary="clamp"`` of deformable convolution is rewritten too.
        gather: whether multi-scale deformable attention becomes gathers.

    Raises:
        ValueError: the model is in training mode, both kinds of dynamic shapes are given, or a size that `dynamic`
            leaves open is below 2 in the example.
    """
    if model.training:
        raise ValueError(f"{op}: the model is in training mode; call model.eval() first")
    if dynamic and dynamic_shapes is not None:
        raise ValueError(f"{op}: pass dynamic or dynamic_shapes, not both")
    args, kwargs = (args,) if isinstance(args, Tensor) else tuple(args), dict(kwargs or {})
    if dynamic:
        names = list(inspect.signature(model.forward).parameters)
        named = dict(zip(names, args, strict=False)) | kwargs
        dynamic_shapes = {name: _free(op, name, value) for name, value in named.items()}
    with torch.no_grad(), quiet():
        found = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes)
        rules = _rewriting.rules(found.graph, clamp=clamp, gather=gather)
        return found.run_decompositions(rules) if rules else found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress a warning that torch raises about its own code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec", FutureWarning)
        yield


def _free(op: str, name: str, value: Any) -> Any:
    """Return which dimensions of an argument may change, in the form of torch.export."""
    if isinstance(value, Tensor) and value.dim() == 1:
        # The scores or classes of boxes, or a vector whose size the model determines: torch finds out.
        return {0: torch.export.Dim.AUTO}
    if isinstance(value, Tensor):
        sizes = FREE.get(value.dim(), ())
        if any(value.shape[i] < 2 for i in sizes):
            raise ValueError(
                f"{op}: with dynamic every size that may change must be at least 2 in the example, {name} has shape "
                f"{tuple(value.shape)}"
            )
        return dict.fromkeys(sizes, torch.export.Dim.DYNAMIC)
    if isinstance(value, dict):
        return {key: _free(op, f"{name}[{key!r}]", part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_free(op, f"{name}[{i}]", part) for i, part in enumerate(value))
    return None
