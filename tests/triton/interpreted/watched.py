"""Memory under watch while the interpreter runs a kernel: nothing outside the tensors, nobody in another's way.

A GPU reads beyond a tensor without a word, and runs the programs of a grid in any order. Here every load, store and
atomic addition must lie in a tensor of the launch, and what one program stores no other may touch in the same launch;
atomic additions may meet each other, and nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from triton.runtime import interpreter

# Of larger tensors it is only looked at whether accesses lie in them.
LARGEST = 1 << 20
NOBODY, SEVERAL, ADDED = 0, -1, -2


class Place:
    """A tensor of a launch: who stored and who loaded each element, as the program's number from 1 on."""

    def __init__(self, t: torch.Tensor) -> None:
        extent = 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
        self.start, self.size = t.data_ptr(), t.element_size()
        self.end = self.start + extent * self.size
        small = extent <= LARGEST
        self.stored, self.loaded = (np.zeros(extent, np.int32) if small else None for _ in range(2))


class Launch:
    """What one launch may touch, and what it touched."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        tensors = {t.data_ptr(): t for t in arguments.values() if isinstance(t, torch.Tensor)}
        self.places = [Place(t) for t in tensors.values()]

    def look(self, what: str, pointers: Any, mask: Any) -> None:
        data, keep = np.broadcast_arrays(pointers.data, mask.data)
        at = data[keep.astype(bool)].astype(np.int64).ravel()
        if not len(at):
            return
        size = pointers.get_element_ty().primitive_bitwidth // 8
        first, last = int(at.min()), int(at.max()) + size
        place = next((p for p in self.places if p.start <= first and last <= p.end and p.size == size), None)
        assert place is not None, f"{what} outside of every tensor"
        if place.stored is None:
            return
        at = (at - place.start) // size
        builder = interpreter.interpreter_builder
        (x, y, z), (_, ny, nz) = builder.grid_idx, builder.grid_dim
        me = 1 + (x * ny + y) * nz + z
        stored, loaded = place.stored[at], place.loaded[at]
        if what == "load":
            assert ((stored == NOBODY) | (stored == me)).all(), "one program loads what another stores"
            place.loaded[at] = np.where((loaded == NOBODY) | (loaded == me), me, SEVERAL)
            return
        assert ((loaded == NOBODY) | (loaded == me)).all(), "one program stores what another loads"
        if what == "store":
            assert ((stored == NOBODY) | (stored == me)).all(), "two programs store in one place"
            assert len(np.unique(at)) == len(at), "one program stores twice in one place at once"
            place.stored[at] = me
        else:
            assert ((stored == NOBODY) | (stored == ADDED)).all(), "one program adds where another stores"
            place.stored[at] = ADDED


def watch() -> None:
    """Watch every launch from now on."""
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    now: list[Launch] = []

    def watched(name: str, what: str, mask_at: int) -> None:
        inner = getattr(builder, name)

        def access(self: Any, *arguments: Any) -> Any:
            pointers = arguments[1 if what == "addition" else 0]
            now[-1].look(what, pointers, arguments[mask_at])
            return inner(self, *arguments)

        setattr(builder, name, access)

    watched("create_masked_load", "load", 1)
    watched("create_masked_store", "store", 2)
    watched("create_atomic_rmw", "addition", 3)
    call = executor.__call__

    def launched(self: Any, *arguments: Any, **named: Any) -> None:
        now.append(Launch(dict(zip(self.arg_names, arguments, strict=False)) | named))
        try:
            call(self, *arguments, **named)
        finally:
            now.pop()

    executor.__call__ = launched
