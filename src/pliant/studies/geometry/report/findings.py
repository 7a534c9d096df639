"""What the numbers say, in sentences: for deformable layers and against them alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pliant.studies.geometry.report.results import ALL, Results, deformable, network
from pliant.studies.report.statistics import Difference, difference, points

TRAINED = {"upright": "Trained on upright objects", "augmented": "Trained with augmentation"}


def controls(results: Results, networks: bool = False) -> list[str]:
    """Return the contestants without deformable layers, with or without hand-made features."""
    return [c for c in results.contestants if not deformable(c) and (network(c) or not networks)]


def duels(results: Results, training: str, networks: bool = False) -> dict[str, tuple[str, str, Difference]]:
    """Return column → (best deformable, best control, their paired difference) where both were run."""
    found = {}
    for column in results.columns:
        ours = results.best([c for c in results.contestants if deformable(c)], training, column)
        theirs = results.best(controls(results, networks), training, column)
        if ours is None or theirs is None:
            continue
        if (gap := results.against(ours, theirs, training, column)) is not None:
            found[column] = (ours, theirs, gap)
    return found


def verdict(results: Results, training: str) -> list[str]:
    """Return one training's result: where deformable layers win, lose, and neither; then among networks alone."""
    name = TRAINED.get(training, training)
    every, among = duels(results, training), duels(results, training, networks=True)
    if not every:
        return [f"{name}: there is no deformable network and control with a common seed to compare."]
    text = f"{name}, of {len(every)} columns the best deformable network {_score(every, 'the best control')}"
    if among and any(not network(theirs) for _, theirs, _ in every.values()):
        return [text, f"Among networks alone it {_score(among, 'the best control network')}"]
    return [text]


def _score(every: dict[str, tuple[str, str, Difference]], whom: str) -> str:
    if all(math.isnan(gap.low) for *_, gap in every.values()):
        ahead = [c for c, (*_, gap) in every.items() if gap.mean > 0]
        return f"is ahead of {whom} on {len(ahead)}{_named(ahead)}."
    ahead, behind, open_ = ([c for c, (*_, gap) in every.items() if gap.verdict == sign] for sign in (1, -1, 0))
    text = f"wins {len(ahead) or 'none'}{_named(ahead)} against {whom}, loses {len(behind) or 'none'}{_named(behind)}, "
    return text + (f"and cannot be told apart on {len(open_)}{_named(open_)}." if open_ else "and none is undecided.")


def sentences(results: Results) -> list[str]:
    """Return what the study shows about augmentation, about the size of the grid, and about time."""
    return _augmentation(results) + _growth(results) + _cost(results)


def _named(columns: Sequence[str]) -> str:
    return f" ({', '.join(columns)})" if columns else ""


def _growth(results: Results) -> list[str]:
    """Count the layers whose effective dilation grows with the object's size in every seed."""
    up, down, layers = results.growth()
    if not layers:
        return []
    every = " in every seed" if len(results.seeds) > 1 else ""
    return [
        f"The sampling grid grows with the object in {up} of {layers} trained deformable layers (Spearman's ρ above "
        f"0 with its interval{every}), shrinks with it in {down}, and does neither for certain in "
        f"{layers - up - down}."
    ]


def _augmentation(results: Results) -> list[str]:
    if ALL not in results.columns or "plain" not in results.contestants:
        return []
    plain = {t: results.score("plain", t, ALL) for t in ("upright", "augmented")}
    ours = results.best([c for c in results.contestants if deformable(c)], "upright", ALL)
    learned = results.score(ours, "upright", ALL) if ours else None
    upright, augmented = plain["upright"], plain["augmented"]
    parts = []
    if upright and augmented and (gain := difference(augmented, upright)):
        parts.append(f"augmentation changes the plain CNN by {points(gain)}")
    if upright and learned and ours and (gain := difference(learned, upright)):
        parts.append(f"{results.label(ours)} without augmentation differs from the plain CNN by {points(gain)}")
    if not parts:
        return []
    text = f"Averaged over all transformations, in points: {'; '.join(parts)}"
    if augmented and learned and ours and (gap := difference(learned, augmented)):
        place = {1: "ahead of", -1: "behind", 0: "not told apart from"}[gap.verdict]
        text += f". Without augmentation it is {place} the plain CNN with augmentation ({points(gap)})"
    return [text + "."]


def _cost(results: Results) -> list[str]:
    ours = results.best([c for c in results.contestants if deformable(c)], results.conditions[0], ALL)
    if ours is None or "plain" not in results.contestants:
        return []
    times = [results.cell(c, None, lambda run: run.get("train_seconds")) for c in (ours, "plain")]
    if times[0] is None or times[1] is None or not times[1].mean:
        return []
    ratio = times[0].mean / times[1].mean
    return [
        f"Training {results.label(ours)} took {ratio:.1f} times as long as the plain CNN "
        f"({times[0].mean:.0f} s against {times[1].mean:.0f} s per run; wall time, other load on the machine included)."
    ]
