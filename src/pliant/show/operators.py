"""Where each operator of PyTorch samples its input: the geometry of one call, derived from its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pliant.show.deforming import aggregation, deformable
from pliant.show.maps import Geometry, Map, extent, grid_of_taps, lost, two, unfit
from pliant.show.paths import Step

Values = dict[str, Any]


def arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Values:
    """Return the arguments of a call by name, defaults included."""
    schema = func._schema.arguments
    given = dict(zip([a.name for a in schema if not a.kwarg_only], args, strict=False)) | kwargs
    return {a.name: given.get(a.name, a.default_value) for a in schema}


def geometry(name: str, pointwise: bool, values: Values, nodes: Mapping[Tensor, Map], out: Tensor) -> Geometry:
    """Return from where in its inputs the positions of `out` come.

    Args:
        name: of the operator, such as "aten::convolution".
        pointwise: whether it treats every position independently.
        values: its arguments by name.
        nodes: the known maps, by the tensor that holds them.
        out: one tensor of its result.
    """
    if name.startswith("aten::new_") or name.endswith("_like"):
        return Geometry(None)  # uses the shape of its input only
    if pointwise or name in _POINTWISE:
        return _pointwise(name, values, nodes, out)
    known = KNOWN.get(name)
    source = values.get("input", values.get("self"))
    if isinstance(source, Tensor) and source in nodes and known is not None:
        node = nodes[source]
        if node.blocked:
            return lost(out, "")._replace(used=(node,))
        if node.flat and known not in _FLAT:
            return lost(out, f"it calls {name}, and rows and columns are laid out in one dimension")
        return known(name, values, node, source, out)._replace(used=(node,))
    if name in ("aten::cat", "aten::stack"):
        return _joined(name, values, nodes, out)
    return lost(out, f"it calls {name}, and it is not known where {name} reads its input")


def _pointwise(name: str, values: Values, nodes: Mapping[Tensor, Map], out: Tensor) -> Geometry:
    given: list[tuple[Map, tuple[int, int]]] = []
    # copy_ overwrites what `self` held.
    read = [values["src"]] if name == "aten::copy_" else values.values()
    for tensor in (v for value in read for v in (value if isinstance(value, list | tuple) else [value])):
        if isinstance(tensor, Tensor) and tensor in nodes:
            node, more = nodes[tensor], out.dim() - tensor.dim()
            given.append((node, (node.axes[0] + more, node.axes[1] + more)))
    used = tuple(node for node, _ in given)
    same = [axes for node, axes in given if node.held_by(out.shape, axes)]
    if not same:
        return Geometry(None)
    whole = [axes for axes, (node, _) in zip(same, given, strict=False) if not node.blocked] or same
    return Geometry(whole[0], used=used)


def _joined(name: str, values: Values, nodes: Mapping[Tensor, Map], out: Tensor) -> Geometry:
    tensors = [t for t in values["tensors"] if t in nodes]
    used = tuple(nodes[t] for t in tensors)
    node, dim = used[0], values["dim"] % out.dim()
    moved = tuple(a + (name == "aten::stack" and a >= dim) for a in node.axes)
    if dim in moved:
        return lost(out, "it concatenates maps along rows or columns")._replace(used=used)
    return Geometry((moved[0], moved[1]), used=used)


def _convolution(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    kernel, why = values["weight"].shape[2:], unfit(node, source, out)
    if why or len(kernel) != 2:
        return lost(out, why or f"it convolves over {len(kernel)} dimensions")
    regular, stride = grid_of_taps(kernel, values["padding"], values["dilation"]), two(values["stride"])
    if values.get("transposed"):
        # Input p adds to output q = p·s − padding + k·d.
        step = Step(-regular / stride, 1 / stride, node.size, extent(out), boundary="lattice")
    else:
        step = Step(regular, stride, node.size, extent(out))
    return Geometry(node.axes, step)


def _pool(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    if why := unfit(node, source, out):
        return lost(out, why)
    kernel = values["kernel_size"]
    regular = grid_of_taps(kernel, values["padding"], values.get("dilation", 1))
    stride = two(values["stride"] or kernel)
    return Geometry(node.axes, Step(regular, stride, node.size, extent(out), False, 1 / len(regular)))


def _adaptive(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    (H, W), (Ho, Wo) = node.size, extent(out)
    why = unfit(node, source, out)
    if why or H % Ho or W % Wo:
        return lost(out, why or f"it pools windows of different sizes, {H}×{W} to {Ho}×{Wo}")
    regular = grid_of_taps((H // Ho, W // Wo), 0, 1)
    return Geometry(node.axes, Step(regular, two((H // Ho, W // Wo)), node.size, (Ho, Wo), False, 1 / len(regular)))


def _resized(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    if why := unfit(node, source, out):
        return lost(out, why)
    above, factors = extent(out), values.get("scale_factors")
    if factors is None:
        factors = [values.get("scales_h"), values.get("scales_w")]
    if values.get("align_corners"):
        ratio = [(n - 1) / (m - 1) if m > 1 else 0.0 for n, m in zip(node.size, above, strict=True)]
        regular = torch.zeros(1, 2, dtype=torch.float64)
    else:
        ratio = [1 / f if f else n / m for f, n, m in zip(factors, node.size, above, strict=True)]
        regular = (0.5 * two(ratio) - 0.5)[None]
    boundary = {"aten::upsample_nearest2d": "floor", "aten::_upsample_nearest_exact2d": "round"}.get(name, "edge")
    return Geometry(node.axes, Step(regular, two(ratio), node.size, above, boundary=boundary))


def _shuffled(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    """Follow the exchange of channels and positions: r × r channels become one, or one position becomes r × r."""
    if why := unfit(node, source, out):
        return lost(out, why)
    if name == "aten::pixel_shuffle":
        ratio = 1 / values["upscale_factor"]
        regular = (0.5 * two(ratio) - 0.5)[None]
        return Geometry(node.axes, Step(regular, two(ratio), node.size, extent(out), boundary="floor"))
    r = values["downscale_factor"]
    return Geometry(node.axes, Step(grid_of_taps((r, r), 0, 1), two(r), node.size, extent(out), False, 1 / r**2))


def _gridded(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    """Follow `F.grid_sample`: every position reads where the grid says, x first, from −1 to 1."""
    why = unfit(node, source, out)
    if why or values["grid"] is source:
        return lost(out, why)
    (Ho, Wo), size = extent(out), torch.tensor(node.size, dtype=torch.float64)
    at = values["grid"].detach().cpu().double()[0].flip(-1)  # (Ho, Wo, 2), row first
    at = (at + 1) / 2 * (size - 1) if values["align_corners"] else ((at + 1) * size - 1) / 2
    here = torch.stack(torch.meshgrid(torch.arange(Ho), torch.arange(Wo), indexing="ij"), -1)
    offset = (at - here).permute(2, 0, 1)[None]
    boundary = ("zeros", "edge", "reflect")[values["padding_mode"]]
    step = Step(torch.zeros(1, 2, dtype=torch.float64), two(1), node.size, (Ho, Wo), offset=offset, boundary=boundary)
    return Geometry(node.axes, step)


def _unfolded(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    return lost(out, f"it calls {name}, which lays windows or positions out in one dimension")


def _attended(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    return lost(out, f"it calls {name}: attention reads every position, each to another degree")


def _rolled(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    start, dims = torch.zeros(1, 2, dtype=torch.float64), [d % source.dim() for d in values["dims"]]
    for shift, dim in zip(values["shifts"], dims, strict=False):
        if dim in node.axes:
            start[0, node.axes.index(dim)] -= shift
    if not dims:
        return lost(out, "it rolls over the end of a row")
    return Geometry(node.axes, Step(start, two(1), node.size, node.size, boundary="wrap"))


def _flipped(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    dims = {d % source.dim() for d in values["dims"]}
    stride = [-1.0 if axis in dims else 1.0 for axis in node.axes]
    start = [[size - 1.0 if s < 0 else 0.0 for size, s in zip(node.size, stride, strict=True)]]
    if stride == [1.0, 1.0]:
        return Geometry(node.axes)
    return Geometry(node.axes, Step(torch.tensor(start, dtype=torch.float64), two(stride), node.size, node.size))


def _framed(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    """Follow padding with values of the map."""
    left, _, top, _ = values["padding"]
    if why := unfit(node, source, out):
        return lost(out, why)
    start = torch.tensor([[-top, -left]], dtype=torch.float64)
    boundary = "reflect" if "reflection" in name else "edge"
    return Geometry(node.axes, Step(start, two(1), node.size, extent(out), boundary=boundary))


def _padded(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    pad = list(values["pad"]) + [0] * (2 * out.dim() - len(values["pad"]))
    start = torch.tensor([[-pad[2 * (out.dim() - 1 - a)] for a in node.axes]], dtype=torch.float64)
    return _shifted(node, start, (1, 1), out)


def _sliced(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    dim, start, stride = values["dim"] % source.dim(), torch.zeros(1, 2, dtype=torch.float64), [1, 1]
    if dim in node.axes:
        n, first = source.shape[dim], values["start"] or 0
        start[0, node.axes.index(dim)] = min(first if first >= 0 else max(0, first + n), n)
        stride[node.axes.index(dim)] = values["step"]
    return _shifted(node, start, stride, out)


def _shifted(node: Map, start: Tensor, stride: Any, out: Tensor) -> Geometry:
    size = (int(out.shape[node.axes[0]]), int(out.shape[node.axes[1]]))
    if size == node.size and not start.any():
        return Geometry(node.axes)
    return Geometry(node.axes, Step(start, two(stride), node.size, size))


def _restrided(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    return Geometry(node.axes) if node.held_by(out.shape) else lost(out, f"it calls {name}")


def _viewed(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    if node.axes == (source.dim() - 2, source.dim() - 1) and tuple(out.shape[-2:]) == node.size:
        return Geometry((out.dim() - 2, out.dim() - 1))
    if out.shape[: node.axes[1] + 1] == source.shape[: node.axes[1] + 1]:
        return Geometry(node.axes)
    row, after = node.axes[0], source.shape[node.axes[1] + 1 :]
    if node.flat and out.shape == (*source.shape[:row], *node.size, *after):
        return Geometry((row, row + 1))
    if node.axes[1] == row + 1 and out.shape == (*source.shape[:row], node.size[0] * node.size[1], *after):
        return Geometry((row, row))
    return lost(out, "it reshapes a map so that rows and columns are lost")


def _permuted(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    order = list(range(source.dim()))
    if name == "aten::permute":
        order = [d % source.dim() for d in values["dims"]]
    else:
        a, b = (values["dim0"], values["dim1"]) if name == "aten::transpose" else (0, 1)
        order[a], order[b] = order[b], order[a]
    return Geometry((order.index(node.axes[0]), order.index(node.axes[1])))


def _inserted(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    dim = values["dim"] % out.dim()
    row, column = (a + (a >= dim) for a in node.axes)
    return Geometry((row, column))


def _removed(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    """Follow operators that remove dimensions: select, unbind, squeeze, and sums, means and maxima."""
    dims = values.get("dim", 0 if name == "aten::unbind" else None)
    if dims is None:
        dims = [d for d in range(source.dim()) if name != "aten::squeeze" or source.shape[d] == 1]
    gone = {d % source.dim() for d in ([dims] if isinstance(dims, int) else dims)}
    if name == "aten::squeeze":
        gone = {d for d in gone if source.shape[d] == 1}
    if values.get("keepdim"):
        if name == "aten::mean" and gone == set(node.axes):
            return _adaptive(name, values, node, source, out)
        if not gone & set(node.axes):
            return Geometry(node.axes)
    if gone & set(node.axes):
        return lost(out, "it removes rows or columns")
    row, column = (a - sum(d < a for d in gone) for a in node.axes)
    return Geometry((row, column))


def _along(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    """Follow operators along one dimension: softmax, split, index_select."""
    if values["dim"] % source.dim() in node.axes:
        return lost(out, f"it calls {name} along rows or columns")
    return Geometry(node.axes)


def _normalised(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    return Geometry(node.axes) if out.shape == source.shape else Geometry(None)  # means and deviations are not maps


def _expanded(name: str, values: Values, node: Map, source: Tensor, out: Tensor) -> Geometry:
    more = out.dim() - source.dim()
    axes = (node.axes[0] + more, node.axes[1] + more)
    if not node.held_by(out.shape, axes):
        return lost(out, "it repeats one value over many positions")
    return Geometry(axes)


# Operators that treat every position independently and that torch does not mark as such.
_UNMARKED = (
    "aten::copy_ aten::clone aten::_to_copy aten::detach aten::alias aten::lift_fresh aten::where aten::masked_fill "
    "aten::masked_fill_ aten::hardswish aten::hardswish_ aten::mish_ aten::gelu_ aten::rrelu_ aten::threshold_ "
    "aten::prelu aten::_prelu_kernel aten::fake_quantize_per_tensor_affine"
)
_POINTWISE = frozenset(_UNMARKED.split())
_Rule = Callable[[str, Values, "Map", Tensor, Tensor], Geometry]
_RULES: dict[_Rule, str] = {
    _convolution: "aten::convolution",
    deformable: "pliant::deform_conv2d torchvision::deform_conv2d",
    aggregation: "pliant::dcnv3 pliant::dcnv4",
    _pool: "aten::max_pool2d_with_indices aten::max_pool2d aten::avg_pool2d",
    _adaptive: "aten::_adaptive_avg_pool2d aten::adaptive_avg_pool2d aten::adaptive_max_pool2d",
    _resized: (
        "aten::upsample_nearest2d aten::_upsample_nearest_exact2d aten::upsample_bilinear2d aten::upsample_bicubic2d "
        "aten::_upsample_bilinear2d_aa aten::_upsample_bicubic2d_aa"
    ),
    _restrided: "aten::as_strided_",
    _padded: "aten::constant_pad_nd",
    _framed: "aten::reflection_pad2d aten::replication_pad2d",
    _shuffled: "aten::pixel_shuffle aten::pixel_unshuffle",
    _gridded: "aten::grid_sampler_2d",
    _unfolded: "aten::im2col aten::unfold",
    _rolled: "aten::roll",
    _flipped: "aten::flip",
    _attended: (
        "aten::scaled_dot_product_attention aten::_scaled_dot_product_flash_attention_for_cpu "
        "aten::_scaled_dot_product_flash_attention aten::_scaled_dot_product_efficient_attention "
        "aten::_scaled_dot_product_cudnn_attention aten::_scaled_dot_product_attention_math "
        "aten::_native_multi_head_attention pliant::ms_deform_attn"
    ),
    _sliced: "aten::slice",
    _viewed: "aten::view aten::_unsafe_view aten::reshape aten::_reshape_alias",
    _permuted: "aten::permute aten::transpose aten::t",
    _inserted: "aten::unsqueeze",
    _removed: "aten::select aten::unbind aten::squeeze aten::mean aten::sum aten::amax aten::amin aten::max aten::min "
    "aten::linalg_vector_norm aten::norm aten::var_mean aten::std aten::var aten::prod aten::argmax aten::any",
    _along: (
        "aten::_softmax aten::_log_softmax aten::split aten::split_with_sizes aten::index_select aten::glu aten::cumsum"
    ),
    _normalised: (
        "aten::native_batch_norm aten::_native_batch_norm_legit aten::_native_batch_norm_legit_no_training "
        "aten::cudnn_batch_norm aten::native_group_norm aten::native_layer_norm aten::native_dropout "
        "pliant::local_response_norm"
    ),
    _expanded: "aten::expand",
}
# These follow a map whose rows and columns are laid out in one dimension.
_FLAT = frozenset({_viewed, _permuted, _inserted, _removed, _along, _normalised, _expanded})
KNOWN: dict[str, _Rule] = {name: rule for rule, names in _RULES.items() for name in names.split()}
