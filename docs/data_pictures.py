"""Draw the figures of data.md: ``python docs/data_pictures.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from pliant.data import Composed, Crowns, Detection
from pliant.show import canvas

FOLDER = Path(__file__).parent / "pictures"
COLOURS = (canvas.YELLOW, canvas.SKY, canvas.ORANGE, canvas.GREEN, canvas.PURPLE)
IGNORED = "#B5B5B5"
GAP = 8
SCALE = 2  # every pixel is drawn so large


def sheet(dataset: Detection, indices: Sequence[int], columns: int) -> Image.Image:
    """Return images of a data set side by side, with boxes coloured by class, or grey where they are ignored."""
    side = max(max(dataset[index][0].shape[1:]) for index in indices) * SCALE + GAP
    rows = -(-len(indices) // columns)
    drawn = Image.new("RGB", (columns * side - GAP, rows * side - GAP), "white")
    for place, index in enumerate(indices):
        pixels, target = dataset[index]
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        image = image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.BICUBIC)
        pen = ImageDraw.Draw(image)
        boxes, labels, ignored = (target[name].tolist() for name in ("boxes", "labels", "ignore"))
        # Ignored boxes come first, so that they cover no other box.
        for k in sorted(range(len(boxes)), key=lambda k: not ignored[k]):
            x1, y1, x2, y2 = (SCALE * v for v in boxes[k])
            colour = IGNORED if ignored[k] else COLOURS[labels[k] % 5]
            pen.rectangle((x1, y1, x2 - 1, y2 - 1), outline=colour, width=3)
        drawn.paste(image, (place % columns * side, place // columns * side))
    return drawn


if __name__ == "__main__":
    scenes = sheet(Composed(0, 4), range(4), 4), sheet(Composed(0, 4, "test"), range(4), 4)
    both = Image.new("RGB", (scenes[0].width, 2 * scenes[0].height + GAP), "white")
    for place, part in enumerate(scenes):
        both.paste(part, (0, place * (part.height + GAP)))
    for name, figure in (("composed", both), ("crowns", sheet(Crowns("test"), (0, 2, 9), 3))):
        path = FOLDER / f"{name}.jpg"
        figure.save(path, quality=85, optimize=True, progressive=True)
        print(f"{path}: {figure.width}×{figure.height}, {path.stat().st_size} bytes")
