"""Lateral inhibition: how much each channel loses to its neighbours in local response normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pliant.show.canvas import BLUE, INK, ORANGE, SKY, VERMILION, show_picture

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Inhibition:
    """The responses of one map before and after local response normalization, and how channels reduce each other.

    Args:
        before: (C, H, W), x.
        after: (C, H, W), ``y_i = x_i·(k + a·Σ_{j∈W(i)} x_j²)^−β``.
        alone: (C, H, W), ``x_i·(k + a·x_i²)^−β``: the response if all neighbours were 0.
        lost: (C, H, W), ``|alone| − |after|``, at least 0: what a channel loses to its neighbours.
        taken: (C, C), mean over the map of how much larger the response of channel i (row) would be if channel j
            (column) were 0. Rows do not sum to `lost`, since the normalization is not linear.
    """

    before: np.ndarray
    after: np.ndarray
    alone: np.ndarray
    lost: np.ndarray
    taken: np.ndarray


def inhibition(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, *, even: str = "left"
) -> Inhibition:
    """Split the effect of local response normalization over channels by neighbour, in float64.

    Args:
        input: (C, H, W) or (1, C, H, W), the responses before normalization.
        size: number of channels in the window.
        alpha: factor of the mean of squares; a = alpha / size.
        beta: exponent, at least 0.
        k: added to the sum, above 0.
        even: side with one channel more in a window of even size, as in :func:`pliant.ops.local_response_norm`.

    Returns:
        An :class:`Inhibition`.

    Raises:
        ValueError: a batch of maps, a size below 1, k not above 0, a negative alpha or beta.

    >>> found = inhibition(torch.tensor([3.0, 1.0]).view(2, 1, 1), size=3, alpha=3.0, beta=0.5)
    >>> found.after.ravel().round(3).tolist(), found.lost.ravel().round(3).tolist()
    ([0.905, 0.302], [0.044, 0.406])
    """
    x = input[0] if input.dim() == 4 and input.shape[0] == 1 else input
    if x.dim() != 3:
        raise ValueError(f"inhibition: input must have shape (C, H, W) or (1, C, H, W), got {tuple(input.shape)}")
    if size < 1 or k <= 0 or alpha < 0 or beta < 0:
        raise ValueError(
            f"inhibition: needs size ≥ 1, k > 0, alpha and beta ≥ 0, got size={size}, k={k}, alpha={alpha}, beta={beta}"
        )
    if even not in ("left", "right"):
        raise ValueError(f"inhibition: even must be 'left' or 'right', got {even!r}")
    C, H, W = x.shape
    x = x.detach().double().cpu().reshape(C, H * W)
    before, after = (size // 2, (size - 1) // 2) if even == "left" else ((size - 1) // 2, size // 2)
    energy = alpha / size * x * x
    distance = torch.arange(C)[None] - torch.arange(C)[:, None]
    window = ((distance >= -before) & (distance <= after)).double()
    total = k + window @ energy
    out = x.abs() * total.pow(-beta)
    alone = x.abs() * (k + energy).pow(-beta)
    taken = torch.zeros(C, C, dtype=torch.float64)
    for i in range(C):
        for j in range(max(0, i - before), min(C, i + after + 1)):
            if i != j:
                taken[i, j] = (x[i].abs() * (total[i] - energy[j]).pow(-beta) - out[i]).mean()
    sign, shape = x.sign(), (C, H, W)
    return Inhibition(
        before=x.reshape(shape).numpy(),
        after=(sign * out).reshape(shape).numpy(),
        alone=(sign * alone).reshape(shape).numpy(),
        lost=(alone - out).clamp_min(0).reshape(shape).numpy(),
        taken=taken.numpy(),
    )


def draw(figure: Figure, found: Inhibition, picture: np.ndarray | None = None) -> None:
    """Draw responses before and after, how much each channel loses, and to which neighbour.

    There are four panels: the image with the position of the strongest response; the channels there before and after;
    the share that every channel loses to its neighbours over the whole map; and which neighbour it loses to.

    Args:
        figure: an empty figure, about 1.4 times as wide as high.
        found: from :func:`inhibition`.
        picture: the image, (h, w) or (h, w, 3); None leaves the first panel out.
    """
    import numpy as np

    C, H, W = found.before.shape
    strength = np.abs(found.before).sum(0)
    row, column = np.unravel_index(strength.argmax(), strength.shape)
    first, *panels = figure.subplots(2, 2, gridspec_kw={"width_ratios": [1.0, 1.3]}).flat
    panels = [panels[0], panels[2], panels[1]]  # bars on the right, the image and what is lost to whom on the left
    first.set_axis_off()
    if picture is not None:
        axes = first
        show_picture(axes, picture, "position ○")
        y, x = (row + 0.5) * picture.shape[0] / H - 0.5, (column + 0.5) * picture.shape[1] / W - 0.5
        axes.scatter([x], [y], s=90, facecolors="none", edgecolors=VERMILION, linewidths=1.8)
    channels = np.arange(C)

    axes = panels[0]
    here = np.abs(found.before[:, row, column])
    axes.bar(channels, here, width=0.8, color=SKY, label="before")
    axes.bar(channels, np.abs(found.after[:, row, column]), width=0.8, color=BLUE, label="after")
    axes.set_title("at this position", fontsize=11, color=INK)
    axes.set_ylabel("|response|", fontsize=10)
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    axes.set_ylim(0, here.max() * 1.25 or 1)

    axes = panels[1]
    alone = np.abs(found.alone).sum((1, 2))
    share = np.divide(100 * found.lost.sum((1, 2)), alone, out=np.zeros(C), where=alone > 0)
    axes.bar(channels, share, width=0.8, color=ORANGE)
    axes.set_title("lost to neighbours, whole map", fontsize=11, color=INK)
    axes.set_ylabel("% of the response", fontsize=10)

    axes = panels[2]
    image = axes.imshow(found.taken, cmap="cividis", interpolation="nearest")
    axes.set_title("lost to which neighbour", fontsize=11, color=INK)
    axes.set_xlabel("neighbour's channel", fontsize=10)
    axes.set_ylabel("channel that loses", fontsize=10)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.04)
    bar.set_label("mean response lost", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    for axes in panels:
        axes.tick_params(labelsize=8, length=2)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[:2]:
        axes.set_xlabel("channel", fontsize=10)
        axes.margins(x=0.01)
