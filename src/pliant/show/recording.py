"""Record what a network does with one image: which map was made from which, and where each layer sampled it.

A forward runs once, in evaluation mode. Every operator it calls is intercepted where PyTorch dispatches it, whether a
module, a function, a method of a tensor or scripted code calls it. So only operators have to be known, not the classes
of a model, and branches are no special case. Hooks on the modules provide the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pliant.models.detector import Detector
from pliant.nn.modes import evaluation
from pliant.show.maps import Map, choice, lowest
from pliant.show.paths import Step, Trace, follow, spread
from pliant.show.watch import Watch

if TYPE_CHECKING:
    import numpy as np


class Recording:
    """What one forward of a model did with one image; made by :func:`record`.

    No method runs the model again: a trace of 729 points takes milliseconds.

    Attributes:
        size: height and width of the image.
        output: what the model returned.
    """

    def __init__(
        self,
        size: tuple[int, int],
        output: Any,
        maps: dict[str, list[list[Map]]],
        deformable: dict[str, Step],
        classes: dict[str, str],
    ) -> None:
        self.size, self.output = size, output
        self._maps, self._deformable, self._classes = maps, deformable, classes

    def layers(self) -> list[str]:
        """Return the names of all modules that made a map which can be traced, in the order in which they returned."""
        return [name for name, calls in self._maps.items() if any(not n.blocked for nodes in calls for n in nodes)]

    def deformable(self) -> dict[str, Step]:
        """Return name → step of every deformable convolution, in the order of their calls; of several calls the last.

        ``step.offset`` (T, 2, Ho, Wo) and ``step.mask`` (T, Ho, Wo) or None were predicted for this image.
        """
        return dict(self._deformable)

    def map_size(self, layer: str | None = None, *, call: int = -1, output: int = -1) -> tuple[int, int]:
        """Return height and width of a module's output map; Args as in :meth:`trace`."""
        return self.node(layer, call=call, output=output).size

    def nearest(self, point: tuple[float, float], layer: str | None = None, **which: int) -> tuple[int, int]:
        """Return the position of a module's output map whose centre is nearest to a point (y, x) of the image."""
        origin, stride = _placing(self._chain(layer, None, **which)[0])
        Ho, Wo = self.map_size(layer, **which)
        row, column = ((torch.tensor(point, dtype=torch.float64) - origin) / stride).round().tolist()
        return int(min(max(row, 0), Ho - 1)), int(min(max(column, 0), Wo - 1))

    def centres(self, layer: str | None = None, **which: int) -> np.ndarray:
        """Return the centres of the positions of a module's output map, (Ho, Wo, 2), (y, x) in the image."""
        origin, stride = _placing(self._chain(layer, None, **which)[0])
        Ho, Wo = self.map_size(layer, **which)
        grid = torch.stack(torch.meshgrid(torch.arange(Ho), torch.arange(Wo), indexing="ij"), -1)
        return (origin + grid * stride).numpy()

    def samples(self, layer: str, **which: int) -> np.ndarray:
        """Return where a module with a kernel samples, (T, Ho, Wo, 2), (y, x) in the image.

        A sample lies where the position that it reads has its centre in the image. Args as in :meth:`trace`; if the
        module contains several layers with kernels, the last one is meant.
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
        """Trace the sampling points of one position of a map back to the image.

        The points are defined in :func:`pliant.show.sampling.trace`. Where maps are added, concatenated or multiplied,
        paths follow one of them: one of the same size (not the gate of a channel), not enlarged (the lateral input of a
        pyramid), with the most convolutions of more than one tap below it (the convolutions of a residual block, not
        its shortcut), and the first of equal ones.

        Args:
            position: (row, column) on the map.
            layer: name of the module that returned the map. None: the model itself; if it returned no map that can be
                traced, the last deformable convolution; if there is none, the last module that returned one, with more
                than one position if possible.
            depth: how many of the topmost convolutions of more than one tap begin paths; None: all.
            through: name of a module that paths follow where there is a choice, such as "neck.lateral.3".
            regular: ignore offsets and masks: trace the regular grids.
            call: which call of a module that is called several times.
            output: which of the maps that the module returned.

        Raises:
            KeyError: there is no such module, or it was not called.
            TypeError: something on the way cannot be followed; the message names its module.
            ValueError: position, depth, call or output do not exist; more than a million points.
        """
        chain, names = self._chain(layer, through, call=call, output=output)
        if regular:
            chain = [replace(step, offset=None, mask=None) for step in chain]
        return follow(chain, position, depth, names)

    def steps(
        self, layer: str | None = None, *, through: str | None = None, call: int = -1, output: int = -1
    ) -> list[tuple[str, Step]]:
        """Return the names and steps of the layers that paths follow, from the image upwards.

        Layers that do not change positions have no step. Args as in :meth:`trace`.
        """
        chain, names = self._chain(layer, through, call=call, output=output)
        return list(zip(names, chain, strict=True))

    def support(self, position: tuple[int, int], layer: str | None = None, **which: Any) -> np.ndarray:
        """Compute how much one position of a map samples every pixel, (H, W), as :func:`pliant.show.sampling.support`.

        Args as in :meth:`trace`; it follows the same maps.
        """
        chain, _ = self._chain(layer, which.pop("through", None), **which)
        return spread(chain, position)

    def node(self, layer: str | None = None, *, call: int = -1, output: int = -1) -> Map:
        """Return the map that a module returned; Args and errors as in :meth:`trace`."""
        if layer is None:
            layer = self.default_layer()
        if layer not in self._maps:
            others = ", ".join(map(repr, self._maps)) or "no module"
            raise KeyError(f"trace: {layer!r} made no map; maps were made by {others}")
        calls = self._maps[layer]
        if not -len(calls) <= call < len(calls):
            raise ValueError(f"trace: {layer!r} was called {len(calls)} times, there is no call {call}")
        if not -len(calls[call]) <= output < len(calls[call]):
            raise ValueError(f"trace: {layer!r} returned {len(calls[call])} maps, there is no output {output}")
        return calls[call][output]

    def default_layer(self) -> str:
        """Return the module whose map is taken if none is named; see :meth:`trace`."""
        own = self._maps.get("")
        if own is not None and not own[-1][-1].blocked and own[-1][-1].size != (1, 1):
            return ""
        names = [name for name in self.layers() if name and not self._maps[name][-1][-1].blocked]
        for name in reversed(self._deformable):
            if name in names:
                return name
        if not names:
            why = self.stop()
            raise ValueError("trace: no map of this model can be traced" + (f"; {why}" if why else ""))
        return next((name for name in reversed(names) if self.map_size(name) != (1, 1)), names[-1])

    def stop(self, layer: str | None = None) -> str:
        """Return what stops the paths from a module's last map, or from the model's output; "" if nothing does."""
        calls = self._maps.get(layer or "", [])
        blocked = [node for nodes in calls for node in nodes if node.blocked]
        if layer is None and not blocked and not self.layers():
            blocked = [node for calls in self._maps.values() for nodes in calls for node in nodes][-1:]
        return self._said(lowest(blocked[-1])) if blocked else ""

    def _said(self, node: Map) -> str:
        where = f"module {node.module!r} ({self._classes[node.module]})" if node.module else "the model itself"
        return f"{where} cannot be followed: {node.unknown}"

    def _chain(self, layer: str | None, through: str | None, **which: int) -> tuple[list[Step], list[str]]:
        """Return the steps from the image to a module's map, and the names of their modules."""
        node: Map | None = self.node(layer, **which)
        chain, names = [], []
        while node is not None:
            if node.unknown:
                raise TypeError(
                    f"trace: {self._said(node)}. If it does not change positions, name it in record(…, still=[…])"
                )
            if node.step is not None:
                chain.append(node.step)
                names.append(node.module)
            node = choice(node, through)
        if not chain:
            raise ValueError("trace: there is no convolution and no pooling between the image and this map")
        return chain[::-1], names[::-1]


