"""Train with and without a lower learning rate for offset branches, and record how far the samples move."""

import warnings

import torch
import torch.nn.functional as F
from torch import nn

from pliant.nn import DeformConv2d, OffsetStatistics, parameter_groups


def train(lr: float, offset_lr_mult: float | None) -> None:
    """Train a small network and print what its offsets did."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        DeformConv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        DeformConv2d(8, 4, 3, stride=2, padding=1),
    )
    images, target = torch.randn(8, 3, 24, 24), torch.randn(8, 4, 12, 12)
    groups = parameter_groups(net, lr, offset_lr_mult, weight_decay=1e-4)
    print(f"groups: {[(len(g['params']), g['lr']) for g in groups]} (parameters, learning rate)")
    optimizer = torch.optim.Adam(groups)
    with OffsetStatistics(net, every=1) as statistics, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(30):
            optimizer.zero_grad()
            loss = F.mse_loss(net(images), target)
            loss.backward()
            optimizer.step()
            if step % 10 == 9:
                for name, seen in statistics.report().items():
                    print(
                        f"  step {step + 1}: layer {name}: mean |offset| {seen['mean']:7.2f} px, "
                        f"max {seen['max']:8.2f}, {seen['outside']:4.0%} out of bounds, "
                        f"{seen['nonfinite']:.0%} NaN; loss {loss.item():.3f}"
                    )
                statistics.reset()
    for warning in caught:
        print(f"  warned: {warning.message}")


print("Adam with 0.01, each layer's own multiplier:")
train(0.01, None)
print("Adam with 1, multiplier 1: the offsets explode")
train(1.0, 1.0)
