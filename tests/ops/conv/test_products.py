"""The matrix products inside: ours where the processor has AVX2 or AVX-512, torch's elsewhere and when asked."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from pliant import _native
from pliant.ops import deform_conv2d
from pliant.testing import TOLERANCE, error

PRODUCTS = os.environ.get("PLIANT_PRODUCTS")
OURS = PRODUCTS == "wide" or (_native.instruction_level() != "baseline" and PRODUCTS != "torch")

# channels, filters, kernel, groups, offset groups, map. What a product is cut into: rows of 6 or 12 positions, panels
# of 16 or 32 filters (the half and less as one vector), runs of at most 384 of taps × channels, or 768 of bfloat16, in
# pairs; all of them with something left over.
SHAPES = {
    "one of everything": (1, 2, (1, 1), 1, 1, (3, 3)),
    "a whole panel, whole rows": (16, 16, (3, 3), 1, 1, (6, 8)),
    "half a panel": (8, 8, (3, 3), 1, 2, (5, 5)),
    "a whole wide panel": (8, 32, (1, 1), 1, 1, (4, 6)),
    "a wide panel and a bit": (3, 37, (3, 1), 1, 1, (5, 5)),
    "a panel and a bit": (5, 17, (3, 3), 1, 1, (7, 11)),
    "panels and a wide rest": (24, 44, (3, 3), 1, 1, (7, 11)),
    "taps in two pieces, uneven": (70, 20, (3, 3), 1, 2, (5, 9)),
    "one tap a piece": (390, 12, (2, 2), 1, 3, (5, 5)),
    "a tap in three runs": (800, 9, (1, 2), 1, 1, (3, 5)),
    "an odd tap in three runs": (1559, 5, (1, 2), 1, 1, (3, 3)),
    "more filters than a run": (6, 401, (2, 2), 1, 1, (4, 5)),
    "groups": (60, 34, (3, 3), 2, 3, (7, 7)),
    "groups, taps in pieces": (260, 26, (3, 3), 2, 1, (5, 5)),
    "many tiles": (32, 18, (3, 3), 1, 1, (29, 31)),
}


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_match_the_reference(shape: tuple, channels_last: bool, dtype: torch.dtype) -> None:
    C, O, kernel, groups, offset_groups, size = shape
    torch.manual_seed(0)
    K, N = kernel[0] * kernel[1], 2
    padding = tuple(k // 2 for k in kernel)
    out = tuple(n + 2 * p - k + 1 for n, p, k in zip(size, padding, kernel, strict=True))
    whole = torch.randint(-2, 3, (N, 2 * offset_groups * K, *out))  # the offset's gradient jumps at integers
    tensors = {
        "input": torch.randn(N, C, *size),
        "offset": whole + torch.rand(whole.shape) * 0.75 + 0.125,
        "weight": torch.randn(O, C // groups, *kernel),
        "bias": torch.randn(O),
        "mask": torch.rand(N, offset_groups * K, *out),
    }
    form = torch.channels_last if channels_last else torch.contiguous_format
    leaves = {
        name: t.to(dtype).contiguous(memory_format=form) if t.dim() == 4 else t.to(dtype) for name, t in tensors.items()
    }
    grad = torch.randn(N, O, *out).to(dtype).contiguous(memory_format=form)

    def run(implementation: str, cast: torch.dtype) -> list[torch.Tensor]:
        copies = {name: t.to(cast).detach().requires_grad_() for name, t in leaves.items()}
        output = deform_conv2d(**copies, padding=padding, implementation=implementation)
        output.backward(grad.to(cast))
        return [output.detach(), *(t.grad for t in copies.values())]

    for name, got, want in zip(["output", *leaves], run("native", dtype), run("reference", torch.float64), strict=True):
        assert error(got, want) < TOLERANCE[dtype], name


def test_gradients_whose_terms_cancel_keep_the_tolerance_of_bfloat16() -> None:
    # Corners that are all about 4 leave their differences to the offset's gradient; filters whose channels add up to 0,
    # three by three, leave them to the mask's. Both need the columns' gradient in more than bfloat16.
    random = torch.Generator().manual_seed(0)
    C, O, P = 48, 32, (9, 11)
    first, second = torch.randint(-64, 65, (2, O, C // 3), generator=random) / 64
    given = {
        "input": 4 + torch.randint(0, 8, (2, C, *P), generator=random) / 32,
        "offset": torch.randint(1, 4, (2, 2, *P), generator=random) / 4,
        "weight": torch.stack((first, second, -(first + second)), 2).reshape(O, C, 1, 1),
        "mask": torch.rand(2, 1, *P, generator=random).bfloat16().double(),
    }
    assert all(torch.equal(t.bfloat16().double(), t.double()) for t in given.values())
    grad = torch.randn(2, O, *P, generator=random).bfloat16()

    def run(implementation: str, dtype: torch.dtype, above: torch.Tensor, **other: torch.Tensor) -> list[torch.Tensor]:
        leaves = {name: t.to(dtype).requires_grad_() for name, t in {**given, **other}.items()}
        output = deform_conv2d(**leaves, implementation=implementation)
        return list(torch.autograd.grad(output, [leaves["offset"], leaves["mask"]], above.to(dtype)))

    wanted = run("reference", torch.float64, grad)
    for name, found, want in zip(("offset", "mask"), run("native", torch.bfloat16, grad), wanted, strict=True):
        assert error(found, want) < TOLERANCE[torch.bfloat16], name
    # The same with the columns' gradient rounded to bfloat16, which the filters of an identity hand on.
    columns = torch.einsum("oc,nohw->nchw", given["weight"][..., 0, 0].double(), grad.double()).bfloat16()
    rounded = run("reference", torch.float64, columns, weight=torch.eye(C)[..., None, None])
    for name, found, want in zip(("offset", "mask"), rounded, wanted, strict=True):
        assert error(found, want) > 2 * TOLERANCE[torch.bfloat16], name


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="MKL tells of its products, others do not")
def test_products_are_ours_where_they_are_faster(capfd: pytest.CaptureFixture[str]) -> None:
    weight = torch.randn(16, 16, 3, 3, requires_grad=True)
    offset = torch.randn(1, 18, 12, 12)
    with torch.backends.mkl.verbose(torch.backends.mkl.VERBOSE_ON):
        deform_conv2d(torch.randn(1, 16, 12, 12), offset, weight, padding=1).sum().backward()
    assert ("SGEMM" in capfd.readouterr().out) == (not OURS)


@pytest.mark.skipif("PLIANT_PRODUCTS" in os.environ, reason="this is the inner run")
@pytest.mark.parametrize("products", ["torch", "bfloat16", "wide"])
def test_the_other_products(products: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    ran = subprocess.run(command, env=os.environ | {"PLIANT_PRODUCTS": products}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


def test_other_products_than_there_are_are_refused() -> None:
    call = "import torch; from pliant.ops import deform_conv2d\n"
    call += "deform_conv2d(torch.ones(1, 1, 3, 3), torch.zeros(1, 2, 3, 3), torch.ones(1, 1, 1, 1))"
    ran = subprocess.run(
        [sys.executable, "-c", call], env=os.environ | {"PLIANT_PRODUCTS": "mine"}, capture_output=True, text=True
    )
    assert "PLIANT_PRODUCTS must be torch, bfloat16 or wide, got mine" in ran.stderr
