"""Put our multi-scale deformable attention into an installed transformers, and take it out again."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import io
import re
import tokenize
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from pliant.ops import ms_deform_attn

__all__ = ["patch", "unpatch"]

Shapes = Tensor | Sequence[Sequence[int]]


def _uniform(
    self: nn.Module,
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_spatial_shapes_list: Sequence[Sequence[int]],
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    # As in transformers' own, levels follow each other, whatever level_start_index says.
    return ms_deform_attn(value, value_spatial_shapes_list, None, sampling_locations, attention_weights)


def _function(
    value: Tensor, value_spatial_shapes: Shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    return ms_deform_attn(value, value_spatial_shapes, None, sampling_locations, attention_weights)


def _ragged(
    value: Tensor,
    value_spatial_shapes: Shapes,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points_list: Sequence[int],
    method: str = "default",
) -> Tensor:
    return ms_deform_attn(
        value,
        value_spatial_shapes,
        None,
        sampling_locations,
        attention_weights,
        points=list(num_points_list),
        method="bilinear" if method == "default" else method,
    )


# What we replace, by name: ours, and the digests of the sources that it stands for (transformers 4.57 to 5.23).
KNOWN: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "MultiScaleDeformableAttention": (_uniform, ("73aafa2a2f650f91",)),
    "multi_scale_deformable_attention": (_function, ("64723d2442ffe534", "cec51e42c39cabe9")),
    "multi_scale_deformable_attention_v2": (_ragged, ("4c7d31022938fa84", "2de5a1165a9dac31")),
}
_DEFINED = re.compile(r"^(?:class|def) (multi_?scale_?deformable_?attention(?:_v\d+)?)\b", re.IGNORECASE | re.MULTILINE)

_undo: list[Callable[[], None]] = []


def patch() -> tuple[str, ...]:
    """Make the installed transformers compute multi-scale deformable attention with our operator.

    Every family that defines it runs on :func:`pliant.ops.ms_deform_attn` then, forward and backward, models that exist
    already too: Deformable DETR, RT-DETR, RT-DETRv2, D-FINE, Grounding DINO, Mask2Former, RF-DETR and others.
    Projections, masks of either polarity and everything else remain transformers' own. A second call changes nothing.

    Returns:
        The names of the families.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        ValueError: the installed version defines the operator in a way that pliant does not know, or not at all.
            Nothing is replaced then.

    >>> patch()  # doctest: +SKIP
    ('d_fine', 'deformable_detr', 'deimv2', ...)
    """
    package = importlib.util.find_spec("transformers")
    if package is None or package.origin is None:
        sentence = "patch: needs the package transformers: pip install transformers"
        raise ModuleNotFoundError(sentence, name="transformers")
    found = _definitions(Path(package.origin).parent / "models")
    if not _undo:
        for module, name in found:
            _replace(module, name)
    return tuple(dict.fromkeys(module.__name__.split(".")[-2] for module, _ in found))


def unpatch() -> None:
    """Restore transformers' own definitions, in models that exist already too."""
    while _undo:
        _undo.pop()()


def _definitions(models: Path) -> list[tuple[ModuleType, str]]:
    """Return every module of transformers that defines the operator, and the name by which it does.

    Raises:
        ValueError: there is none, or one that we do not know.
    """
    version = importlib.metadata.version("transformers")
    found = []
    for path in sorted(models.glob("*/modeling_*.py")):
        for name in _DEFINED.findall(path.read_text(encoding="utf-8")):
            family = path.parent.name
            module = importlib.import_module(f"transformers.models.{family}.{path.stem}")
            if not _undo and (name not in KNOWN or digest(getattr(module, name)) not in KNOWN[name][1]):
                raise ValueError(
                    f"patch: transformers {version} defines {name} of {family} in a way that pliant does not know"
                )
            found.append((module, name))
    if not found:
        raise ValueError(f"patch: transformers {version} defines no multi-scale deformable attention")
    return found


def digest(definition: Any) -> str:
    """Return a digest of the source of a function or class, without its comments and line breaks."""
    tokens = tokenize.generate_tokens(io.StringIO(inspect.getsource(definition)).readline)
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    text = " ".join(token.string for token in tokens if token.type not in layout)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _replace(module: ModuleType, name: str) -> None:
    """Replace a definition, and where layers keep the function as an attribute, what they see there."""
    theirs, (ours, _) = getattr(module, name), KNOWN[name]
    if isinstance(theirs, type):
        _set(theirs, "forward", ours)
        return
    _set(module, name, ours)
    # Cut by hand: inspect parses the whole module for the source of every class, which takes seconds.
    _, *classes = re.split(r"^class (\w+)", inspect.getsource(module), flags=re.MULTILINE)
    for layer, body in zip(classes[::2], classes[1::2], strict=True):
        for attribute in re.findall(rf"self\.(\w+) = {name}\b", body):
            setattr(getattr(module, layer), attribute, _Kept(attribute, theirs, ours))
            _undo.append(functools.partial(delattr, getattr(module, layer), attribute))


def _set(owner: Any, name: str, value: Any) -> None:
    _undo.append(functools.partial(setattr, owner, name, getattr(owner, name)))
    setattr(owner, name, value)


class _Kept:
    """Show our function as an attribute of layers that keep theirs, which is what they keep further on."""

    def __init__(self, name: str, theirs: Any, ours: Any) -> None:
        self.name, self.theirs, self.ours = name, theirs, ours

    def __get__(self, layer: nn.Module | None, owner: type) -> Any:
        if layer is None:
            return self
        kept = vars(layer)[self.name]
        return self.ours if kept is self.theirs else kept

    def __set__(self, layer: nn.Module, value: Any) -> None:
        vars(layer)[self.name] = self.theirs if value is self.ours else value
