"""The networks of the explorer: small networks of the studies, which come with the package, and checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pliant._files import code_in, load
from pliant.data import Crowns, Transform
from pliant.data.drawing import CANVAS
from pliant.data.fashion_mnist import CLASSES
from pliant.models import Predictor, build_detector, checkpoint
from pliant.models import bundled as detectors
from pliant.models.detector import Detector
from pliant.studies.detection import contestants as detection
from pliant.studies.detection import protocol
from pliant.studies.geometry import contestants as geometry
from pliant.train import DetectorRecipe
from pliant.train.recipe import SCENE

BUNDLED = Path(__file__).with_name("bundled")
# The networks that come with the package: name of the file, label on the page, and a line about it.
SMALL = {
    "deform-v2-3": (
        "Piece of clothing, modulated",
        "Classifies one piece of clothing, with three modulated deformable layers: deform-v2-3.",
    ),
    "mdconv-c3-c5-mdpool": (
        "Clothes in a scene",
        "Detects clothes, with modulated deformable layers and pooling: mdconv-c3-c5-mdpool.",
    ),
    "deform-v1-3": (
        "Piece of clothing",
        "Classifies one piece of clothing, with three deformable layers: deform-v1-3.",
    ),
}
# Sides of the images of these sources for recipes that set none.
SIDES = {"composed": SCENE, "crowns": 200}
# The end of every error sentence of :func:`read`.
TAKEN = (
    "use best.pt or last.pt of `pliant train detector`, or a file CONTESTANT-DATA-SEED.pt in the folder models/ of a "
    "study; `pliant show --model MODULE:FUNCTION` draws the figures of any other network"
)
LONGEST = 640  # largest side of an image in pixels, whatever the recipe: the page has to follow the pointer


@dataclass(frozen=True)
class Network:
    """A network to explore.

    Args:
        id: in addresses of the server.
        label: its name on the page.
        about: one line about it.
        model: a `geometry.Net` or a detector, in evaluation mode.
        classes: their names.
        side: longer side of images as it sees them, in pixels; a classifier sees a square.
        resize: what training did to the size of images; None leaves it.
    """

    id: str
    label: str
    about: str
    model: nn.Module
    classes: tuple[str, ...]
    side: int
    resize: Transform | None = None

    @property
    def detects(self) -> bool:
        """Return whether it is a detector; else it is a classifier."""
        return isinstance(self.model, Detector)

    def own(self) -> Network:
        """Return a network with its own modules, which share the weights.

        Recording a forward pass hooks modules and sets their mode: two at the same time would mix their maps.
        """
        shared = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.model.buffers())}
        return replace(self, model=copy.deepcopy(self.model, shared))

    def body(self) -> nn.Module:
        """Return the module that turns a prepared image into the last map from which paths are traced."""
        if isinstance(self.model, Detector):
            return self.model.backbone
        return self.model.features  # type: ignore[return-value]

    def titles(self, steps: Sequence[tuple[str, int]]) -> list[str]:
        """Return the names on the page of steps of the body: those of the modules in the network, as `pliant show` has.

        Args:
            steps: module name in the body and number of taps, lowest first.
        """
        body = "backbone" if isinstance(self.model, Detector) else "features"
        return [f"{body}.{module}".rstrip(".") for module, _ in steps]

    def stem(self, images: Tensor) -> Tensor:
        """Return the responses of the first layer to images from :meth:`prepare`."""
        if isinstance(self.model, Detector):
            backbone = self.model.backbone
            return backbone.bn1(backbone.conv1(images)).relu()  # type: ignore[no-any-return]
        features: Any = self.model.features
        return features.relu1(features.bn1(features.conv1(images)))  # type: ignore[no-any-return]

    def prepare(self, canvas: Tensor) -> Tensor:
        """Return a canvas (3, H, W) in 0 … 1 as input (1, C, H', W') of the first layer, padded below and right."""
        if isinstance(self.model, Detector):
            return self.model.batch([canvas])[0]
        return canvas[None, :1]


def bundled() -> list[Network]:
    """Return the networks that come with the package.

    Raises:
        OSError: a file is missing.
        ValueError: a file is damaged.
    """
    return [
        _of_checkpoint(detectors.read(name), name, label, about)
        if name in detectors.NAMES
        else _of_study(name, detectors.unpack(BUNDLED / f"{name}.npz"), name, label, about)
        for name, (label, about) in SMALL.items()
    ]


def read(path: Path) -> Network:
    """Return the network of a checkpoint of ``pliant train detector``, or of a file in the folder `models` of a study.

    Both determine the network that their weights belong to. A plain state dict does not, and reading a pickled module
    would run its code.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: it is damaged or something else; the sentence says what is expected.
    """
    try:
        state = load(path)
    except ValueError as error:
        if needs := code_in(path):
            raise ValueError(f"{path} holds code ({needs}) that loading would run; {TAKEN}") from error
        raise ValueError(f"{path} is damaged, or not a file of weights that torch.save wrote; {TAKEN}") from error
    if isinstance(state, dict) and "recipe" in state:
        state = checkpoint.read(path)
        label = f"{path.parent.name}/{path.name}" if path.parent.name else path.name
        return _of_checkpoint(state, str(path), label, f"Detects {_listed(state['classes'])}.")
    name = path.stem.rsplit("-", 2)[0]
    if name not in {*geometry.CONTESTANTS, *detection.CONTESTANTS} or not isinstance(state, dict):
        raise ValueError(f"{path} does not say which network its weights belong to; {TAKEN}")
    return _of_study(name, state, str(path), path.stem, "Weights of a study.")


def _of_checkpoint(state: dict[str, Any], id: str, label: str, about: str) -> Network:
    """Return the network of a run's checkpoint, with the side of the images that it was trained on."""
    data = DetectorRecipe.of(state["recipe"]).data
    short = data.short_side or 0
    # Scenes are square; photographs are up to twice as long as they are high.
    side = data.long_side or (2 * short if data.own else short) or data.crop or data.size or SIDES.get(data.source, 320)
    predictor = Predictor.of(state)
    return Network(id, label, about, predictor.model, predictor.classes, min(side, LONGEST), predictor.resize)


def _of_study(name: str, state: dict[str, Tensor], id: str, label: str, about: str) -> Network:
    """Return the network of a contestant of a study, with these weights."""
    classes: tuple[str, ...]
    try:
        if name in geometry.CONTESTANTS:
            model: nn.Module = geometry.build(name)
            classes, side = CLASSES, CANVAS
        else:
            count, side = len(state["classifier.bias"]) - 1, protocol.SIDE
            scenes = count == len(protocol.CLASSES)
            classes, data = (protocol.CLASSES, "composed") if scenes else (Crowns.classes, "crowns")
            recipe = protocol.Protocol.of("quick").recipe_of(protocol.Task(name, data, 0), 1).model
            # The weights of feature mimicking are not in the file.
            model = build_detector(replace(recipe, mimic=None, mimic_options={}), count, pretrained=False)
        model.load_state_dict(state)
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{id}: the weights do not fit the contestant {name} of a study") from error
    return Network(id, label, about, model.eval(), classes, side)


def _listed(names: tuple[str, ...]) -> str:
    """Return a list of names in words, at most three of them in full.

    >>> _listed(("cat", "dog")), _listed(("a", "b", "c", "d", "e"))
    ('cat, dog', 'a, b, c and 2 more')
    """
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
