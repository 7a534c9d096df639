"""The summary that the study prints: one table per training, and where deformable layers win, tie and lose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from pliant.studies import summary as studies
from pliant.studies.geometry.contestants import CONTESTANTS
from pliant.studies.geometry.protocol import STRENGTHS, TRAININGS, inside
from pliant.studies.report.statistics import compare, spread
from pliant.studies.summary import Result, Runs, over_seeds, table, wrapped


def measured(result: Result) -> dict[str, float]:
    """Return the scores of a run that are compared: clean, every kind, their mean, and the unseen strengths.

    A kind is the mean over its strengths, "transformed" the mean over the kinds; "unseen" the mean over the kinds of
    the strengths that the augmentation does not cover.
    """
    accuracy = result["accuracy"]
    scores = {"clean": float(accuracy["clean"]["0"])}
    unseen = []
    for kind in STRENGTHS:
        scores[kind] = fmean(accuracy[kind].values())
        beyond = [a for strength, a in accuracy[kind].items() if not inside(kind, float(strength))]
        if beyond:
            unseen.append(fmean(beyond))
    scores["transformed"] = fmean(scores[kind] for kind in STRENGTHS)
    scores["unseen"] = fmean(unseen)
    return scores


def summary(results: Sequence[Result]) -> str:
    """Return the table of all contestants, and what comparing them says."""
    return studies.summary("geometry", results, tuple(CONTESTANTS), "training", tuple(TRAININGS), _section)


_COLUMNS = ("clean", "transformed", "unseen", *STRENGTHS)


def _section(training: str, runs: Runs) -> list[str]:
    """Return two tables, so that each fits a terminal: what counts and what it costs; every kind."""
    whole, kinds = _COLUMNS[:3], _COLUMNS[3:]
    return [
        f"Trained {training}. Accuracy in percent{over_seeds(runs)}.",
        *table(["", *whole, "params", "M adds", "train s"], [_row(r, whole) + _costs(r) for r in runs.values()]),
        "",
        *table(["", *kinds], [_row(r, kinds) for r in runs.values()]),
        "",
        *_verdicts(runs),
    ]


def _row(found: list[Result], columns: Sequence[str]) -> list[str]:
    scores = [measured(r) for r in found]
    return [found[0]["label"], *(spread([s[c] for s in scores]).strip() for c in columns)]


def _costs(found: list[Result]) -> list[str]:
    adds = found[0]["multiply_adds"]
    seconds = fmean(r["train_seconds"] for r in found)
    return [f"{found[0]['parameters']:,}", "–" if adds is None else f"{adds / 1e6:.1f}", f"{seconds:.0f}"]


def _verdicts(runs: Runs) -> list[str]:
    """Return one sentence per deformable contestant, against the best control by each measure."""
    lines = []
    controls = [n for n in runs if CONTESTANTS[n].learned and not CONTESTANTS[n].deformed]
    for name in (n for n in runs if CONTESTANTS[n].deformed):
        verdicts: dict[str, list[str]] = {"wins": [], "ties": [], "loses": []}
        for measure in _COLUMNS:
            paired = []
            for control in controls:
                seeds = {r["seed"] for r in runs[name]} & {r["seed"] for r in runs[control]}
                first, second = ([measured(r)[measure] for r in runs[n] if r["seed"] in seeds] for n in (name, control))
                if seeds:
                    paired.append((fmean(second), *compare(first, second), CONTESTANTS[control].label))
            if paired:
                _, mean, half, label = max(paired)
                verdict = "ties" if abs(mean) <= half else "wins" if mean > 0 else "loses"
                text = f"{measure} {100 * mean:+.1f}" + (f" ± {100 * half:.1f}" if math.isfinite(half) else "")
                verdicts[verdict].append(f"{text} ({label})")
        if not any(verdicts.values()):
            continue
        lines.append(f"{CONTESTANTS[name].label}, points against the best control (named) of the same seeds:")
        if len(runs[name]) < 2:
            lines += wrapped("; ".join(verdicts["ties"]), "  ")
            continue
        words = {"wins": "wins", "ties": "no difference beyond chance (95 %)", "loses": "DOES NOT WIN, it loses"}
        for v, found in verdicts.items():
            lines += wrapped(f"{words[v]}: {'; '.join(found)}", "  ") if found else []
    return lines
