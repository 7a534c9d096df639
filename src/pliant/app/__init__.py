"""The command line: ``pliant COMMAND …``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# What each command does, and the extra that installs what it imports. The module pliant.app.COMMAND has
# `add_arguments(parser)` and `run(args) -> int`, or `main(words) -> int` if it reads its arguments with a parser of its
# own. It is imported only when the command runs: `pliant --help` and a mistyped command answer without torch.
COMMANDS = {
    "bench": ("time every operator against its limit and other libraries (from a checkout)", ""),
    "tune": ("find faster block sizes of the GPU kernels on this device, and keep them in the user's cache", ""),
    "convert": ("convert another library's checkpoint to pliant's names, and report every parameter", "convert"),
    "doctor": ("report what is installed, what is missing, and whether every operator agrees with its reference", ""),
    "study": ("run an experiment and write its report", "study"),
    "train": ("train a detector", "train"),
    "eval": ("measure the average precision of a trained detector", "train"),
    "predict": ("detect objects in images", "train"),
    "show": ("draw what a network looks at in an image, as PNGs and one HTML page", "study"),
    "explore": ("serve a page that shows where a network looks: sampling points follow the pointer", "study"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pliant COMMAND …`` and return its exit status.

    Args:
        argv: the arguments, without the program's name; those of the process by default.

    Returns:
        What the command returns (0 for success), 2 for input it cannot use, 130 when interrupted.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    # No abbreviations: a mistyped option is an error, not another option.
    about = "Deformable and normalizing operators for PyTorch."
    parser = argparse.ArgumentParser(prog="pliant", description=about, allow_abbrev=False)
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    parsers = {
        name: commands.add_parser(name, help=what, description=what, allow_abbrev=False)
        for name, (what, _) in COMMANDS.items()
    }

    # The command is the first word, and runs unless something else stands before it, such as --help.
    at = next((i for i, word in enumerate(argv) if word != "--traceback"), len(argv))
    command = argv[at] if at < len(argv) and argv[at] in COMMANDS else ""
    try:
        if command:
            module = importlib.import_module(f"pliant.app.{command}")
            if hasattr(module, "main"):
                argv, words = argv[: at + 1], argv[at + 1 :]
                parsers[command].set_defaults(run=lambda _: module.main(words))
            else:
                module.add_arguments(parsers[command])
                parsers[command].set_defaults(run=module.run)
        args = parser.parse_args(argv)
        return int(args.run(args))
    except KeyboardInterrupt:
        print(f"pliant {command}: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        extra, missing = COMMANDS[command][1], (error.name or "pliant").partition(".")[0]
        if "--traceback" in argv or not extra or missing == "pliant":
            raise
        print(f'pliant {command}: needs {missing}: pip install "pliant[{extra}]"', file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        if "--traceback" in argv:
            raise
        # A function's error begins with its own name, which may be the command's.
        print(f"pliant {command}: {str(error).removeprefix(f'{command}: ')}", file=sys.stderr)
        return 2