def _placing(chain: list[Step]) -> tuple[Tensor, Tensor]:
    """Return the centre in the image of position (0, 0) of the topmost map, and the distance to the next position."""
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
    """Run a model on one image, in evaluation mode, and record where its layers sampled.

    These operators are followed: convolutions (also transposed), deformable convolutions of this library and of
    torchvision, average and maximum pooling, interpolation (nearest, bilinear, bicubic, which reads around the same
    place), padding with a constant, the edge or a reflection, `F.grid_sample`, pixel shuffling both ways, rolling and
    flipping, slices, permutations, and everything that does not change positions: activations, sums, products, batch,
    layer and group normalization, both local response normalizations over channels, concatenation, dropout. Anything
    else (attention, `F.unfold`, a fully connected layer, RoI pooling) makes a map that cannot be traced back to the
    image: tracing it raises an error that names the module and the operator, and :meth:`Recording.stop` says it.

    Args:
        model: any module; its weights, statistics and training mode stay as they are.
        picture: the image, (C, H, W) or (1, C, H, W), on the model's device, as the model takes it.
        call: how the model is called, ``call(model, picture)`` with (1, C, H, W); None: ``model(picture)``, or
            ``model([picture[0]])`` for the detectors of `pliant.models`.
        still: names or classes of modules that do not change positions, whatever they compute: their output maps of
            the input's size are treated as the input.

    Returns:
        A :class:`Recording`.

    Raises:
        ValueError: the image has another shape.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 3, 2, padding=1))
    >>> found = record(net, torch.zeros(1, 9, 9)).trace((2, 2))
    >>> found.points.shape, found.centre.tolist(), found.layers
    ((81, 2), [4.0, 4.0], ('2', '0'))
    """
    shape = tuple(picture.shape)
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[0] != 1):
        raise ValueError(f"trace: picture must have shape (C, H, W) or (1, C, H, W), got {shape}")
    # A new tensor: the caller's may be one that the model holds.
    picture = picture.detach().reshape(1, *shape[-3:])
    watch = Watch(picture, tuple(still))
    with torch.no_grad(), evaluation(model), watch.named(model), watch:
        output = (call or run)(model, picture)
    return Recording((shape[-2], shape[-1]), output, watch.maps, watch.deformable, watch.classes)


def run(model: nn.Module, picture: Tensor) -> Any:
    """Call a model with one image (1, C, H, W); detectors of `pliant.models` take a list of images."""
    return model([picture[0]]) if isinstance(model, Detector) else model(picture)
