"""What a node of a network depends on: the three analyses of spatial support of Deformable ConvNets v2.

A node is a function ``node(model, picture)`` that runs the model on an image (1, C, H, W) and returns a tensor, its
response, differentiably. :class:`At` is a position of a module's output map, :class:`OfBox` the output of a detector
for a box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pliant.models.two_stage import TwoStage
from pliant.nn.deformable import (
    DeformableAggregation,
    DeformableConvolution,
    DeformableLayer,
    DeformablePool,
    deformable_layers,
    offset_branch,
    rows_first,
    taps_by_row,
)
from pliant.nn.modes import evaluation
from pliant.show.maps import Map
from pliant.show.recording import run

if TYPE_CHECKING:
    import numpy as np

_MOST_GRADIENTS = 8  # between the painted image and the whole one

Node = Callable[[nn.Module, Tensor], Tensor]


class _Found(Exception):
    """Ends a forward as soon as the response is known."""


@dataclass(frozen=True)
class At:
    """The channels at one position of a module's output map: (C,), or one of them.

    Args:
        layer: name of the module; "" is the model itself.
        position: (row, column).
        channel: None: all.
        call: which call of a module that is called several times, counted from 0.
        output: which of the tensors that the module returns.
        run: how the model is called, ``run(model, picture)``; None: ``model(picture)``, or ``model([picture[0]])`` for
            the detectors of `pliant.models`.
        map: of that output in a recording, which knows the dimensions of rows and columns; None: the last two.
    """

    layer: str
    position: tuple[int, int]
    channel: int | None = None
    call: int = 0
    output: int = -1
    run: Callable[[nn.Module, Tensor], Any] | None = None
    map: Map | None = None

    def __call__(self, model: nn.Module, picture: Tensor) -> Tensor:
        modules = dict(model.named_modules())
        if self.layer not in modules:
            raise LookupError(f"there is no module {self.layer!r}")
        calls, found = 0, None

        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal calls, found
            calls += 1
            if calls == self.call + 1:
                found = [t for t in tree_leaves(output) if isinstance(t, Tensor)][self.output]
                raise _Found

        handle = modules[self.layer].register_forward_hook(look)
        try:
            (self.run or run)(model, picture)
        except _Found:
            pass
        finally:
            handle.remove()
        if found is None:
            raise LookupError(f"{self.layer!r} was called {calls} times, there is no call {self.call}")
        if self.map is not None:
            found = self.map.unfolded(found)
        (row, column), (Ho, Wo) = self.position, found.shape[-2:]
        if found.dim() != 4 or not (0 <= row < Ho and 0 <= column < Wo):
            raise ValueError(f"position {self.position} is not on the output {tuple(found.shape)} of {self.layer!r}")
        here: Tensor = found[0, :, row, column]
        return here if self.channel is None else here[self.channel]


@dataclass(frozen=True)
class OfBox:
    """The output of a detector of `pliant.models` for one box: features after the fully connected layers, or a score.

    Args:
        box: x1, y1, x2, y2 in pixels of the image.
        label: a class: its logit; None: the features (for R-FCN, which has none, all logits).
    """

    box: tuple[float, float, float, float]
    label: int | None = None

    def __call__(self, model: nn.Module, picture: Tensor) -> Tensor:
        if not isinstance(model, TwoStage):
            raise TypeError(f"OfBox: the model must be a detector of pliant.models, got {type(model).__name__}")
        _, maps = model.maps(model.batch([picture[0]])[0])
        logits, _, features = model.head(maps, torch.tensor([[0.0, *self.box]]).to(picture))
        return features[0] if self.label is None else logits[0, self.label]


def receptive_field(model: nn.Module, picture: Tensor, node: Node) -> np.ndarray:
    """Compute the effective receptive field: how strongly a node responds to a small change of each pixel.

    ``√Σ_c (∂r/∂x_c)²`` with r the norm of the node's response.

    Args:
        model: any module; weights, statistics and training mode stay as they are.
        picture: the image, (C, H, W) or (1, C, H, W), as the model takes it.
        node: such as ``At("layer4", (3, 5))``.

    Returns:
        (H, W), float64, at least 0.

    Raises:
        ValueError: the node does not depend on the image.

    Source: Luo et al., NIPS 2016; Zhu et al., CVPR 2019, section 2.2.

    >>> field = receptive_field(nn.Conv2d(1, 1, 3, padding=1), torch.rand(1, 5, 5), At("", (0, 4)))
    >>> (field > 0).nonzero()[0].tolist()
    [0, 0, 1, 1]
    """
    x = _batch(picture).detach().clone().requires_grad_()
    with _still(model), torch.enable_grad():
        (gradient,) = _gradients(node(model, x), [x])
    return _field("receptive_field", gradient)


@dataclass(frozen=True)
class Strength:
    """How strongly a node responds to a move of the samples of one layer.

    Args:
        gradient: of the norm of the node's response, in (y, x). Convolution, DCNv3 and DCNv4: (T, Ho, Wo, 2), T groups
            of offsets times taps, per pixel of the map that is sampled. RoI pooling: (R, Ph, Pw, 2), or (R, classes,
            parts, parts, 2) if it is position-sensitive, per pixel of the image. Other layers: as their `offsets`, for
            one image.
        strength: norm of the gradient over its last dimension.
    """

    gradient: np.ndarray
    strength: np.ndarray


def locations(model: nn.Module, picture: Tensor, node: Node) -> dict[str, Strength]:
    """Compute the effective sampling and bin locations: the gradient of a node with respect to the sampling positions.

    It is computed for every deformable layer that the node's forward calls (of several calls the last). At integer
    positions, where offsets of zero lie, the derivative is the right-sided one. Everything that a moved sample changes
    counts, including the offsets of later layers.

    Args and errors as in :func:`receptive_field`, except that a layer without influence has gradients of 0 and raises
    nothing.

    Source: Zhu et al., CVPR 2019, section 2.2.
    """
    return _passed(model, picture, node)[1]


def sensitivities(model: nn.Module, picture: Tensor, node: Node) -> tuple[np.ndarray, dict[str, Strength]]:
    """Return :func:`receptive_field` and :func:`locations` of a node, computed in one pass; Args and errors as there.

    >>> field, found = sensitivities(nn.Conv2d(1, 1, 3, padding=1), torch.rand(1, 5, 5), At("", (0, 4)))
    >>> int((field > 0).sum()), found
    (4, {})
    """
    gradient, found = _passed(model, picture, node)
    return _field("sensitivities", gradient), found


def _passed(model: nn.Module, picture: Tensor, node: Node) -> tuple[Tensor | None, dict[str, Strength]]:
    """Return the gradients with respect to the image and to the sampling positions."""
    x = _batch(picture).detach().clone().requires_grad_()
    probes: dict[str, tuple[Tensor, DeformableLayer, Tensor | None]] = {}
    with _still(model), _probed(model, probes), torch.enable_grad():
        response = node(model, x)
        pixels, *gradients = _gradients(response, [x, *(probe for probe, *_ in probes.values())])
    found = {}
    for (name, (probe, layer, rois)), gradient in zip(probes.items(), gradients, strict=True):
        g = (torch.zeros_like(probe) if gradient is None else gradient).double().cpu()
        g = _per_pixel(layer, g, None if rois is None else rois.double().cpu())
        found[name] = Strength(g.numpy(), g.norm(dim=-1).numpy())
    return pixels, found


def _field(op: str, gradient: Tensor | None) -> np.ndarray:
    """Return the norm over channels of an image's gradient."""
    if gradient is None:
        raise ValueError(f"{op}: the node does not depend on the image")
    field: np.ndarray = gradient[0].double().norm(dim=0).cpu().numpy()
    return field


