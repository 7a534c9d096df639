"""Label the data of one file as another one: two annotation files agree in the names of their categories alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pliant.data.coco import AREA_RANGES, Target

if TYPE_CHECKING:
    from pliant.data.loader import Detection

NAMED = 5  # most categories named in a sentence


def matched(
    data: Detection, classes: Sequence[str], category_ids: Sequence[int], what: str = "the detector"
) -> Detection:
    """Return data whose labels number `classes`, with `category_ids`: its own categories are matched to them by name.

    Order and ids of its categories may differ, and some may be missing. One that is not among `classes` is left out if
    it has no box. `problems` of what is returned has a sentence for every difference, and one warning is given.

    Args:
        data: images with boxes; returned as it is if its categories are these.
        classes: names of the labels.
        category_ids: their ids.
        what: has these categories, for sentences.

    Raises:
        ValueError: a box has a category that is not among `classes`.

    >>> from pliant.data import Composed
    >>> scenes = Composed(seed=0, count=2, classes=("bag", "sneaker"))
    >>> swapped = matched(scenes, ("sneaker", "bag"), scenes.category_ids[::-1])
    >>> scenes[0][1]["labels"].tolist(), swapped[0][1]["labels"].tolist()
    ([1, 0], [0, 1])
    """
    if tuple(data.classes) == tuple(classes) and tuple(data.category_ids) == tuple(category_ids):
        return data
    ids = dict(zip(classes, category_ids, strict=True))
    own = dict(zip(data.classes, data.category_ids, strict=True))
    extra = [name for name in own if name not in ids]
    if extra:
        counts = dict.fromkeys(extra, 0)
        names = {id: name for name, id in own.items()}
        for annotation in data.coco()["annotations"]:
            name = names[annotation["category_id"]]
            counts[name] = counts.get(name, 0) + 1
        found = [f"{name!r} ({counts[name]} boxes)" for name in extra if counts[name]]
        if found:
            raise ValueError(
                f"the data has boxes of {_some(found)}; {what} has the categories {_some(list(map(repr, classes)))}: "
                "categories are matched by name, so give them the same names, or remove these boxes"
            )
    differ = [f"{name!r} ({own[name]} and {ids[name]})" for name in own if name in ids and own[name] != ids[name]]
    missing = [repr(name) for name in classes if name not in own]
    said = [
        f"the ids of {_some(differ)} differ between the data and {what}; matched by name" if differ else "",
        f"the data does not list {_some(missing)} of {what}; they are not measured" if missing else "",
        f"{what} does not have {_some(list(map(repr, extra)))}, of which there is no box; left out" if extra else "",
    ]
    return Matched(data, classes, category_ids, [sentence for sentence in said if sentence])


class Matched(Dataset[tuple[Tensor, Target]]):
    """Data with other labels; see :func:`matched`.

    Attributes:
        classes: names of the labels.
        category_ids: their ids.
        area_ranges: of the data.
        problems: of the data, and one sentence per difference.
    """

    def __init__(
        self, data: Detection, classes: Sequence[str], category_ids: Sequence[int], differences: list[str]
    ) -> None:
        self.data, self.classes, self.category_ids = data, tuple(classes), tuple(category_ids)
        self.area_ranges = getattr(data, "area_ranges", AREA_RANGES)
        self.problems = [*getattr(data, "problems", []), *(f"categories: {sentence}" for sentence in differences)]
        places = {name: label for label, name in enumerate(self.classes)}
        # −1 is never read: no box has a category that is left out.
        self._labels = torch.tensor([places.get(name, -1) for name in data.classes])
        self._ids = dict(zip(data.category_ids, (int(place) for place in self._labels), strict=True))
        if differences:
            warnings.warn(f"categories: {'; '.join(differences)}", stacklevel=3)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image, target = self.data[index]
        return image, {**target, "labels": self._labels[target["labels"]]}

    def coco(self) -> dict[str, Any]:
        """Return the ground truth in COCO's form, with these categories."""
        truth = self.data.coco()
        categories = [{"id": id, "name": name} for id, name in zip(self.category_ids, self.classes, strict=True)]
        annotations = [
            {**annotation, "category_id": self.category_ids[self._ids[annotation["category_id"]]]}
            for annotation in truth["annotations"]
        ]
        return {**truth, "categories": categories, "annotations": annotations}


def _some(names: Sequence[str]) -> str:
    """Return names as a list in words, the first `NAMED` of them.

    >>> _some(["a", "b", "c"]), _some(list("abcdefgh"))
    ('a, b, c', 'a, b, c, d, e and 3 more')
    """
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
