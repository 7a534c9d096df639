"""RoI pooling and suppression under torchvision's names."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from pliant import ops
from pliant.interop import torchvision

ROIS = torch.tensor([[0, 0, 0, 9, 9], [1, 2, 1, 5.5, 8], [0, 3, 3, 3, 3]])
FORMS: dict[str, tuple[Any, ...]] = {
    "roi_align": (0.5, 2, True),
    "roi_pool": (0.5,),
    "ps_roi_align": (0.5, 2),
    "ps_roi_pool": (0.5,),
}


def _map() -> Tensor:
    return torch.randn(2, 8, 10, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", FORMS)
def test_are_our_operators(name: str) -> None:
    x, rois = _map(), ROIS.double()
    theirs, ours = getattr(torchvision, name), getattr(ops, name)
    expected = ours(x, rois, 2, *FORMS[name])
    assert torch.equal(theirs(x, rois, 2, *FORMS[name]), expected)
    assert torch.equal(theirs(x, rois, (2, 2), *FORMS[name]), expected)
    lists = [rois[rois[:, 0] == n, 1:] for n in (0, 1)]
    order = torch.tensor([0, 2, 1])
    assert torch.equal(theirs(x, lists, 2, *FORMS[name]), expected[order])
    layer = getattr(torchvision, {"roi": "RoI", "ps_": "PSRoI"}[name[:3]] + ("Align" if "align" in name else "Pool"))
    assert torch.equal(layer(2, *FORMS[name])(x, rois), expected)


def test_defaults_are_torchvisions() -> None:
    x, rois = _map(), ROIS.double()
    assert torch.equal(torchvision.roi_align(x, rois, 3), ops.roi_align(x, rois, 3, 1.0, -1, False))
    assert torch.equal(torchvision.ps_roi_align(x, rois, 2), ops.ps_roi_align(x, rois, 2, 1.0, -1))


@pytest.mark.parametrize("name", FORMS)
def test_scripts(name: str) -> None:
    x, rois = _map(), ROIS.double()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")  # which is deprecated
        scripted = torch.jit.script(getattr(torchvision, name))
    assert torch.equal(scripted(x, rois, 2, *FORMS[name]), getattr(ops, name)(x, rois, 2, *FORMS[name]))
    if not name.startswith("ps"):
        lists = [rois[:1, 1:], rois[1:2, 1:]]
        assert torch.equal(
            scripted(x, lists, [2, 3], *FORMS[name]), getattr(ops, name)(x, rois[:2], (2, 3), *FORMS[name])
        )


def test_suppression_scripts() -> None:
    # Detectors of torchvision are scripted with these two inside.
    generator = torch.Generator().manual_seed(0)
    corners = 20 * torch.rand(40, 2, generator=generator)
    boxes = torch.cat((corners, corners + 10 * torch.rand(40, 2, generator=generator)), 1).requires_grad_()
    scores, classes = torch.rand(40, generator=generator), torch.randint(3, (40,), generator=generator)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")  # which is deprecated
        one, two = torch.jit.script(torchvision.nms), torch.jit.script(torchvision.batched_nms)
    assert torch.equal(one(boxes, scores, 0.3), ops.nms(boxes, scores, 0.3))
    assert torch.equal(two(boxes, scores, classes.int(), 0.3), ops.batched_nms(boxes, scores, classes, 0.3))
    assert two(boxes[:0], scores[:0], classes[:0], 0.3).tolist() == []


def test_is_one_node_for_fx() -> None:
    traced = torch.fx.symbolic_trace(torchvision.RoIAlign(2, 0.5, 2))
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [torchvision.roi_align]
    x, rois = _map(), ROIS.double()
    assert torch.equal(traced(x, rois), torchvision.roi_align(x, rois, 2, 0.5, 2))


@pytest.mark.parametrize("name", FORMS)
def test_boxes_of_another_shape_are_assertions(name: str) -> None:
    function, x = getattr(torchvision, name), _map()
    with pytest.raises(AssertionError, match=r"^The boxes tensor shape is not correct as Tensor\[K, 5\]$"):
        function(x, ROIS.double()[:, 1:], 2)
    with pytest.raises(AssertionError, match=r"not correct as List\[Tensor\[L, 4\]\]$"):
        function(x, [ROIS.double(), ROIS.double()], 2)
    with pytest.raises(AssertionError, match=r"^boxes is expected to be a Tensor\[L, 5\] or a List\[Tensor\[K, 4\]\]$"):
        function(x, 3, 2)
    with pytest.raises(RuntimeError, match=rf"^torchvision\.ops\.{name}: input must have shape \(N, C, H, W\)"):
        function(x[0], ROIS.double(), 2)


def test_looks_like_torchvisions() -> None:
    assert repr(torchvision.RoIAlign((3, 2), 0.5, 2)) == (
        "RoIAlign(output_size=(3, 2), spatial_scale=0.5, sampling_ratio=2, aligned=False)"
    )
    assert repr(torchvision.PSRoIAlign(2, 1.0, -1)) == "PSRoIAlign(output_size=2, spatial_scale=1.0, sampling_ratio=-1)"
    assert repr(torchvision.RoIPool(2, 1.0)) == "RoIPool(output_size=2, spatial_scale=1.0)"
    assert repr(torchvision.PSRoIPool(2, 1.0)) == "PSRoIPool(output_size=2, spatial_scale=1.0)"


def test_suppression() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = 20 * torch.rand(40, 2, generator=generator)
    boxes = torch.cat((corners, corners + 10 * torch.rand(40, 2, generator=generator)), 1)
    scores, classes = torch.rand(40, generator=generator), torch.randint(3, (40,), generator=generator)
    assert torch.equal(torchvision.nms(boxes, scores, 0.3), ops.nms(boxes, scores, 0.3))
    assert len(torchvision.nms(boxes, scores, 0.3)) < 40
    assert torch.equal(
        torchvision.batched_nms(boxes, scores, classes, 0.3), ops.batched_nms(boxes, scores, classes, 0.3)
    )
    empty = torch.empty(0, 4)
    nothing: Any = None
    assert torch.equal(torchvision.batched_nms(empty, nothing, nothing, nothing), torch.empty(0, dtype=torch.int64))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, .* are deprecated:UserWarning")
@pytest.mark.parametrize("kind", [torch.quint8, torch.qint8, torch.qint32])
def test_quantized_tensors(kind: torch.dtype) -> None:
    # Scale 0.5 and zero point 10: results are those of the dequantized values.
    def quantized(x: Tensor) -> Tensor:
        return torch.quantize_per_tensor(x.float(), 0.5, 10, kind)

    x, rois = quantized(8 * _map()[:1]), quantized(ROIS[ROIS[:, 0] == 0])
    y = torchvision.roi_align(x, rois, 2, 0.5, 2)
    assert (y.dtype, y.q_scale(), y.q_zero_point()) == (kind, 0.5, 10)
    assert torch.equal(y, quantized(torchvision.roi_align(x.dequantize(), rois.dequantize(), 2, 0.5, 2)))
    with pytest.raises(RuntimeError, match=r"^Only one image per batch is allowed in roi_align when quantized tensors"):
        torchvision.roi_align(quantized(_map()), rois, 2)

    boxes, scores = quantized(torch.tensor([[0, 0, 4, 4], [0, 0, 4, 5], [6, 6, 9, 9]])), quantized(torch.arange(3))
    assert torchvision.nms(boxes, scores, 0.5).tolist() == [2, 1]
    assert torchvision.nms(boxes, scores, 0.9).tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("boxes", "scores", "sentence"),
    [
        ((4,), (3,), "boxes should be a 2d tensor, got 1D"),
        ((3, 5), (3,), "boxes should have 4 elements in dimension 1, got 5"),
        ((3, 4), (3, 2), "scores should be a 1d tensor, got 2D"),
        ((3, 4), (4,), "boxes and scores should have same number of elements in dimension 0, got: 3 and 4"),
    ],
)
def test_suppression_errors(boxes: tuple[int, ...], scores: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{sentence}$"):
        torchvision.nms(torch.rand(boxes), torch.rand(scores), 0.5)
