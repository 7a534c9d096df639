"""``pliant show``: draw where a network looks in an image, a sequence or a volume, as PNGs and one page."""

from __future__ import annotations

import argparse
import importlib
import pickle
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant._files import apart
from pliant.app.explore import networks, pictures
from pliant.data import read_image
from pliant.models.predictor import resized
from pliant.show import figures, taps
from pliant.show.view import view
from pliant.studies.geometry.contestants import Net
from pliant.studies.report import page
from pliant.train import log

if TYPE_CHECKING:
    import numpy as np

MOST, LEAST, EASY = 60, 12, 512  # most and fewest evaluations; side of an image up to which they are not reduced
OUT = Path("runs/show")
SHARP = 1200  # side of the photograph under the points in pixels, at most
INPUT = "an image of any size and kind, or a sequence (C, L) or volume (C, D, H, W) as .npy or .pt"
TENSORS = (".npy", ".pt", ".pth")  # suffixes of files that hold a tensor
LONGEST = 1333  # side of an image in pixels, unless --side says otherwise
OURS = "One of the networks that come with the package."
_OWN = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")  # MODULE:FUNCTION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``pliant show`` takes."""
    model = (
        "best.pt or last.pt of a run of pliant train, weights of a study, MODULE:FUNCTION, which returns any module "
        f"that takes images (1, 3, H, W) in 0 … 1, or a network of the package: {', '.join(networks.SMALL)}; for a "
        "tensor MODULE:FUNCTION alone"
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help=model)
    parser.add_argument("image", type=Path, metavar="IMAGE", nargs="?", help=INPUT)
    # The spelling of earlier versions.
    parser.add_argument("--model", dest="old_model", help=argparse.SUPPRESS)
    parser.add_argument("--image", dest="old_image", type=Path, help=argparse.SUPPRESS)
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--point", type=_numbers(1, 2, 3), metavar="X,Y",
        help="the place to explain, in pixels of the file (default: the best detection, or the middle); X of a "
        "sequence and X,Y,Z of a volume (default: where offsets are longest)",
    )  # fmt: skip
    place.add_argument("--box", type=_numbers(4), metavar="X1,Y1,X2,Y2", help="an object, in pixels of the file")
    parser.add_argument(
        "--out", type=Path, default=OUT, metavar="DIR", help=f"for the figures and report.html (default: {OUT})"
    )
    parser.add_argument("--layer", metavar="NAME", help="layer whose output is explained (default: the last stage)")
    parser.add_argument(
        "--side", type=int, metavar="PIXELS",
        help="shrink larger images to this longer side (default: that of the training images)",
    )  # fmt: skip
    parser.add_argument(
        "--error", type=float, default=figures.ERROR, help=f"bound of saliency regions (default: {figures.ERROR})"
    )
    parser.add_argument(
        "--evaluations", type=int, metavar="N",
        help=f"most forward passes per saliency region (default: {MOST}, fewer for images larger than {EASY} × {EASY})",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Draw, write the page, and say where it is."""
    _take_old_spelling(args)
    _check_settings(args)
    network = _network(args.model)
    if args.image.suffix in TENSORS:
        return _tensor(args, network)
    with warnings.catch_warnings():
        # Pillow warns of suspiciously large images; here they are refused.
        warnings.simplefilter("error")
        image = read_image(args.image)
    _, H, W = image.shape
    _check_place(args, W, H)
    seen, factor, shift = _seen(network, image, args.side)
    point, box = (_moved(numbers, seen, factor, shift) for numbers in (args.point, args.box))
    square = isinstance(network.model, Net)  # a classifier of the geometry study: one grey object
    input = seen[:1] if square else seen
    drawn = seen[0] if square else seen.permute(1, 2, 0)
    try:
        look = view(
            network.model, input, image=drawn.double().numpy(), layer=args.layer, classes=network.classes,
            photograph=None if square else _photograph(image),
            point=None if point is None else (point[0], point[1]),
            box=None if box is None else (box[0], box[1], box[2], box[3]),
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise ValueError(error.args[0]) from error
    except RuntimeError as error:
        if not _OWN.fullmatch(args.model):
            raise
        raise _failure(args.model, "an image", input, error) from error
    evaluations = args.evaluations or max(LEAST, min(MOST, MOST * EASY**2 // (seen.shape[1] * seen.shape[2])))
    found, notes = figures.figures(
        look, error=args.error, evaluations=evaluations, tell=lambda name: print(f"  {name}.png", flush=True)
    )
    try:
        found.append(figures.training(log.read(Path(args.model).parent / "metrics.jsonl")))
    except (LookupError, ValueError) as reason:
        notes.append(str(reason.args[0]))
    facts = {
        "network": f"{args.model}. {network.about}",
        "image": f"{args.image}, {W} × {H} pixels, seen at {seen.shape[2]} × {seen.shape[1]}",
    }
    if square:
        facts["answer"] = _answer(network, input)
    names = [*(f"{figure.name}.png" for figure in found), "report.html"]
    apart((args.out / name for name in names), (args.image, Path(args.model)))
    path = write(args.out, f"{network.label} looks at {args.image.name}", found, notes, facts)
    print(f"{len(found)} figures and the page {path}")
    return 0


def _tensor(args: argparse.Namespace, network: networks.Network) -> int:
    """Draw the taps of a network over a sequence or a volume, and say where the page is."""
    refused = {"--box": args.box, "--side": args.side, "--evaluations": args.evaluations}
    for name, given in refused.items():
        if given is not None:
            raise ValueError(f"{name} is for images; {args.image} is a tensor")
    ranks = sorted({len(layer.kernel_size) for _, layer in taps.layers(network.model)})
    if not ranks:
        raise ValueError(f"{args.model} has no deformable layer of sequences or volumes; images are files of images")
    tensor = _read(args.image)
    input = next((found for rank in ranks if (found := _fitted(tensor, rank)) is not None), None)
    if input is None:
        forms = " or ".join({1: "(C, L)", 3: "(C, D, H, W)"}[rank] for rank in ranks)
        raise ValueError(f"{args.image} must have shape {forms}, got {tuple(tensor.shape)}")
    try:
        made = taps.figures(network.model, input, layer=args.layer, point=args.point)
    except RuntimeError as error:
        raise _failure(args.model, "an input", input, error) from error
    for figure in made:
        print(f"  {figure.name}.png", flush=True)
    apart((args.out / name for name in [*(f"{figure.name}.png" for figure in made), "report.html"]), (args.image,))
    size = " × ".join(map(str, input.shape[1:]))
    facts = {"network": f"{args.model}. {network.about}", "input": f"{args.image}, {len(input)} channels of {size}"}
    path = write(args.out, f"{network.label} looks at {args.image.name}", made, facts=facts)
    print(f"{len(made)} figures and the page {path}")
    return 0


def _read(path: Path) -> Tensor:
    """Return the tensor in a file of numpy's or torch's, as float32."""
    import numpy as np

    try:
        held = np.load(path, allow_pickle=False) if path.suffix == ".npy" else torch.load(path, weights_only=True)
    except (ValueError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} holds no tensor: {str(error).partition(chr(10))[0]}") from error
    if isinstance(held, np.ndarray) and held.dtype.kind in "biuf":
        held = torch.from_numpy(held.astype(np.float32))
    if not isinstance(held, Tensor) or held.is_complex():
        raise ValueError(f"{path} must hold one tensor of real numbers, got {type(held).__name__}")
    return held.float()


def _fitted(tensor: Tensor, rank: int) -> Tensor | None:
    """Return a tensor as (C, …) of `rank` axes: one channel where it has none, without a batch of one; else None."""
    if tensor.dim() == rank:
        return tensor[None]
    if tensor.dim() == rank + 2 and len(tensor) == 1:
        return tensor[0]
    return tensor if tensor.dim() == rank + 1 else None


def _failure(model: str, what: str, input: Tensor, error: RuntimeError) -> ValueError:
    """Return an error that says on which input a network of the user fails, and why."""
    said = str(error).partition("\n")[0]
    return ValueError(f"{model} fails on {what} {tuple(input[None].shape)}: {said}")


def _take_old_spelling(args: argparse.Namespace) -> None:
    """Move ``--model M --image FILE`` to the places of MODEL and IMAGE."""
    given = [word for word in (args.old_model, args.model, args.old_image, args.image) if word is not None]
    if len(given) != 2:
        raise ValueError("say which model and which image: pliant show MODEL IMAGE")
    args.model, args.image = str(given[0]), Path(given[1])


def _photograph(image: Tensor) -> np.ndarray:
    """Return an image (3, H, W), uint8, as it is drawn under the points: (H', W', 3) in 0 … 1, at most SHARP a side."""
    factor = min(1.0, SHARP / max(image.shape[1:]))
    size = [max(1, round(side * factor)) for side in image.shape[1:]]
    small = F.interpolate(image[None].float() / 255, size, mode="bilinear", antialias=True)[0]
    array: np.ndarray = small.clamp(0, 1).permute(1, 2, 0).double().numpy()
    return array


def _check_settings(args: argparse.Namespace) -> None:
    """Refuse settings that fit no image."""
    if not 0 < args.error < 1 or (args.evaluations is not None and args.evaluations < 2):
        raise ValueError(
            f"--error must lie between 0 and 1 and --evaluations be at least 2, got {args.error} and {args.evaluations}"
        )
    if args.side is not None and args.side < 8:
        raise ValueError(f"--side must be at least 8 pixels, got {args.side}")


def _check_place(args: argparse.Namespace, W: int, H: int) -> None:
    """Refuse a point or a box that is not in an image of W × H pixels."""
    if args.point is not None and len(args.point) != 2:
        raise ValueError(f"--point must be 2 numbers X,Y on an image, got {len(args.point)}")
    for name, numbers in (("--point", args.point), ("--box", args.box)):
        if numbers is not None and not all(0 <= v <= (W, H)[i % 2] for i, v in enumerate(numbers)):
            said = ",".join(f"{v:g}" for v in numbers)
            raise ValueError(f"{name} {said} is outside of {args.image}, which has {W} × {H} pixels")
    if args.box is not None and not (args.box[0] < args.box[2] and args.box[1] < args.box[3]):
        said = ",".join(f"{v:g}" for v in args.box)
        raise ValueError(f"--box {said} must be X1,Y1,X2,Y2 with X1 < X2 and Y1 < Y2")


@torch.no_grad()
def _answer(network: networks.Network, input: Tensor) -> str:
    """Return the most likely classes of a classifier in words."""
    chances = network.model(input[None])[0].softmax(0)
    best = chances.topk(min(3, len(chances)))
    named = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return ", ".join(f"{network.classes[i]} {chance:.0%}" for i, chance in named)


def write(
    out: Path,
    title: str,
    found: Sequence[figures.Figure],
    notes: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write figures as PNGs, and report.html with all of them inside; return its path.

    Args:
        out: folder, created if missing.
        title: of the page.
        found: from :func:`pliant.show.figures.figures`.
        notes: a sentence for each figure that was left out.
        facts: the first lines of the page: name → text.

    Raises:
        OSError: it could not be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    body = [page.heading(title, 1)]
    body.append(page.bullets([f"{name}: {text}" for name, text in (facts or {}).items()]))
    for figure in found:
        (out / f"{figure.name}.png").write_bytes(figure.data)
        width = int.from_bytes(figure.data[16:20], "big")  # of a PNG
        body += [page.heading(figure.title), page.picture(figure.data, figure.title, figure.caption, width)]
    if notes:
        body += [page.heading("Left out"), page.bullets(list(notes))]
    return page.write(page.page(title, body), out / "report.html")


def _network(model: str) -> networks.Network:
    """Return the network of a checkpoint, a network of the package, or the module that a function returns.

    Raises:
        OSError: the file does not exist.
        ValueError: the file is something else, or the function does not exist.
    """
    if model in networks.SMALL and not Path(model).exists():
        return next(replace(network, label=model, about=OURS) for network in networks.bundled() if network.id == model)
    if not _OWN.fullmatch(model) or Path(model).exists():
        return networks.read(Path(model))
    module, name = model.split(":")
    sys.path.insert(0, "")  # the folder in which the command was started, as with python -m
    try:
        made = getattr(importlib.import_module(module), name)()
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"{model}: there is no module {error.name}, neither here nor installed") from error
    except AttributeError as error:
        if error.name != name:
            raise
        raise ValueError(f"{model}: {module} has no function {name}") from error
    finally:
        sys.path.remove("")
    if not isinstance(made, nn.Module):
        raise ValueError(f"{model}: {name}() must return a torch.nn.Module, got {type(made).__name__}")
    return networks.Network(model, model, type(made).__name__, made.eval(), (), networks.LONGEST)


def _seen(network: networks.Network, image: Tensor, side: int | None) -> tuple[Tensor, float, tuple[float, float]]:
    """Return an image (3, H, W) in 0 … 1 as a network sees it, its scale, and where (x, y) its pixel (0, 0) lies.

    For a detector the image is resized as its recipe says, without a recipe to at most the size of the training images.
    A classifier of the geometry study sees one object in a square, as `pliant explore` draws it.
    """
    _, H, W = image.shape
    if isinstance(network.model, Net):
        seen = pictures.canvas(pictures.Picture("", "", "yours", image), network)
        factor = pictures.OBJECT / max(H, W)
        return seen, factor, (network.side / 2 - factor * W / 2, network.side / 2 - factor * H / 2)
    if side is None:
        image = resized(image, network.resize)
    most = side or (network.side if network.resize is None else LONGEST)
    h, w = image.shape[1:]
    if max(h, w) > most:
        size = max(1, round(h * most / max(h, w))), max(1, round(w * most / max(h, w)))
        image = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return (image.float() / 255).clamp(0, 1), image.shape[2] / W, (0.0, 0.0)


def _moved(
    numbers: tuple[float, ...] | None, seen: Tensor, factor: float, shift: tuple[float, float]
) -> tuple[float, ...] | None:
    """Return coordinates x, y, x, y … in pixels of the file as pixels of the image that the network sees."""
    if numbers is None:
        return None
    sides = (seen.shape[2], seen.shape[1])
    last = 1e-3 if len(numbers) == 2 else 0.0  # a point lies inside of a pixel, a box may end at the last edge
    return tuple(min(max(v * factor + shift[i % 2], 0.0), sides[i % 2] - last) for i, v in enumerate(numbers))


def _numbers(*counts: int):  # type: ignore[no-untyped-def]
    """Return a function that reads numbers separated by commas, as many as one of `counts`."""

    def read(text: str) -> tuple[float, ...]:
        try:
            found = tuple(float(part) for part in text.split(","))
        except ValueError:
            found = ()
        if len(found) not in counts or not all(v == v and abs(v) < 1e9 for v in found):
            many = " or ".join(map(str, counts))
            raise argparse.ArgumentTypeError(f"must be {many} numbers separated by commas, got {text!r}")
        return found

    return read
