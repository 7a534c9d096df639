"""Arguments of commands that take recipes: YAML, overrides, and one sentence for input that cannot be used."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, get_loader

from pliant._files import text

EXAMPLES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "a mapping"}
SUCH = {int: "8", float: "0.5", bool: "true", dict[str, Any]: '"{channels: 32}"'}
COUNTS = ("no", "one", "two", "three", "four")


class Parser(ArgumentParser):
    """A parser of jsonargparse whose help shows dashes, as those of the other commands; it reads underscores, too."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Return the help, with dashes in every option."""
        text: str = super().format_help(*args, **kwargs)
        return re.sub(r"--[a-z][\w.]*", lambda option: option[0].replace("_", "-"), text)


def parser(usage: str, description: str) -> Parser:
    """Return a parser that accepts full names only: a mistyped setting is an error, not another setting."""
    return Parser(usage=usage, description=description, allow_abbrev=False, exit_on_error=False)


def underscored(words: Sequence[str]) -> list[str]:
    """Return the arguments with the options as jsonargparse spells them.

    >>> underscored(["--max-detections", "3", "--data.hold-out=0.1", "a-b.jpg"])
    ['--max_detections', '3', '--data.hold_out=0.1', 'a-b.jpg']
    """
    split = (word.partition("=") for word in words)
    return [
        "--" + name[2:].replace("-", "_") + equals + value if name.startswith("--") else name + equals + value
        for name, equals, value in split
    ]


def spelled_out(words: Sequence[str], images: str, annotations: str) -> list[str]:
    """Return the arguments with ``--images DIR --annotations FILE`` replaced by the recipe's names for a folder.

    >>> spelled_out(["--images", "a", "--annotations=b.json"], "data.images", "data.annotations")
    ['--data.source=folder', '--data.images', 'a', '--data.source=folder', '--data.annotations=b.json']
    """
    names = {"--images": f"--{images}", "--annotations": f"--{annotations}"}
    out: list[str] = []
    for word in words:
        name, *value = word.split("=", 1)
        out += ["--data.source=folder", "=".join([names[name], *value])] if name in names else [word]
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


def parse(parser: ArgumentParser, words: Sequence[str], recipe: type | None = None) -> Any:
    """Return the values of the arguments.

    Args:
        parser: of :func:`parser`.
        words: the arguments.
        recipe: the dataclass whose fields are arguments; error sentences say what each of them takes.

    Raises:
        ValueError: they cannot be used.
    """
    try:
        return parser.parse_args(underscored(words))
    except ArgumentError as error:
        raise ValueError(_sentence(str(error), recipe)) from error


def _sentence(said: str, recipe: type | None) -> str:
    """Return what jsonargparse says about a setting in one sentence: its key, what it takes, what it got."""
    said = " ".join(said.split())
    keys = re.findall(r'(?:Parser key|Problem with given class_path|Key) "([\w.]+)"', said)
    kind = None if recipe is None or not keys else field_type(recipe, keys[-1])
    option = f"--{keys[-1].replace('_', '-')}" if keys else ""
    got = re.search(r"(?:Got value|Given value): (.*)$", said)
    if kind is not None and got:
        example = next((text for part, text in SUCH.items() if part in (kind, *get_args(kind))), "")
        return f"{option} must be {wanted(kind)}{example and f', such as {example}'}, got {got[1]}"
    return said.replace(f'Parser key "{keys[-1]}":', f"{option}:", 1) if keys else said


def field_type(recipe: type, key: str) -> Any:
    """Return the type of a field by its dotted name, None if there is no such field.

    >>> from pliant.train import DetectorRecipe
    >>> field_type(DetectorRecipe, "data.count"), field_type(DetectorRecipe, "data.cuont")
    (<class 'int'>, None)
    """
    found: Any = recipe
    for name in key.split("."):
        if not isinstance(found, type):
            return None
        found = get_type_hints(found).get(name)
    return found


def wanted(kind: Any) -> str:
    """Return what a field of this type takes, in words, with an example.

    >>> wanted(int | None)
    'a whole number or null'
    >>> wanted(Literal["sgd", "adamw"])
    'sgd or adamw'
    >>> wanted(tuple[float, float])
    'two values in brackets, each a number, such as "[0.5, 0.5]"'
    >>> wanted(tuple[str, ...] | None)
    'values in brackets, each a text, such as "[a, b]", or null'
    """
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return listed(["null" if value is None else str(value) for value in arguments])
    if get_origin(kind) in (Union, UnionType):
        parts = [part for part in arguments if part is not NoneType]
        comma = "," if any(get_origin(part) is tuple for part in parts) else ""
        return " or ".join(map(wanted, parts)) + (f"{comma} or null" if NoneType in arguments else "")
    if get_origin(kind) is tuple:
        each, endless = arguments[0], arguments[-1] is Ellipsis
        values = [_example(each, place) for place in range(2 if endless else len(arguments))]
        number = "values" if endless else f"{COUNTS[len(arguments)]} values"
        return f'{number} in brackets, each {wanted(each)}, such as "[{", ".join(values)}]"'
    return EXAMPLES.get(get_origin(kind) or kind, "another value")


def _example(kind: Any, place: int) -> str:
    """Return a value of a type, as YAML writes it."""
    options = [
        option for part in (get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,))
        for option in (get_args(part) if get_origin(part) is Literal else (part,))
    ]  # fmt: skip
    chosen = options[0]
    return {int: "1", float: "0.5", str: "ab"[place % 2], bool: "true"}.get(chosen, str(chosen))


def listed(names: Sequence[str]) -> str:
    """Return alternatives in words.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b or c')
    """
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
