"""``pliant train detector``: train a detector, or resume a run."""

from __future__ import annotations

import dataclasses
import errno
import shlex
import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import nn

from pliant._files import apart
from pliant.app import COMMANDS, DEVICE, arguments, trace
from pliant.app.data import told
from pliant.app.progress import progress
from pliant.data import Detection, Part, matched
from pliant.train import DataRecipe, DetectorRecipe, build_detector, fit_detector, log, parameters
from pliant.train.build import augmentation, build_data, resizing
from pliant.train.distributed import Ranks, start

WRITTEN = ("recipe.json", "metrics.jsonl", "last.pt", "best.pt")


def main(words: Sequence[str]) -> int:
    """Train as the arguments say; return the exit status."""
    detector = arguments.parser(
        "pliant train detector [OPTION …]",
        "Train a detector; without options, a small deformable one, in minutes. The settings are those of "
        f"DetectorRecipe. Example: {COMMANDS['train'].example}",
    )
    detector.add_argument(
        "--config", action="config", help="YAML or JSON file of settings, such as the recipe.json of a run"
    )
    detector.add_class_arguments(DetectorRecipe, None)
    detector.add_argument(
        "--images",
        metavar="DIR",
        default=SUPPRESS,
        help="your images: short for --data.source folder --data.images DIR",
    )
    detector.add_argument(
        "--annotations",
        metavar="FILE",
        default=SUPPRESS,
        help="their annotations: short for --data.source folder --data.annotations FILE",
    )
    detector.add_argument("--out", type=str, default="runs/detector", help="folder of the run")
    detector.add_argument("--resume", action="store_true", help="resume the run in --out, with its settings")
    detector.add_argument("--device", type=str, default="auto", help=DEVICE)
    detector.add_argument("--tensorboard", action="store_true", help="write curves for TensorBoard into --out")
    parser = arguments.parser("pliant train detector [OPTION …]", "Train a network.")
    parser.add_subcommands(dest="what", metavar="WHAT").add_subcommand("detector", detector, help="an object detector")

    if not words:
        raise ValueError("say what to train: pliant train detector")
    words, given = arguments.configured(arguments.spelled_out(words, "data.images", "data.annotations"))
    args = arguments.parse(parser, words, DetectorRecipe).detector
    if args.resume:
        # Settings given here override those of the run; fit_detector refuses a difference.
        written = Path(args.out) / "recipe.json"
        if not written.exists():
            raise ValueError(f"there is no run to resume in {args.out}: {written} is missing")
        if lacks := {f.name for f in dataclasses.fields(DetectorRecipe)} - arguments.settings(written).keys():
            raise ValueError(f"{written} is not the recipe of a run: it lacks {', '.join(sorted(lacks))}")
        at = words.index("detector") + 1
        more, _ = arguments.configured(["--config", str(written)])
        args = arguments.parse(parser, [*words[:at], *more, *words[at:]], DetectorRecipe).detector
    values = detector.instantiate(args)
    recipe = DetectorRecipe(**{f.name: getattr(values, f.name) for f in dataclasses.fields(DetectorRecipe)})
    # The recipe of a resumed run is read, and stays as it is.
    read = (
        *([] if args.resume else given),
        recipe.data.annotations,
        recipe.data.test_annotations,
        recipe.model.weights,
    )
    apart((Path(args.out) / name for name in WRITTEN), (Path(name) for name in read if name))
    with start(args.device) as ranks:
        return _train(recipe, Path(args.out), args.resume, ranks, args.tensorboard)


def _train(recipe: DetectorRecipe, folder: Path, resume: bool, ranks: Ranks, tensorboard: bool) -> int:
    train, test = _data(recipe.data, ranks.rank == 0)
    model = build_detector(recipe.model, len(train.classes), seed=recipe.seed, pretrained=not resume)
    bar = progress(_about(recipe, model, train, test, ranks, folder))
    status, said = 0, ""
    try:
        with bar:
            fit_detector(
                model, train, recipe, transform=augmentation(recipe.data), resize=resizing(recipe.data),
                test=test, folder=folder, resume=resume, ranks=ranks, tensorboard=tensorboard, on_start=bar.start,
                on_record=bar.record,
            )  # fmt: skip
    except KeyboardInterrupt as error:
        again = f"Resume with: pliant train detector --out {folder} --resume"
        # Interrupted at once, the error has no arguments.
        status, said = 130, f"Interrupted {error}. {again}" if error.args else f"Interrupted: {_kept(folder)}."
    except FloatingPointError as error:
        trace(error)
        status, said = 1, f"Stopped: {error}."
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        trace(error)
        status, said = 1, f"The disk is full: {_kept(folder)}."
    if ranks.rank == 0:
        if status:
            print(f"\n{said}", file=sys.stderr)
        else:
            print(_outcome(folder))
    return status


def _data(recipe: DataRecipe, aloud: bool) -> tuple[Detection, Detection | None]:
    """Return training and test data, with the categories of the training data, and print what is wrong with them."""
    train = told(partial(build_data, recipe, "train"), aloud)
    assert train is not None

    def test() -> Detection | None:
        data = build_data(recipe, "test")
        return None if data is None else matched(data, train.classes, train.category_ids, "the training data")

    return train, told(test, aloud)


def _about(
    recipe: DetectorRecipe, model: nn.Module, train: Detection, test: Detection | None, ranks: Ranks, folder: Path
) -> str:
    """Return what is trained on what, and where."""
    data, shared = recipe.data, f" on {ranks.world} processes" if ranks.world > 1 else ""
    tested = "no test images" if test is None else f"{len(test)} test images"
    if isinstance(test, Part):
        tested += f", held out because none are named (--data.hold-out {data.hold_out:g})"
    return (
        f"{recipe.model.detector}, {parameters(model) / 1e6:.2f} M parameters, on {ranks.device}{shared}; {len(train)} "
        f"training images of {data.images if data.own else data.source}, {tested}; {len(train.classes)} classes; "
        f"{recipe.batch} images per step. The run is {folder}/."
    )


def _kept(folder: Path) -> str:
    last = folder / "last.pt"
    return f"{last} is the last checkpoint; --resume continues from it" if last.exists() else "nothing is kept"


def _outcome(folder: Path) -> str:
    """Return the result of a finished run in one sentence, and the commands that come next."""
    scores = [r for r in log.read(folder / "metrics.jsonl") if r["kind"] == "evaluation"]
    known = [r for r in scores if r.get("AP") is not None]
    best, made = max(known, key=lambda r: r["AP"], default=None), shlex.quote(str(folder / "best.pt"))
    result = "no test images" if best is None else f"AP {100 * best['AP']:.1f} after step {best['step']}"
    lines = [
        f"Done: {folder}/best.pt, {result}. Next:",
        f"  pliant predict {made} IMAGE …   boxes on your images",
        f"  pliant show {made} IMAGE        where the network looks",
    ]
    return "\n".join([*lines, f"  pliant eval {made}              AP of every class"] if scores else lines)
