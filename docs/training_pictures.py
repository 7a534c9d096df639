"""Draw the curve of the first training from the log in training.md: ``python docs/training_pictures.py``."""

from __future__ import annotations

import re
from pathlib import Path

from pliant.show import canvas

HERE = Path(__file__).parent
LINE = re.compile(r"^epoch (\d+): AP ([\d.]+), AP50 ([\d.]+), AP75 ([\d.]+)", re.MULTILINE)


def curve(log: str) -> bytes:
    """Return average precision over the epochs of a log as a PNG."""
    rows = [tuple(map(float, found)) for found in LINE.findall(log)]
    epochs, *scores = zip(*rows, strict=True)
    figure = canvas.sheet(7, 3)
    axes = figure.subplots()
    for name, values, colour in zip(
        ("AP", "AP50", "AP75"), scores, (canvas.INK, canvas.BLUE, canvas.ORANGE), strict=True
    ):
        axes.plot(epochs, values, color=colour, marker="o", markersize=4)
        axes.annotate(f" {name} {values[-1]:g}", (epochs[-1], values[-1]), color=colour, fontsize=10, va="center")
    axes.set_xlabel("epoch of 375 steps")
    axes.set_ylabel("average precision, %")
    axes.set_xlim(0.7, epochs[-1] + 1)
    axes.set_xticks(epochs)
    axes.set_ylim(0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return canvas.png(figure)


if __name__ == "__main__":
    path = HERE / "pictures" / "first-training.png"
    path.write_bytes(curve((HERE / "training.md").read_text(encoding="utf-8")))
    print(f"{path}: {path.stat().st_size} bytes")
