"""Put our operators into an installed torchvision, and take them out again."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from pliant.interop.torchvision import boxes, conv

REPLACED: dict[str, Callable[..., Any]] = {
    "deform_conv2d": conv.deform_conv2d,
    **{name: getattr(boxes, name) for name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "nms")},
    "batched_nms": boxes.batched_nms,
}

# Operators that torchvision declares in C++ and refers to while it is imported.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []
_originals: list[tuple[ModuleType, str, Any]] = []


def patch() -> None:
    """Make the installed torchvision compute with our operators: its functions, its layers, its models.

    The functions are replaced in every module of torchvision that holds them, so layers and models use ours. Other
    packages that imported a function before, by ``from torchvision.ops import …``, keep torchvision's. A second call
    does nothing. Where torchvision cannot be imported because its compiled operators do not load, as beside another
    build of torch, the operators that it lacks are declared: it can then be imported, and what we replace runs.

    Raises:
        ImportError: torchvision is not installed.
    """
    if _originals:
        return
    ops = _import()
    for name, ours in REPLACED.items():
        original = getattr(ops, name, None)
        if original is None:
            continue  # an old version of torchvision lacks it
        for module in [m for key, m in sys.modules.items() if key.partition(".")[0] == "torchvision" and m is not None]:
            for attribute, value in list(vars(module).items()):
                if value is original:
                    _originals.append((module, attribute, original))
                    setattr(module, attribute, ours)


def unpatch() -> None:
    """Restore torchvision's own functions."""
    for module, attribute, original in _originals:
        setattr(module, attribute, original)
    _originals.clear()


def _import() -> ModuleType:
    while True:
        try:
            return importlib.import_module("torchvision.ops")
        except ModuleNotFoundError as error:
            if error.name != "torchvision":
                raise
            raise ImportError("patch: torchvision is not installed") from error
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None or missing[1] not in _SCHEMAS:
                raise
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(_SCHEMAS[missing[1]])
            _declared.append(library)  # the declaration lasts as long as this object
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
