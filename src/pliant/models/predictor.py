"""Images in, detections out: a trained detector together with what its checkpoint says of images and classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pliant.data.images import pixels, read_image
from pliant.data.loader import Transform
from pliant.data.transforms import Resize
from pliant.models import bundled, checkpoint
from pliant.models.recipe import ModelRecipe, build_detector, recorded
from pliant.nn.modes import evaluation

if TYPE_CHECKING:
    import numpy
    import PIL.Image

    ImageLike = str | Path | PIL.Image.Image | numpy.ndarray[Any, Any] | Tensor


class Predictor:
    """Detect objects in images, resized as in training.

    Args:
        model: a detector of :mod:`pliant.models`; moved to `device` and put in evaluation mode.
        classes: names of the labels.
        category_ids: COCO's id of every label.
        resize: what training did to the size of images; None leaves it.
        device: where the model runs.

    >>> predictor = Predictor.load("mdconv-c3-c5-mdpool")
    >>> predictor.classes
    ('trouser', 'pullover', 'dress', 'sneaker', 'bag')
    >>> (found,) = predictor([torch.zeros(3, 96, 128)])
    >>> sorted(found)
    ['boxes', 'labels', 'scores']
    """

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[str],
        category_ids: Sequence[int],
        *,
        resize: Transform | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model, self.device = model.to(device).eval(), device
        self.classes, self.category_ids, self.resize = tuple(classes), tuple(category_ids), resize

    @classmethod
    def load(cls, source: str | Path, device: torch.device | str = "cpu") -> Predictor:
        """Return the predictor of a checkpoint.

        Args:
            source: best.pt or last.pt of a run of training; a detector of another library that ``pliant convert``
                wrote; or, as a string, the name of a detector that comes with the package
                (`pliant.models.bundled.NAMES`), unless a file has that name.
            device: where the model runs.

        Raises:
            OSError: the file does not exist or cannot be read.
            ValueError: the file is no checkpoint, or one of another version.
        """
        return cls.of(recorded_state(source), device)

    @classmethod
    def of(cls, state: dict[str, Any], device: torch.device | str = "cpu") -> Predictor:
        """Return the predictor of a checkpoint that :func:`pliant.models.checkpoint.read` returned.

        Raises:
            ValueError: the checkpoint is one of another version.
        """
        try:
            data = state["recipe"]["data"]
            resize = resizing(data["short_side"], data["long_side"], data.get("interpolation", "antialiased"))
        except KeyError as error:
            raise ValueError(f"the recipe was recorded by another version: {error} is missing") from error
        except TypeError as error:
            raise ValueError(f"the recipe is damaged: {error}") from error
        return cls(load_detector(state), state["classes"], state["category_ids"], resize=resize, device=device)

    def __call__(self, images: Sequence[ImageLike]) -> list[dict[str, Tensor]]:
        """Return the detections of images, which go through the network as one batch.

        Args:
            images: of any sizes. Each is a file, read as by :func:`pliant.data.read_image`; an image of Pillow's, of
                any mode; an array (H, W, 3), uint8; or a tensor (3, H, W), uint8 or floating-point with values in
                0 to 1.

        Returns:
            See :func:`detect`.

        Raises:
            TypeError: `images` is no sequence, or an image is of none of these types.
            ValueError: an image has another shape.
            OSError: a file does not exist or is no image.
        """
        if isinstance(images, str) or not isinstance(images, Sequence):
            raise TypeError(f"Predictor: images must be a list of images, got {type(images).__name__}")
        read = [_tensor(image, i) for i, image in enumerate(images)]
        return detect(self.model, read, resize=self.resize, device=self.device)


@torch.no_grad()
def detect(
    model: nn.Module, images: Sequence[Tensor], *, resize: Transform | None = None, device: torch.device | str = "cpu"
) -> list[dict[str, Tensor]]:
    """Detect objects in images of any size, in evaluation mode.

    Args:
        model: a detector of :mod:`pliant.models`.
        images: (3, H, W) each, uint8, or floating-point with values in 0 to 1.
        resize: what training did to the size of images; boxes are scaled back to the images given here.
        device: where the model is.

    Returns:
        For each image ``boxes (n, 4)``, ``scores (n,)`` and ``labels (n,)`` on the CPU, sorted by score. Boxes are
        x1 y1 x2 y2 in pixels of the image given here.
    """
    inputs, scales = [], []
    for image in images:
        h, w = image.shape[-2:]
        image = resized(image, resize)
        H, W = image.shape[-2:]
        scales.append(torch.tensor([w / W, h / H, w / W, h / H]))
        inputs.append(image.to(device).float() / (1 if image.is_floating_point() else 255))
    with evaluation(model):
        found = model(inputs, None)
    return [
        {"boxes": d["boxes"].float().cpu() * s, "scores": d["scores"].float().cpu(), "labels": d["labels"].cpu()}
        for d, s in zip(found, scales, strict=True)
    ]


def recorded_state(source: str | Path) -> dict[str, Any]:
    """Return what a checkpoint says: a file's, or that of a detector that comes with the package; see `Predictor.load`.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: the file is no checkpoint.
    """
    path = Path(source)
    if source in bundled.NAMES and not path.exists():
        return bundled.read(str(source))
    return checkpoint.read(path)


def load_detector(state: dict[str, Any]) -> nn.Module:
    """Return the detector of a checkpoint, in evaluation mode.

    Raises:
        ValueError: the checkpoint is one of another version, or its parts do not fit each other.
    """
    try:
        settings = state["recipe"]["model"]
    except KeyError as error:
        raise ValueError(f"the recipe was recorded by another version: {error} is missing") from error
    try:
        model = build_detector(recorded(ModelRecipe, settings), len(state["classes"]), pretrained=False)
        model.load_state_dict(state["model"])
    except (AttributeError, TypeError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"the weights do not fit the recipe that is recorded with them: {said[:200]}") from error
    return model.eval()


def resizing(short_side: int, long_side: int, interpolation: str) -> Transform | None:
    """Return what a recipe with these settings does to the size of every image; None leaves it."""
    return Resize(short_side, long_side or None, interpolation) if short_side else None


def resized(image: Tensor, resize: Transform | None) -> Tensor:
    """Return an image (3, H, W), resized by a transform of images with boxes."""
    if resize is None:
        return image
    if isinstance(resize, Resize) and resize.interpolation == "torchvision" and not image.is_floating_point():
        image = image.float() / 255  # torchvision does not round
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    nothing["ignore"] = torch.zeros(0, dtype=torch.bool)
    return resize(image, nothing, torch.Generator())[0]


def _tensor(image: ImageLike, index: int) -> Tensor:
    """Return one of the images that a :class:`Predictor` takes as a tensor (3, H, W)."""
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if not isinstance(image, Tensor):
        import numpy as np
        from PIL import Image

        if isinstance(image, Image.Image):
            return pixels(image)
        if not isinstance(image, np.ndarray):
            raise TypeError(
                f"Predictor: images[{index}] must be a path, an image of Pillow's, an array or a tensor, "
                f"got {type(image).__name__}"
            )
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(
                f"Predictor: images[{index}] must be an array (H, W, 3) of uint8, got {image.shape} of {image.dtype}"
            )
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).contiguous()
    right = image.dim() == 3 and image.shape[0] == 3 and 0 not in image.shape
    if not right or not (image.is_floating_point() or image.dtype == torch.uint8):
        raise ValueError(
            f"Predictor: images[{index}] must be a tensor (3, H, W), uint8 or floating-point, "
            f"got {tuple(image.shape)} of {image.dtype}"
        )
    return image
