"""Training, evaluation and saved weights of classifiers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.models import checkpoint
from pliant.nn import parameter_groups

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Recipe:
    """Training of a classifier: AdamW with a linear warm-up, then half a cosine down to zero.

    Args:
        epochs: passes over the training images.
        batch: images per step.
        lr: largest learning rate.
        weight_decay: of AdamW.
        warmup: fraction of all steps in which the learning rate rises to `lr`.
        offset_lr_mult: learning rate of offset branches relative to `lr`; None takes each layer's own.
    """

    epochs: int
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 1e-2
    warmup: float = 0.1
    offset_lr_mult: float | None = None

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of step `step` (from 0) of `steps`, as a fraction of `lr`."""
        rise = max(1, round(self.warmup * steps))
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def fit(
    model: nn.Module,
    draw: Callable[[int], Batches],
    steps: int,
    recipe: Recipe,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> list[float]:
    """Train `model` with cross-entropy and return the mean loss of every epoch.

    Args:
        model: from images to logits.
        draw: returns the batches (images, labels) of an epoch.
        steps: batches per epoch.
        recipe: see :class:`Recipe`.
        on_epoch: called after every epoch with its number, from 1, and its mean loss.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    optimizer = torch.optim.AdamW(
        parameter_groups(model, recipe.lr, recipe.offset_lr_mult), weight_decay=recipe.weight_decay
    )
    total = steps * recipe.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.rate(step, total))
    losses = []
    model.train()
    for epoch in range(recipe.epochs):
        summed, count = 0.0, 0
        for pictures, labels in draw(epoch):
            loss = F.cross_entropy(model(pictures), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            summed, count = summed + loss.item() * len(labels), count + len(labels)
        mean = summed / max(1, count)
        if not math.isfinite(mean):
            raise FloatingPointError(f"fit: the loss is {mean} in epoch {epoch + 1}; lower the learning rate")
        losses.append(mean)
        on_epoch(epoch + 1, mean)
    return losses


@torch.no_grad()
def accuracy(model: nn.Module, batches: Batches) -> float:
    """Return the fraction of images whose largest logit is that of their label, in evaluation mode."""
    model.eval()
    right, count = 0, 0
    for pictures, labels in batches:
        right += int((model(pictures).argmax(1) == labels).sum())
        count += len(labels)
    if not count:
        raise ValueError("accuracy: there are no images to evaluate on")
    return right / count


def save(model: nn.Module, path: Path) -> None:
    """Write the weights of `model` to `path`; a crash or a full disk leaves the old file as it was."""
    checkpoint.write(path, {name: tensor.cpu() for name, tensor in model.state_dict().items()})
