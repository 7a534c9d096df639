"""What the folder of a study holds, whatever its state: half a study, a torn line, no settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def read(
    folder: Path, study: str, key: Sequence[str], usable: Callable[[dict[str, Any]], bool]
) -> tuple[list[dict[str, Any]], dict[str, Any], list[str]]:
    """Return the finished runs of one profile, the settings (empty where missing), and a sentence for what is odd.

    Args:
        folder: of the study.
        study: its name, for errors.
        key: names of the values that identify a run; of two runs of one key the later counts.
        usable: whether a run holds what the report needs; a KeyError or TypeError means no.

    Raises:
        FileNotFoundError: there is no results.jsonl.
        ValueError: it holds no finished run.
    """
    path = folder / "results.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"report: {path} is missing; run `pliant study {study}` with this folder first")
    notes: list[str] = []
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            run = json.loads(line)
            name = tuple(str(run[k]) for k in (*key, "profile"))
            whole = usable(run)
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            notes.append(f"Line {number} of results.jsonl is half-written or damaged and was left out.")
            continue
        found[name] = run
    if not found:
        raise ValueError(f"report: {path} holds no finished run yet; `pliant study {study}` resumes where it stopped")

    settings: dict[str, Any] = {}
    try:
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append("There is no settings.json: the protocol and the machine are not known.")
    except ValueError:
        notes.append("settings.json is damaged: the protocol and the machine are not known.")
    profiles = {name[-1] for name in found}
    profile = settings.get("profile") if settings.get("profile") in profiles else sorted(profiles)[0]
    for other in sorted(profiles - {profile}):
        count = sum(name[-1] == other for name in found)
        runs_lie = "1 run of the {} profile lies" if count == 1 else f"{count} runs of the {{}} profile lie"
        notes.append(f"{runs_lie.format(other)} in the same folder and {'was' if count == 1 else 'were'} left out.")
    return [run for name, run in found.items() if name[-1] == profile], settings, notes