def _per_pixel(layer: DeformableLayer, gradient: Tensor, rois: Tensor | None) -> Tensor:
    """Turn the gradient with respect to what a layer predicts into one per pixel of movement, (…, 2), y first."""
    gradient = layer.offsets(gradient)
    if isinstance(layer, DeformablePool) and rois is not None:
        boxes = layer.boxes(rois[:, 1:])
        sides = (boxes[:, 2:] - boxes[:, :2]) * layer.offset_scale
        moved = gradient.squeeze(-2) / sides[:, None, None, None]
        return rows_first(layer, moved if layer.classes is not None else moved[:, 0])
    moved = gradient[0] / layer.offset_scale
    if isinstance(layer, DeformableConvolution):
        moved = moved.flatten(0, len(layer.kernel_size))
    elif isinstance(layer, DeformableAggregation):
        moved = taps_by_row(moved, layer.kernel_size, layer.remove_center).flatten(2, 3).movedim(2, 0)
    return rows_first(layer, moved)


@contextmanager
def _probed(model: nn.Module, probes: dict[str, tuple[Tensor, DeformableLayer, Tensor | None]]) -> Iterator[None]:
    """Add zeros to all predicted offsets, and keep them: their gradient is that of the sampling positions."""
    handles, wrapped = [], []

    def branch(name: str, layer: DeformableLayer) -> Callable[..., Tensor]:
        def look(branch: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            probe = torch.zeros_like(output).requires_grad_()
            probes[name] = (probe, layer, None)
            return output + probe

        return look

    def pooling(name: str, layer: DeformablePool) -> Callable[..., Any]:
        predict = layer.predict

        def look(input: Tensor, rois: Any) -> Any:
            result = predict(input, rois)
            offset, *mask = result if isinstance(result, tuple) else (result,)
            probe = torch.zeros_like(offset).requires_grad_()
            listed = rois if isinstance(rois, Tensor) else torch.cat([nn.functional.pad(r, (1, 0)) for r in rois])
            probes[name] = (probe, layer, listed.detach())
            return (offset + probe, *mask) if isinstance(result, tuple) else offset + probe

        return look

    try:
        for name, layer in deformable_layers(model):
            if isinstance(layer, DeformablePool):
                layer.predict = pooling(name, layer)  # type: ignore[method-assign]
                wrapped.append(layer)
            else:
                handles.append(offset_branch(layer).register_forward_hook(branch(name, layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in wrapped:
            del layer.predict


@dataclass(frozen=True)
class Region:
    """The part of an image that a node needs.

    Args:
        mask: (H, W), bool, True where the image is kept.
        error: of the response to what is kept, ``‖v − v₀‖ / ‖v₀‖``.
        share: of the image's area.
        evaluations: forwards that the search took.
    """

    mask: np.ndarray
    error: float
    share: float
    evaluations: int


def saliency_region(
    model: nn.Module,
    picture: Tensor,
    node: Node,
    *,
    error: float = 0.1,
    cell: int = 8,
    fill: Tensor | float | None = None,
    evaluations: int = 80,
) -> Region:
    """Search for the error-bounded saliency region: the smallest part of an image that gives almost the same response.

    With all other cells painted over, the response v differs from the response v₀ to the whole image by at most
    ``‖v − v₀‖ ≤ error·‖v₀‖``. Cells are ranked by their contribution, ``Σ ∂r/∂x·(x − fill)``, with r the norm of the
    response and the gradient averaged over images between the painted one and the whole one. A binary search finds the
    smallest number of top-ranked cells that satisfies the bound. Then the cells that contribute least to the rest are
    painted over too, half of them, a quarter, …, as many as the bound allows, until no single cell can be removed. The
    returned region satisfies the bound. It is certain to be the smallest one only if contributions are additive and
    have one sign.

    Args:
        model: any module.
        picture: the image, (C, H, W) or (1, C, H, W).
        node: such as ``At("layer4", (3, 5))``.
        error: the bound, relative. The paper calls it small but gives no value; 0.1 is our choice.
        cell: side of the square cells in pixels.
        fill: what is painted over the other cells, a number or (C,); None: each channel's mean.
        evaluations: maximum number of forwards, at least 2.

    Returns:
        A :class:`Region`.

    Raises:
        ValueError: an error outside 0 … 1, no cells or evaluations, a response of 0 to the whole image.

    Source: Zhu et al., CVPR 2019, section 2.2; the order of painting is this function's own.
    """
    if not 0 < error < 1 or cell < 1 or evaluations < 2:
        raise ValueError(
            "saliency_region: needs error between 0 and 1, cell ≥ 1, evaluations ≥ 2, "
            f"got error={error}, cell={cell}, evaluations={evaluations}"
        )
    x = _batch(picture).detach()
    _, C, H, W = x.shape
    colour = x.mean((2, 3)) if fill is None else torch.as_tensor(fill).to(x).expand(C)[None]
    ground = colour[..., None, None].expand_as(x)
    rows, columns = -(-H // cell), -(-W // cell)
    number = (torch.arange(H) // cell)[:, None] * columns + torch.arange(W) // cell
    kept = torch.ones(rows * columns, dtype=torch.bool)
    used = 0

    def painted(cells: Tensor) -> Tensor:
        return torch.where(cells[number].to(x.device), x, ground)

    def off(cells: Tensor) -> float:
        nonlocal used
        used += 1
        with torch.no_grad():
            return float((node(model, painted(cells)).flatten() - full).norm()) / size

    def worth(given: Tensor) -> Tensor:
        nonlocal used
        used += 1
        given = given.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = _gradients(node(model, given), [given])
        if gradient is None:
            return torch.zeros(len(kept), dtype=torch.float64)
        values = ((x - ground) * gradient)[0].sum(0).double().flatten().cpu()
        return torch.zeros(len(kept), dtype=torch.float64).index_add_(0, number.flatten(), values)

    with _still(model):
        with torch.no_grad():
            full = node(model, x).flatten()
        size, reached, used = float(full.norm()), 0.0, 1
        if size == 0:
            raise ValueError("saliency_region: the response to the whole image is 0, so no part of it can be found")
        steps = min(_MOST_GRADIENTS, evaluations // 4)
        if steps:
            total = torch.stack([worth(ground + (i + 0.5) / steps * (x - ground)) for i in range(steps)]).sum(0)
            order = total.abs().argsort(descending=True, stable=True)
            few, many = 0, len(kept)
            while few < many and used < evaluations:
                tried = torch.zeros_like(kept)
                tried[order[: (few + many) // 2]] = True
                if (now := off(tried)) <= error:
                    kept, reached, many = tried, now, (few + many) // 2
                else:
                    few = (few + many) // 2 + 1
        while used < evaluations and bool(kept.any()):
            order = torch.where(kept, worth(painted(kept)).abs(), torch.inf).argsort(stable=True)
            count = -(-int(kept.sum()) // 2)
            while count and used < evaluations:
                tried = kept.clone()
                tried[order[:count]] = False
                if (now := off(tried)) <= error:
                    kept, reached = tried, now
                    break
                count //= 2
            else:
                break
    mask = kept[number].numpy()
    return Region(mask, reached, float(mask.mean()), used)


def _batch(picture: Tensor) -> Tensor:
    shape = tuple(picture.shape)
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[0] != 1):
        raise ValueError(f"picture must have shape (C, H, W) or (1, C, H, W), got {shape}")
    return picture.reshape(1, *shape[-3:])


def _gradients(response: Tensor, of: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Return the gradients of the norm of a response; None for a tensor that it does not depend on."""
    if not of or not response.requires_grad:
        return (None,) * len(of)
    length = response.double().flatten().norm()
    return torch.autograd.grad(length, of, allow_unused=True)


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode, and compute no gradients of parameters."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    try:
        with evaluation(model):
            yield
    finally:
        for parameter, was in wanted:
            parameter.requires_grad_(was)
