"""Non-maximum suppression under torch.compile: how many boxes are kept depends on their values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pliant.ops import batched_nms, nms
from pliant.testing import NMS_CASES, NMSCase

BY_NAME = {case.name: case for case in NMS_CASES}
# Without it torch does not follow sizes that depend on values.
captured = torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)


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


def test_compiles_in_pieces_without_the_setting() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(_network, backend="eager")
    t = BY_NAME["dense"].tensors()
    assert torch.equal(compiled(**t, threshold=0.5), _network(**t, threshold=0.5))
