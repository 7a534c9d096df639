"""Arguments of commands that take recipes: YAML, overrides, and one sentence for input that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser


def parser(prog: str, description: str) -> ArgumentParser:
    """Return a parser that accepts full names only: a mistyped setting is an error, not another setting."""
    return ArgumentParser(prog=prog, description=description, allow_abbrev=False, exit_on_error=False)


def spelled_out(words: Sequence[str], images: str, annotations: str) -> list[str]:
    """Return the arguments with ``--images DIR --annotations FILE`` replaced by the recipe's names for data from COCO.

    >>> spelled_out(["--images", "a", "--annotations=b.json"], "data.images", "data.annotations")
    ['--data.source=coco', '--data.images', 'a', '--data.source=coco', '--data.annotations=b.json']
    """
    names = {"--images": f"--{images}", "--annotations": f"--{annotations}"}
    out: list[str] = []
    for word in words:
        name, *value = word.split("=", 1)
        out += ["--data.source=coco", "=".join([names[name], *value])] if name in names else [word]
    return out


def parse(parser: ArgumentParser, words: Sequence[str]) -> Any:
    """Return the values of the arguments.

    Raises:
        ValueError: they cannot be used.
    """
    try:
        return parser.parse_args(list(words))
    except ArgumentError as error:
        sentence = " ".join(str(error).split())
        raise ValueError(sentence.replace('Parser key "', "--", 1).replace('":', ":", 1)) from error
