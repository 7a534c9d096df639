"""Run a model in another mode than its own, and put it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode, and in the end give every module the mode that it had, whatever the others have.

    >>> net = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2).eval())
    >>> with evaluation(net):
    ...     print(net.training)
    False
    >>> net[0].training, net[1].training
    (True, False)
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
