"""The bits of an image alone and in a batch, where the kernel cuts its work in other ways than usual."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pliant.ops import deform_conv2d
from pliant.testing import DeformConvCase

# So small that an image is one tile, with enough channels that a matrix product would like to have all threads.
ONE_TILE = DeformConvCase("one tile", (1, 91, 10, 1), 16, (5, 5), padding=(2, 2))
# So large that images are converted one after the other, each into the memory of the one before.
ONE_BY_ONE = (
    DeformConvCase("one by one", (1, 64, 194, 194), 3, (2, 2), (8, 8), padding=(0, 0)),
    DeformConvCase("one by one, few channels", (1, 3, 858, 858), 3, (2, 2), (16, 16), padding=(0, 0)),
)


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [ONE_TILE, *ONE_BY_ONE], ids=lambda case: case.name)
def test_an_image_alone_gives_the_bits_it_gives_in_a_batch(
    case: DeformConvCase, dtype: torch.dtype, channels_last: bool
) -> None:
    images = ("input", "offset", "mask")
    batch = replace(case, input=(5, *case.input[1:])).tensors(dtype, channels_last=channels_last)
    random = torch.Generator().manual_seed(1)
    above = torch.randn(5, case.out_channels, *case.output, generator=random).to(dtype)

    def run(tensors: dict[str, torch.Tensor], grad: torch.Tensor) -> list[torch.Tensor]:
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        output = deform_conv2d(**leaves, **case.geometry, implementation="native")
        return [output, *torch.autograd.grad(output, [leaves[name] for name in images], grad)]

    for threads in (1, 2):
        torch.set_num_threads(threads)
        together = run(batch, above)
        for n in (0, 3):
            alone = run({k: t[n : n + 1] if k in images else t for k, t in batch.items()}, above[n : n + 1])
            for whole, own in zip(together, alone, strict=True):
                assert torch.equal(own[0], whole[n])
