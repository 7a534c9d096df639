"""The command line: ``pliant COMMAND …``, or ``python -m pliant COMMAND …``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

import pliant


class Command(NamedTuple):
    """What a command does, an example, the extra that installs what it imports, and its group in the help."""

    does: str
    example: str
    extra: str
    group: str


# The module pliant.app.COMMAND has `add_arguments(parser)` and `run(args) -> int`, or `main(words) -> int` if it reads
# its arguments with a parser of its own. It is imported only when the command runs: `pliant --help` and a mistyped
# command answer without torch.
COMMANDS = {
    "train": Command("train a detector", "pliant train detector --out runs/clothes", "train", "Train"),
    "eval": Command("measure its average precision", "pliant eval runs/clothes/best.pt", "train", "Train"),
    "predict": Command(
        "detect objects in images", "pliant predict runs/clothes/best.pt photographs/", "train", "Look"
    ),
    "show": Command(
        "draw what a network looks at in an image, as PNGs and one page",
        "pliant show mdconv-c3-c5-mdpool street.jpg", "study", "Look",
    ),
    "explore": Command(
        "serve a page that shows where a network looks: sampling points follow the pointer",
        "pliant explore --open", "study", "Look",
    ),
    "study": Command(
        "run an experiment and write its report", "pliant study geometry --quick", "study", "Experiment"
    ),
    "convert": Command(
        "convert another library's checkpoint to pliant's names",
        "pliant convert faster_rcnn.pth pliant.safetensors --from mmdet", "convert", "Tools",
    ),
    "doctor": Command(
        "report what is installed, and whether every operator agrees with its reference", "pliant doctor", "", "Tools"
    ),
    "bench": Command(
        "time every operator against its limit and other libraries, in a clone", "pliant bench --op nms", "", "Tools"
    ),
    "tune": Command(
        "find faster block sizes of the GPU kernels on this device", "pliant tune --minutes 5", "", "Tools"
    ),
}  # fmt: skip
# What commands say about arguments that they share.
DEVICE = "where it runs, such as cpu or cuda (default: auto, a GPU if torch can use one)"
CHECKPOINT = "best.pt or last.pt of a run, or the name of a detector of the package, such as mdconv-c3-c5-mdpool"
_traced = False  # whether --traceback was given


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pliant COMMAND …`` and return its exit status.

    Args:
        argv: the arguments, without the program's name; those of the process by default.

    Returns:
        What the command returns (0 for success), 2 for input it cannot use, 130 when interrupted, 141 when what reads
        its output, such as ``head``, has stopped reading.
    """
    global _traced
    given = sys.argv[1:] if argv is None else list(argv)
    # It may stand anywhere.
    words = [word for word in given if word != "--traceback"]
    _traced = len(words) < len(given)
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    # The command is the first word, and runs unless something else stands before it, such as --help.
    command = words[0] if words and words[0] in COMMANDS else ""
    try:
        status = _run(command, words)
        # A reader that has stopped reading is met here, not while Python exits.
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print(f"pliant {command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Python would flush what is left when it exits, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        extra, missing = COMMANDS[command].extra, (error.name or "pliant").partition(".")[0]
        if _traced or not extra or missing == "pliant":
            raise
        sentence = f"pliant {command}: needs {missing}: {pliant._INSTALL.format(extra=extra)}"
        if {"-h", "--help"} & set(words):
            print(f"{about(command)}\n\n{sentence}\nThen this help lists all arguments.")
            return 0
        print(sentence, file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        if _traced:
            raise
        # A function's error begins with its own name, which may be the command's; the system's with a number.
        said = str(error).removeprefix(f"{command}: ").removeprefix(f"[Errno {getattr(error, 'errno', None)}] ")
        print(f"pliant {command}: {said}", file=sys.stderr)
        return 2


def trace(error: BaseException) -> None:
    """Print where an error arose if ``--traceback`` was given: for commands that say its sentence and go on, or end."""
    if _traced:
        traceback.print_exception(error)


def _run(command: str, words: list[str]) -> int:
    """Read the arguments and run the command; print help, and end the process, where it is asked for."""
    # No abbreviations: a mistyped option is an error, not another option.
    parser = argparse.ArgumentParser(
        prog="pliant", usage="pliant COMMAND …", description=_overview(), allow_abbrev=False, add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"pliant {pliant.__version__}", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(prog="pliant", metavar="COMMAND", required=True, help=argparse.SUPPRESS)
    parsers: dict[str, Any] = {name: commands.add_parser(name, allow_abbrev=False) for name in COMMANDS}
    if command:
        own = parsers[command]
        own.description, own.epilog = COMMANDS[command].does, f"Example: {COMMANDS[command].example}"
        module = importlib.import_module(f"pliant.app.{command}")
        if hasattr(module, "main"):
            return int(module.main(words[1:]))
        module.add_arguments(own)
        own.set_defaults(run=module.run)
    args = parser.parse_args(words)
    return int(args.run(args))


def _overview() -> str:
    """Return what all commands do, group by group, each with an example."""
    lines = ["Deformable and normalizing operators for PyTorch."]
    group = ""
    for name, about in COMMANDS.items():
        if about.group != group:
            group = about.group
            lines += ["", group]
        lines += [f"  {name:<9}{about.does}", f"           {about.example}"]
    lines += ["", "pliant COMMAND --help lists the arguments of a command, and pliant --version prints the version."]
    return "\n".join([*lines, "With --traceback an error shows where in the code it arose."])


def about(command: str) -> str:
    """Return what a command does, without its arguments."""
    return f"usage: pliant {command} …\n\n{COMMANDS[command].does}\n\nExample: {COMMANDS[command].example}"
