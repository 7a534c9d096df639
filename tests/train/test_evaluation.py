from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pliant.train import average_precision, detect, evaluate

SIZES = ("APs", "APm", "APl")


def truth(*boxes: tuple[int, int, list[float]], **more: Any) -> dict[str, Any]:
    """Two pictures; boxes are (picture, category, x y w h)."""
    annotations = [
        {"id": i, "image_id": image, "category_id": c, "bbox": box, **more} for i, (image, c, box) in enumerate(boxes)
    ]
    categories = [{"id": 3, "name": "dog"}, {"id": 5, "name": "cat"}]
    return {"images": [{"id": 1}, {"id": 2}], "categories": categories, "annotations": annotations}


def hit(image: int, category: int, box: list[float], score: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def test_known_values() -> None:
    two = truth((1, 3, [10, 10, 20, 20]), (2, 3, [60, 60, 100, 100]))
    # One of two found: precision 1 up to recall 0.5, which is 51 of the 101 recalls. The cat is wrong, but there is
    # none to find: it takes no part.
    found = average_precision(two, [hit(1, 3, [10, 10, 20, 20], 0.9), hit(2, 5, [0, 0, 9, 9], 0.8)])
    half = 51 / 101
    assert [found[key] for key in ("AP", "AP50", "AP75")] == pytest.approx([half] * 3)
    assert [found[key] for key in SIZES] == pytest.approx([1, math.nan, 0], nan_ok=True)
    assert found["per_class"] == pytest.approx({"dog": half, "cat": math.nan}, nan_ok=True)


def test_overlap_decides() -> None:
    # 20×20 beside 20×14 in it: overlap 0.7, enough for five of the ten thresholds (0.50 … 0.70).
    found = average_precision(truth((1, 5, [0, 0, 20, 20])), [hit(1, 5, [0, 0, 20, 14.001], 0.9)])
    assert [found[key] for key in ("AP", "AP50", "AP75")] == pytest.approx([0.5, 1, 0])


def test_crowd_is_neither_missed_nor_wrong() -> None:
    one, crowd = truth((1, 3, [0, 0, 20, 20])), truth((1, 3, [30, 30, 60, 60]), iscrowd=1)
    both = {**one, "annotations": one["annotations"] + crowd["annotations"]}
    inside = [hit(1, 3, [35 + i, 40, 20, 20], 0.95) for i in range(3)]
    assert average_precision(both, [*inside, hit(1, 3, [0, 0, 20, 20], 0.9)])["AP"] == pytest.approx(1)
    assert average_precision(one, [*inside, hit(1, 3, [0, 0, 20, 20], 0.9)])["AP"] == pytest.approx(1 / 4)


def test_flags_and_areas_may_be_strings() -> None:
    there = truth((1, 3, [0, 0, 20, 20]))
    inside = [hit(1, 3, [35, 40, 20, 20], 0.95), hit(1, 3, [0, 0, 20, 20], 0.9)]

    def score(**given: Any) -> dict[str, Any]:
        other = truth((1, 3, [30, 30, 60, 60]), **given)
        found = average_precision({**there, "annotations": there["annotations"] + other["annotations"]}, inside)
        return {key: found[key] for key in ("AP", "AP50", "AP75", *SIZES)}

    crowds = score(iscrowd=1, area=9.0)
    for given in (1.0, True, "1", "true"):
        assert score(iscrowd=given, area="9.0") == pytest.approx(crowds, nan_ok=True)
    single = score()
    for given in (0, False, None, "0", "false"):
        assert score(iscrowd=given, area=None) == pytest.approx(single, nan_ok=True)
    assert crowds["AP"] == pytest.approx(1) and single["AP"] < 0.6
    for wrong in ({"iscrowd": "maybe"}, {"area": "large"}):
        with pytest.raises(ValueError, match="annotation number 2 must have a flag as iscrowd and a number as area"):
            score(**wrong)


def test_nothing_found_and_nothing_to_find(capfd: pytest.CaptureFixture[str]) -> None:
    some, none = truth((1, 3, [0, 0, 20, 20])), truth()
    assert [average_precision(some, [])[key] for key in ("AP", "AP50", "APs")] == [0, 0, 0]
    for detections in ([], [hit(1, 3, [0, 0, 20, 20], 0.9)]):
        found = average_precision(none, detections)
        assert all(math.isnan(value) for key, value in found.items() if key != "per_class")
        assert list(found["per_class"]) == ["dog", "cat"]
    assert capfd.readouterr() == ("", "")


def test_areas_and_number_of_detections_are_the_callers() -> None:
    one = truth((1, 3, [0, 0, 20, 20]))
    found = average_precision(
        one,
        [hit(1, 3, [0, 0, 20, 20], 0.9)],
        areas={"small": (0, 100), "medium": (100, 300), "large": (300, 1e10)},
    )
    assert [found[key] for key in SIZES] == pytest.approx([math.nan, math.nan, 1], nan_ok=True)
    worse_first = [hit(1, 3, [50, 50, 20, 20], 0.95), hit(1, 3, [0, 0, 20, 20], 0.9)]
    assert average_precision(one, worse_first, max_detections=1)["AP"] == 0
    assert average_precision(one, worse_first, max_detections=2)["AP"] == pytest.approx(0.5)


def test_truth_is_left_alone() -> None:
    one = truth((1, 3, [0, 0, 20, 20]))
    average_precision(one, [hit(1, 3, [0, 0, 20, 20], 0.9)])
    assert one == truth((1, 3, [0, 0, 20, 20]))


@pytest.mark.parametrize(("batch", "workers"), [(4, 0), (5, 1), (100, 0)])
def test_a_detector_that_knows_is_perfect(oracle: Any, scenes: Any, batch: int, workers: int) -> None:
    net = oracle().train()
    found = evaluate(net, scenes(17), batch=batch, workers=workers)
    assert found["AP"] == pytest.approx(1)
    assert found["per_class"] == pytest.approx({"red": 1, "green": 1})
    assert net.training


def test_data_sets_say_what_is_small(oracle: Any, scenes: Any) -> None:
    data = scenes(8)
    data.area_ranges = {"small": (0, 1), "medium": (1, 2), "large": (2, 1e10)}
    assert [evaluate(oracle(), data)[key] for key in SIZES] == pytest.approx([math.nan, math.nan, 1], nan_ok=True)


def double(image: Tensor, target: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
    assert target["boxes"].shape == (0, 4)
    return image.repeat_interleave(2, 1).repeat_interleave(3, 2), target


def test_boxes_come_back_in_the_pictures_own_pixels(oracle: Any, scenes: Any) -> None:
    data = scenes(3)
    images = [data[i][0] for i in range(3)]
    for found, image, i in zip(detect(oracle(), images, resize=double), images, range(3), strict=True):
        torch.testing.assert_close(found["boxes"], data[i][1]["boxes"])
        assert image.shape == (3, 32, 40)
    assert evaluate(oracle(), data, resize=double)["AP"] == pytest.approx(1)


def test_unreadable_pictures_are_named_and_count_as_empty(oracle: Any, scenes: Any) -> None:
    class Damaged(scenes):  # type: ignore[misc]
        def coco(self) -> dict[str, Any]:
            return scenes(self.count).coco()

    for batch in (1, 4):
        found = evaluate(oracle(), Damaged(6, broken=(2,)), batch=batch)
        assert found["broken"] == ["cannot read picture 2.jpg"]
        assert 0.5 < found["AP"] < 1


def test_no_pictures(oracle: Any, scenes: Any) -> None:
    with pytest.raises(ValueError, match="no images to evaluate"):
        evaluate(oracle(), scenes(0))
