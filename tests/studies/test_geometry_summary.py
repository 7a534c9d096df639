from __future__ import annotations

import math
from typing import Any

import pytest
from scipy.stats import ttest_rel

from pliant.studies.geometry.protocol import STRENGTHS
from pliant.studies.geometry.summary import measured, summary
from pliant.studies.report.statistics import compare, spread


def _result(contestant: str, seed: int, clean: float, other: float, **more: float) -> dict[str, Any]:
    accuracy = {kind: {f"{s:g}": more.get(kind, other) for s in strengths} for kind, strengths in STRENGTHS.items()}
    return {
        "contestant": contestant, "label": contestant, "training": "upright", "seed": seed, "profile": "full",
        "parameters": 26_000, "multiply_adds": None if contestant == "sift" else 7_000_000, "train_seconds": 30.0,
        "accuracy": {"clean": {"0": clean}, **accuracy},
    }  # fmt: skip


def test_measured() -> None:
    result = _result("plain", 0, 0.9, 0.5)
    result["accuracy"]["scale"] = {"0.5": 0.1, "0.7": 0.2, "1.4": 0.3, "2": 0.2}
    result["accuracy"]["rotation"] = {"15": 0.8, "30": 0.6, "60": 0.4, "90": 0.2}
    scores = measured(result)
    assert scores["clean"] == 0.9
    assert scores["scale"] == pytest.approx(0.2)
    assert scores["transformed"] == pytest.approx((0.2 + 0.5 + 0.5 + 0.5 + 0.5) / 5)
    # Of scale 0.5 and 2, of rotation 60 and 90 are beyond the augmentation.
    assert scores["unseen"] == pytest.approx((0.15 + 0.3 + 0.5 + 0.5 + 0.5) / 5)


def test_compare_is_the_paired_t_interval() -> None:
    first, second = [0.81, 0.79, 0.85, 0.80, 0.83], [0.78, 0.79, 0.80, 0.79, 0.77]
    mean, half = compare(first, second)
    interval = ttest_rel(first, second).confidence_interval()
    assert (mean - half, mean + half) == pytest.approx(interval)
    assert compare([0.5], [0.4]) == (pytest.approx(0.1), math.inf)


def test_spread() -> None:
    assert spread([0.8, 0.9]) == " 85.0 ± 7.1"
    assert spread([0.8]) == " 80.0"


def test_losing_and_winning_are_said() -> None:
    results = [_result("sift", s, 0.7, 0.9) for s in range(3)]
    results += [_result("plain", s, 0.80 + 0.01 * s, 0.5) for s in range(3)]
    results += [_result("dilated-2", s, 0.80, 0.5, rotation=0.6) for s in range(3)]
    wins = {"scale": 0.7, "aspect": 0.51}
    results += [_result("deform-v1-3", s, 0.79 + 0.02 * s, 0.4, **wins) for s in range(3)]
    said = summary(results)
    assert "deformable v1, 3 layers, points against the best control (named) of the same seeds:" in said
    assert all(len(line) <= 100 for line in said.splitlines())
    unwrapped = said.replace("\n    ", " ")
    lines = {line.strip().partition(":")[0]: line for line in unwrapped.splitlines() if line.startswith("  ")}
    # SIFT is no control: a network is compared with networks.
    assert "scale +20.0 ± 0.0 (" in lines["wins"]
    assert "rotation -20.0 ± 0.0 (fixed dilation 2)" in lines["DOES NOT WIN, it loses"]
    assert "clean +0.0 ± 2.5 (plain CNN)" in lines["no difference beyond chance (95 %)"]
    assert "transformed" in lines["DOES NOT WIN, it loses"]
    row = next(line for line in said.splitlines() if line.startswith("sift"))
    assert "–" in row and "70.0 ± 0.0" in row
    assert "Accuracy in percent, mean ± standard deviation over 3 seeds." in said
    assert "quick" not in said


def test_one_seed_decides_nothing() -> None:
    results = [_result("plain", 0, 0.8, 0.5), _result("deform-v2-3", 0, 0.9, 0.6)]
    said = summary([{**r, "profile": "quick"} for r in results])
    assert "  clean +10.0 (plain CNN)" in said and said.count("one seed") == 1
    assert "wins" not in said
    assert "This is the quick study" in said


def test_paired_by_seed() -> None:
    results = [_result("plain", s, 0.1 * s, 0.5) for s in (1, 2, 3)]
    results += [_result("deform-v2-3", s, 0.1 * s + 0.01 + 0.001 * s, 0.5) for s in (3, 2, 4)]
    # Seeds 2 and 3 are common: +1.2 and +1.3 points.
    assert "clean +1.2 ± 0.6" in summary(results).replace("+1.3", "+1.2")
