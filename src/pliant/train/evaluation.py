"""Average precision of a detector, as COCO defines it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pliant.data import Detection, Target, Transform
from pliant.data.coco import AREA_RANGES, LARGEST
from pliant.data.values import flag, number
from pliant.models.predictor import detect
from pliant.train.distributed import Ranks


def evaluate(
    model: nn.Module,
    dataset: Detection,
    *,
    batch: int = 4,
    resize: Transform | None = None,
    workers: int = 0,
    max_detections: int = 100,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Run a detector over a data set and return its average precision.

    Each of several ranks takes its share of the images, and all get the result.

    Args:
        model: a detector of :mod:`pliant.models`, on the device of `ranks`.
        dataset: of :mod:`pliant.data`; where it has ``area_ranges`` (``{"small": (least, most), …}``, square pixels),
            these replace COCO's.
        batch: images per forward pass.
        resize: see :func:`detect`.
        workers: processes that read images; 0 reads in this one.
        max_detections: detections per image and class that count, those of the highest score.
        ranks: the processes that share the work.

    Returns:
        See :func:`average_precision`; and, if images could not be read, ``broken``, the reasons. Such images count as
        images without detections.

    Raises:
        ValueError: a data set without images.
    """
    ranks = ranks or Ranks()
    if not len(dataset):
        raise ValueError("evaluate: there are no images to evaluate on")
    # Every rank runs the model equally often, because a sharded model gathers its weights in each forward pass: a rank
    # with fewer images repeats some, and their detections are kept once.
    share = math.ceil(len(dataset) / ranks.world)
    mine = [(ranks.rank + i * ranks.world) % len(dataset) for i in range(share)]
    found: dict[int, list[dict[str, Any]]] = {}
    broken: set[str] = set()
    # With its own generator the loader leaves torch's alone.
    loader = DataLoader(
        _Readable(dataset, mine), batch, num_workers=workers, collate_fn=list, generator=torch.Generator()
    )
    for items in loader:
        read = [item for item in items if not isinstance(item, str)]
        broken.update(item for item in items if isinstance(item, str))
        # If nothing could be read, the model still runs: a sharded model waits for every rank.
        images = [image for image, _ in read] or [torch.zeros(3, 64, 64, dtype=torch.uint8)]
        results = detect(model, images, resize=resize, device=ranks.device)
        for (_, target), result in zip(read, results, strict=False):
            picture = int(target["image_id"])
            found[picture] = coco_results(result, picture, dataset.category_ids)
    every: dict[int, list[dict[str, Any]]] = {}
    for part, faults in ranks.gather((found, broken)):
        every.update(part)
        broken |= faults
    detections = [line for picture in sorted(every) for line in every[picture]]
    areas = getattr(dataset, "area_ranges", AREA_RANGES)
    scores = average_precision(dataset.coco(), detections, areas=areas, max_detections=max_detections)
    return {**scores, "broken": sorted(broken)} if broken else scores


class _Readable(Dataset[Any]):
    """Some items of a data set; an image that cannot be read is replaced by the reason."""

    def __init__(self, dataset: Detection, indices: list[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Target] | str:
        try:
            return self.dataset[self.indices[index]]
        except OSError as error:
            return str(error)


def coco_results(found: Mapping[str, Tensor], image: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return the detections of an image in COCO's format of results, with ``bbox`` as x y w h.

    >>> boxes, scores, labels = torch.tensor([[1.0, 2.0, 5.0, 4.0]]), torch.tensor([0.5]), torch.tensor([1])
    >>> coco_results({"boxes": boxes, "scores": scores, "labels": labels}, 7, (1, 18))
    [{'image_id': 7, 'category_id': 18, 'bbox': [1.0, 2.0, 4.0, 2.0], 'score': 0.5}]
    """
    lines = zip(found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
    return [
        {"image_id": image, "category_id": category_ids[c], "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for (x1, y1, x2, y2), score, c in lines
    ]


def average_precision(
    truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    *,
    areas: Mapping[str, tuple[float, float]] = AREA_RANGES,
    max_detections: int = 100,
) -> dict[str, Any]:
    """Return COCO's average precision of boxes.

    This is the precision at 101 recalls, averaged over the IoUs 0.50, 0.55 … 0.95 and over classes. A crowd does not
    count as missed, and a detection in it does not count as wrong. A class without objects is left out.

    Args:
        truth: ground truth in COCO's format; ``area`` defaults to the area of the box, ``iscrowd`` to 0, and either may
            be a string, such as "0" or "false".
        detections: in COCO's format of results.
        areas: least and most area of "small", "medium" and "large" objects, square pixels.
        max_detections: detections per image and class that count, those of the highest score.

    Returns:
        ``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl`` and ``per_class`` (name → AP), between 0 and 1; NaN where
        there are no objects.

    Raises:
        ValueError: an ``iscrowd`` is no flag, or an ``area`` no number.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    truth = copy.deepcopy(truth)
    for position, annotation in enumerate(truth.setdefault("annotations", []), 1):
        # COCO's evaluation takes a match with id 0 for no match.
        annotation["id"] = position
        crowd, area = flag(annotation.get("iscrowd")), annotation.get("area")
        if crowd is None or (area is not None and number(area) is None):
            raise ValueError(
                f"average_precision: annotation number {position} must have a flag as iscrowd and a number as area, "
                f"got {annotation.get('iscrowd')!r:.60} and {area!r:.60}"
            )
        annotation["iscrowd"] = int(crowd)
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3] if area is None else number(area)
    names = {category["id"]: category["name"] for category in truth["categories"]}
    keys = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    if not truth["annotations"]:
        return {**dict.fromkeys(keys, math.nan), "per_class": dict.fromkeys(names.values(), math.nan)}

    reference = COCO(truth)
    evaluation = COCOeval_faster(reference, _loaded(reference, detections), "bbox", print_function=lambda *_: None)
    parameters = evaluation.params
    parameters.maxDets = [max_detections]
    parameters.areaRng = [[0.0, LARGEST], *(list(areas[size]) for size in ("small", "medium", "large"))]
    parameters.areaRngLbl = ["all", "small", "medium", "large"]
    evaluation.evaluate()
    evaluation.accumulate()
    # (IoUs, recalls, classes, areas, 1); −1 where there are no objects.
    precision = torch.as_tensor(evaluation.eval["precision"])[..., 0]
    categories = [int(c) for c in parameters.catIds]
    values = [precision[..., 0], precision[0, ..., 0], precision[5, ..., 0], *precision[..., 1:].unbind(-1)]
    return {
        **dict(zip(keys, map(_mean, values), strict=True)),
        "per_class": {names[c]: _mean(precision[:, :, k, 0]) for k, c in enumerate(categories)},
    }


def _loaded(reference: Any, detections: Sequence[dict[str, Any]]) -> Any:
    from faster_coco_eval import COCO

    if detections:
        return reference.loadRes([dict(d) for d in detections])
    # loadRes reads the kind of all detections from the first one.
    return COCO(
        {"images": reference.dataset["images"], "categories": reference.dataset["categories"], "annotations": []}
    )


def _mean(precision: Tensor) -> float:
    counted = precision[precision > -1]
    return counted.mean().item() if counted.numel() else math.nan
