"""The report on folders made by hand: what is there is said, what is not is named."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pliant.studies.detection import CONTESTANTS, DATA, QUICK, report
from pliant.studies.detection.report import findings, results
from pliant.studies.detection.report.findings import CLAIMS, verdict
from pliant.studies.detection.summary import COLUMNS, summary
from pliant.studies.report.statistics import Difference


def run(contestant: str, data: str, seed: int, base: float, profile: str = "full", **other: Any) -> dict[str, Any]:
    """A finished run of average precision `base` everywhere, with a little that depends on the seed alone."""
    base += 0.004 * (seed % 3)
    entrant = CONTESTANTS[contestant]
    layers = ["c5.1", "c5.2"] if any(entrant.deform) else []
    per_class = {"crown": base} if data == "crowns" else {"bag": base, "dress": None}
    groups = ("small", "medium", "large")
    return {
        "contestant": contestant,
        "label": entrant.label,
        "data": data,
        "seed": seed,
        "profile": profile,
        "parameters": 500_000,
        "multiply_adds": 100_000_000 if entrant.learned else None,
        "train_seconds": 100.0,
        "image_seconds": 0.02,
        "epochs": 5,
        "steps": 100,
        "untrained": {"AP": 0.0, "AP50": 0.001, "AP75": None} if entrant.learned else None,
        "scores": {**dict.fromkeys(COLUMNS, base), "per_class": per_class},
        "curve": [{"step": s, "AP": base * s / 100, "AP50": base * s / 100, "AP75": None} for s in (50, 100)],
        "losses": [{"step": s, "loss": 2.0 - s / 100, "classification": 1.0} for s in (50, 100)],
        "dilation": [
            {"layer": layer, "group": group, "mean": 1.5, "sd": 0.2, "n": 9} for layer in layers for group in groups
        ]
        or None,
        "spearman": {layer: {"rho": 0.4, "low": 0.31, "high": 0.5} for layer in layers} or None,
        "offsets": {layer: {"mean_abs": 0.7, "outside": 0.02} for layer in layers} or None,
        "bins": [{"group": g, "mean": 0.05, "n": 3} for g in groups] if entrant.roi_pool != "align" else None,
    } | other


def folder(path: Path, runs: list[dict[str, Any]]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in runs), encoding="utf-8")
    return path


def whole(base: Any = lambda c: 0.5, seeds: int = 3) -> list[dict[str, Any]]:
    return [run(c, d, s, base(c)) for s in range(seeds) for d in DATA for c in CONTESTANTS]


class Text(HTMLParser):
    """Gather the text of a page; every tag is closed in order, nothing is fetched."""

    VOID = ("meta", "input", "img")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.parts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        assert tag != "script"
        # Links of the contents lead down the page; nothing is fetched.
        assert all(value.startswith(("data:", "#")) for name, value in attributes if name in ("src", "href"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.parts.append(data)

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.parts).split())


def write(path: Path) -> str:
    return Text(report.write(path).read_text(encoding="utf-8")).said


def test_claims_that_show_are_said_to(tmp_path: Path) -> None:
    said = write(folder(tmp_path, whole(lambda c: 0.6 if "dconv" in c or "full" in c else 0.5)))
    assert "Of the papers' claims composed scenes show: deformable convolution in the last stage beats regular" in said
    assert "(AP +10.0 [+10.0, +10.0])" in said
    assert "Where the papers have next to no difference, tree crowns have none beyond chance either" in said
    assert "shown" in said and "the opposite is shown" not in said
    assert all(c.label in said for c in CONTESTANTS.values())
    assert "60.4 ± 0.4" in said
    assert "effective dilation grows with it in" in said
    assert "5.0 % (composed scenes)" in said
    assert "Not run" not in said and "nan" not in said.lower()
    assert "quick" not in said


def test_the_opposite_is_said_as_plainly(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    noise = {(c, s): 0.001 * random.random() for c in CONTESTANTS for s in range(3)}
    runs = [run(c, "composed", s, (0.4 if "dconv" in c else 0.5) + noise[c, s]) for c in CONTESTANTS for s in range(3)]
    said = write(folder(tmp_path, runs))
    assert "Composed scenes show the opposite of: deformable convolution in the last stage beats" in said
    assert "▼" in said


def test_noise_is_not_told_from_chance(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    runs = [run(c, "composed", s, 0.5 + 0.05 * random.normal()) for c in ("regular", "dconv-c5") for s in range(3)]
    said = write(folder(tmp_path, runs))
    assert "Composed scenes do not show, for the difference cannot be told from chance: deformable convolution" in said
    assert "Not run, and left out everywhere: hog (composed)" in said


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    runs = [run(c, "composed", 0, 0.5, "quick") for c in QUICK]
    path = folder(tmp_path, runs)
    (path / "models").mkdir()
    (path / "models" / "regular-composed-0.pt").write_bytes(b"torn")
    said = write(path)
    assert said.count("All runs have one seed, so there are no intervals and nothing is decided.") == 1
    assert said.lower().count("one seed") == 1 and "every seed" not in said
    assert "This is the quick profile, a few contestants" in said
    assert "Not run" not in said
    assert "regular-composed-0.pt cannot be read" in said
    assert "nan" not in said.lower()


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"results\.jsonl is missing; run `pliant study detection`"):
        report.write(tmp_path)
    (tmp_path / "results.jsonl").write_text('\n{"contestant"')
    with pytest.raises(ValueError, match="holds no finished run yet"):
        report.write(tmp_path)


def test_verdicts() -> None:
    better, none = next(c for c in CLAIMS if c.sign), next(c for c in CLAIMS if not c.sign)
    up, down, open_ = (Difference(m, m - 0.1, m + 0.1, 3) for m in (0.2, -0.2, 0.0))
    assert [verdict(better, d) for d in (up, down, open_)] == ["shown", "the opposite is shown", "not told from chance"]
    assert [verdict(none, d) for d in (up, open_)] == ["a difference is shown", "no difference beyond chance"]
    assert all(claim.ours in CONTESTANTS and claim.theirs in CONTESTANTS for claim in CLAIMS)


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    runs = [run("regular", "composed", s, 0.1 * s) for s in (0, 3)]
    runs += [run("dconv-c5", "composed", s, 0.1 * s + 0.02) for s in (3, 6)]
    found = results.Results.read(folder(tmp_path, runs)).against("dconv-c5", "regular", "composed", "AP")
    assert found is not None and found.n == 1 and found.mean == pytest.approx(0.02)
    assert findings.tested(results.Results.read(tmp_path), "crowns") == []


def test_summary() -> None:
    runs = [
        run(c, "composed", s, 0.6 if c == "dconv-c5" else 0.5) for c in ("hog", "regular", "dconv-c5") for s in (0, 1)
    ]
    runs[0]["scores"]["APs"] = None
    said = summary(runs)
    assert "dconv in c5 − regular, points: AP +10.0 [+10.0, +10.0]; AP50 +10.0 [+10.0, +10.0]" in said
    assert "Before training: AP50 of at most 0.10 %." in said
    assert "crowns" not in said and "quick" not in said
    assert all(len(line) <= 100 for line in said.splitlines())
    assert any("–" in line for line in said.splitlines() if line.startswith("HOG"))
    one = summary([{**r, "profile": "quick"} for r in runs if r["seed"] == 0])
    assert "AP +10.0;" in one and one.count("one seed") == 1 and "This is the quick study" in one
