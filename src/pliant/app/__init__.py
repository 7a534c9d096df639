"""The command line: ``pliant COMMAND …``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# What a command does, and the extra that installs what it imports. The module pliant.app.COMMAND has
# `add_arguments(parser)` and `run(args) -> int`, or `main(words) -> int` if it reads its arguments with a parser of its
# own; only the module of the command at hand is imported.
COMMANDS = {
    "bench": ("time every operator beside its limit and its peers (from a checkout)", ""),
    "tune": ("find faster sizes of the GPU kernels on this device, and keep them in the user's cache", ""),
    "convert": ("turn another library's checkpoint into ours, and say what became of every name", "convert"),
    "doctor": ("say what is installed, what is missing, and whether every operator agrees with its reference", ""),
    "study": ("run an experiment and write its report", "study"),
    "train": ("train a detector", "train"),
    "eval": ("measure the average precision of a trained detector", "train"),
    "predict": ("detect objects in pictures", "train"),
    "show": ("draw what a network looks at in a picture, as PNGs and one page", "study"),
    "explore": ("see on a page where a network looks: sampling points that follow the pointer", "study"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pliant COMMAND …`` and return its exit status.

    Args:
        argv: the arguments, without the program's name; those of the process by default.

    Returns:
        What the command returns (0: all is well), 2 for input it cannot use, 130 when interrupted.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    # Names are not guessed: a mistyped option is an error, not another option.
    about = "Deformable and normalizing operators for PyTorch."
    parser = argparse.ArgumentParser(prog="pliant", description=about, allow_abbrev=False)
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    parsers = {
        name: commands.add_parser(name, help=what, description=what, allow_abbrev=False)
        for name, (what, _) in COMMANDS.items()
    }

    command = next((word for word in argv if word in COMMANDS), "")
    try:
        if command:
            module = importlib.import_module(f"pliant.app.{command}")
            if hasattr(module, "main"):
                at = argv.index(command) + 1
                argv, words = argv[:at], argv[at:]
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
        # Functions put their own name first, which may be the command's.
        print(f"pliant {command}: {str(error).removeprefix(f'{command}: ')}", file=sys.stderr)
        return 2
