"""Arguments of commands that take recipes: YAML, overrides, and one sentence for input that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, get_loader

from pliant._files import text


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


def configured(words: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Return the arguments with the settings of every ``--config FILE`` instead of its name, and these files.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file holds something else than settings.
    """
    out, files = list(words), []
    for at, word in enumerate(out):
        name, equals, value = word.partition("=")
        if name != "--config" or (not equals and at + 1 == len(out)):
            continue
        place = at if equals else at + 1
        files.append(Path(value if equals else out[place]))
        out[place] = (f"{name}=" if equals else "") + json.dumps(settings(files[-1]))
    return out, files


def settings(path: Path) -> dict[str, Any]:
    """Return the settings of a file of YAML or JSON, in UTF-8, UTF-16 or Windows-1252.

    An empty file, and a section without a setting, set nothing. Python's None means null.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else than settings.
    """
    try:
        # Without a last line of its own, a file of null settings alone, such as "model:", is read as text.
        found = _nulls(get_loader("yaml")(text(path)[0] + "\n#"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not YAML or JSON: {' '.join(str(error).split())}") from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{path} must hold settings, such as batch: 8, got a {type(found).__name__}")
    sections = ("data", "model", "optimiser")
    return {name: value for name, value in found.items() if value is not None or name not in sections}


def _nulls(value: Any) -> Any:
    """Return nested values with null for Python's None, which YAML reads as a word."""
    if isinstance(value, dict):
        return {name: _nulls(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_nulls(inner) for inner in value]
    return None if value == "None" else value


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
