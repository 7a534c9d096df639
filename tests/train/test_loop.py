from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from torch import Tensor, nn

from pliant.nn import DeformConv2d
from pliant.train import Recipe, accuracy, fit, loop, save


def _batches(_: int) -> Iterator[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    for _ in range(4):
        x = torch.randn(16, 2, generator=random)
        yield x, (x[:, 0] > x[:, 1]).long()


def test_fit_learns_and_tells() -> None:
    torch.manual_seed(0)
    net = nn.Linear(2, 2)
    told = []
    losses = fit(net, _batches, 4, Recipe(40, lr=0.1), lambda epoch, loss: told.append((epoch, loss)))
    assert [epoch for epoch, _ in told] == list(range(1, 41))
    assert [loss for _, loss in told] == losses
    assert losses[-1] < 0.2 * losses[0]
    assert accuracy(net, _batches(0)) > 0.95
    assert not net.training


def test_fit_is_repeatable() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        net = nn.Linear(2, 2)
        fit(net, _batches, 4, Recipe(2))
        weights.append(net.weight.detach())
    assert torch.equal(*weights)


def test_rate_rises_and_falls() -> None:
    recipe = Recipe(1, warmup=0.1)
    rates = [recipe.rate(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.001
    assert all(a >= b for a, b in pairwise(rates[9:]))


def test_offset_branches_learn_at_their_own_rate() -> None:

    net = nn.Sequential(DeformConv2d(1, 2, 3, padding=1, version=2), nn.Flatten(), nn.Linear(32, 2))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    x = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    # Adam's first step moves every weight by the learning rate: the branch, mult 0.1, by a tenth.
    fit(net, lambda _: [(x, torch.arange(8) % 2)], 1, Recipe(1, lr=1e-2, weight_decay=0, warmup=0))
    moved = {name: (p - before[name]).abs().max().item() for name, p in net.named_parameters()}
    assert moved["0.weight"] == pytest.approx(1e-2, rel=1e-3)
    assert moved["0.conv_offset.weight"] == pytest.approx(1e-3, rel=1e-2)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1; lower the learning rate"):
        fit(net, _batches, 4, Recipe(1))


def test_nothing_to_evaluate() -> None:
    with pytest.raises(ValueError, match="no images"):
        accuracy(nn.Linear(2, 2), [])


def test_saved_weights_survive_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.pt"
    net = nn.Linear(2, 2)
    save(net, path)
    whole = path.read_bytes()

    def full(_: object, part: BinaryIO) -> None:
        part.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save(nn.Linear(3, 3), path)
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt"]
    assert torch.equal(torch.load(path, weights_only=True)["weight"], net.weight)
