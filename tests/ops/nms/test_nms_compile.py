"""Non-maximum suppression inside torch's machinery: schema, fake tensors with a size of their own, torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from pliant import _native
from pliant.ops import batched_nms, nms
from pliant.testing import NMS_CASES, NMSCase

BY_NAME = {case.name: case for case in NMS_CASES}
# Without it torch does not follow sizes that depend on values.
captured = torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["dense", "one", "none"])
def test_opcheck(name: str, dtype: torch.dtype, by_class: bool) -> None:
    t = BY_NAME[name].tensors(dtype)
    arguments = (t["boxes"], t["scores"], t["classes"] if by_class else None, 0.5)
    torch.library.opcheck(torch.ops.pliant.nms.default, arguments)


def test_fake_tensors_keep_an_unknown_number() -> None:
    t = BY_NAME["dense"].tensors()
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        kept = nms(mode.from_tensor(t["boxes"]), mode.from_tensor(t["scores"]), 0.5)
    assert kept.dtype == torch.int64
    assert kept.dim() == 1
    assert isinstance(kept.shape[0], torch.SymInt)


def test_meta_tensors_cannot_say_how_many() -> None:
    t = {name: x.to("meta") for name, x in BY_NAME["dense"].tensors().items()}
    with pytest.raises(ValueError, match=r"^batched_nms: boxes are on the meta device, and how many are kept"):
        batched_nms(**t, iou_threshold=0.5)


def _network(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    kept = batched_nms(boxes, scores, classes, threshold)
    alone = nms(boxes[kept], scores[kept], threshold)
    return boxes[kept][alone] * 2 + 1


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_whole_and_dynamic(backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(_network, fullgraph=True, dynamic=True, backend=backend)
    with captured:
        for count in (301, 150, 77):
            t = NMSCase("", count, 9).tensors()
            with torch._dynamo.config.patch(error_on_recompile=count < 301):
                assert torch.equal(compiled(**t, threshold=0.5), _network(**t, threshold=0.5))


# Importing inductor makes torch warn about itself.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_inductor() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(_network, fullgraph=True, dynamic=True)
    t = BY_NAME["dense"].tensors()
    with captured:
        assert torch.equal(compiled(**t, threshold=0.5), _network(**t, threshold=0.5))


def test_compiles_in_pieces_without_the_setting() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(_network, backend="eager")
    t = BY_NAME["dense"].tensors()
    assert torch.equal(compiled(**t, threshold=0.5), _network(**t, threshold=0.5))


def test_export_keeps_one_node() -> None:
    class Keep(torch.nn.Module):
        def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
            return boxes[nms(boxes, scores, 0.5)]

    t = BY_NAME["dense"].tensors()
    free = {0: torch.export.Dim("n", min=2, max=4096)}
    program = torch.export.export(Keep(), (t["boxes"], t["scores"]), dynamic_shapes=(free, free))
    nodes = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert nodes.count(torch.ops.pliant.nms.default) == 1
    other = BY_NAME["sparse"].tensors()
    call = (other["boxes"], other["scores"])
    assert torch.equal(program.module()(*call), Keep()(*call))


def test_other_devices_run_on_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "path", None)
    monkeypatch.setattr(_native, "reason", "there is no such kernel")
    monkeypatch.setattr(_native, "_warned", set())
    t = BY_NAME["dense"].tensors()
    with pytest.warns(RuntimeWarning, match="^batched_nms: runs on the slow reference, there is no such kernel"):
        kept = batched_nms(**t, iou_threshold=0.5)
    # Said once.
    assert torch.equal(kept, batched_nms(**t, iou_threshold=0.5))
    with pytest.raises(RuntimeError, match=r'^nms: implementation="native" is not possible here, there is no such'):
        nms(t["boxes"], t["scores"], 0.5, implementation="native")
