"""Detection data in COCO's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from torch import Tensor


class Target(TypedDict):
    """What is in a picture: boxes (n, 4) float32 x1 y1 x2 y2, labels (n,) int64, ignore (n,) bool, the picture's id."""

    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    image_id: int


def ground_truth(
    targets: Sequence[Target],
    sizes: Sequence[tuple[int, int]],
    names: Sequence[str],
    classes: Sequence[str],
    category_ids: Sequence[int],
) -> dict[str, Any]:
    """Return targets in COCO's form, ready for JSON; `area` is the box's, `ignore` becomes `iscrowd`.

    Args:
        targets: one a picture.
        sizes: (H, W) of every picture.
        names: its file.
        classes, category_ids: name and COCO id of every label.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for target, (H, W), name in zip(targets, sizes, names, strict=True):
        images.append({"id": target["image_id"], "file_name": name, "height": H, "width": W})
        rows = zip(target["boxes"].tolist(), target["labels"].tolist(), target["ignore"].tolist(), strict=True)
        for (x1, y1, x2, y2), label, ignore in rows:
            annotations.append(
                {
                    "id": len(annotations) + 1,  # COCO's own evaluation takes an id of 0 for "no match"
                    "image_id": target["image_id"],
                    "category_id": category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(ignore),
                }
            )
    categories = [{"id": id, "name": name} for id, name in zip(category_ids, classes, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}
