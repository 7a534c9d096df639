"""The report on folders made by hand: what is there is said, what is not is named."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from pliant.studies.geometry import build, report
from pliant.studies.geometry.contestants import CONTESTANTS
from pliant.studies.geometry.report import results
from pliant.studies.report import statistics

KINDS = {"scale": ("0.5", "1.4"), "rotation": ("15", "60"), "bend": ("0.1",)}


def run(contestant, training, seed, base, profile="quick", **other):
    """A finished run of accuracy `base` everywhere, with a little that depends on the seed alone."""
    wobble = 0.004 * (seed % 3)
    deformed = CONTESTANTS[contestant].deformed
    layers = CONTESTANTS[contestant].deformable
    return {
        "contestant": contestant,
        "label": CONTESTANTS[contestant].label,
        "training": training,
        "seed": seed,
        "profile": profile,
        "parameters": 24_000,
        "multiply_adds": None if contestant == "sift" else 5_000_000,
        "train_seconds": 20.0 + 20 * deformed,
        "test_seconds": 2.0,
        "epochs": 4,
        "accuracy": {"clean": {"0": base + wobble}}
        | {kind: dict.fromkeys(strengths, base + wobble - 0.1) for kind, strengths in KINDS.items()},
        "effective_dilation": [
            {"layer": layer, "scale": size, "dilation": 1 + 0.01 * size, "n": 9}
            for layer in layers
            for size in (10, 20.5)
        ]
        if deformed
        else None,
        "spearman": {layer: {"rho": 0.4, "low": 0.31, "high": 0.5} for layer in layers} if deformed else None,
        "offsets": {layer: {"mean_abs": 0.7, "outside": 0.02} for layer in layers} if deformed else None,
    } | other


def folder(path, runs, settings=True, models=()):
    path.mkdir(exist_ok=True)
    (path / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in runs), encoding="utf-8")
    if settings:
        augmented = {"scale": [0.7, 1.4], "rotation": [0, 30], "aspect": [1, 1.5], "shear": [0, 0], "bend": [0, 0.1]}
        (path / "settings.json").write_text(
            json.dumps(
                {"profile": runs[0]["profile"], "epochs": 4, "canvas": 64, "trainings": {"augmented": augmented}}
            )
        )
    (path / "models").mkdir(exist_ok=True)
    for name in models:
        torch.manual_seed(0)
        net = build(name)
        for layer in net.modules():
            if hasattr(layer, "conv_offset"):
                torch.nn.init.normal_(layer.conv_offset.bias, std=0.7)
        torch.save(net.state_dict(), path / "models" / f"{name}-augmented-0.pt")
    return path


def whole(base=lambda c: 0.8, seeds=3, profile="quick"):
    return [run(c, t, s, base(c), profile) for s in range(seeds) for t in ("upright", "augmented") for c in CONTESTANTS]


class Checker(HTMLParser):
    """Follow the tags of a page: every one is closed in order; gather text, sources and ids."""

    VOID = ("meta", "input", "img")

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.links, self.ids = [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert tag != "script"
        self.links += [attributes[a] for a in ("src", "href", "data", "srcset", "action") if a in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def said(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


def write(path):
    page = report.write(path).read_text(encoding="utf-8")
    return page, Checker(page).said


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A whole quick study in which deformable networks win, with weights of two networks."""
    path = tmp_path_factory.mktemp("study") / "geometry"
    runs = whole(lambda c: 0.85 if c.startswith("deform-v2") else 0.8)
    folder(path, runs, models=("deform-v2-3", "plain-lrn"))
    return path, *write(path)


def test_the_file_is_whole_and_fetches_nothing(full):
    path, page, _ = full
    checker = Checker(page)
    assert page.startswith("<!DOCTYPE html>")
    pictures = [link for link in checker.links if not link.startswith("#")]
    assert len(pictures) == 4
    assert all(link.startswith("data:image/png;base64,") for link in pictures)
    # Without the pictures, among whose letters any word may stand.
    assert "http" not in re.sub(r"base64,[\w+/=]+", "", page)
    assert "url(" not in page
    assert "@import" not in page
    assert len(set(checker.ids)) == len(checker.ids)
    assert not list(path.glob("*.part"))
    # Every link of the contents leads to a heading.
    assert {link[1:] for link in checker.links if link.startswith("#")} <= set(checker.ids)


def test_pictures_come_before_curves_and_curves_before_tables(full):
    _, page, said = full
    places = [page.index(mark) for mark in ("<h1", "<img", "<nav", 'class="chart"', "<table")]
    assert places == sorted(places)
    assert "`" not in said  # code is marked up
    assert page.count(">accuracy</text>") == page.count('class="chart"') - page.count(">effective dilation, pixels")


def test_every_contestant_and_the_profile_are_named(full):
    _, page, said = full
    for contestant in CONTESTANTS.values():
        assert contestant.label in said
        assert f'id="show-{contestant.name}"' in page
        assert f".curve-{contestant.name}{{display:none}}" in page
    assert "This is the quick profile, 4 epochs" in said and "Seeds: 0, 1, 2." in said
    assert "Not run" not in said
    assert "80.4 ± 0.4" in said  # the mean of 0.800, 0.804 and 0.808 and their standard deviation
    assert "+0.40 [+0.31, +0.50]" in said
    assert "scale 0.7 to 1.4" in said


def test_figures_are_files_too(full):
    path, *_ = full
    for name in ("sampling", "poses", "grids", "lrn"):
        assert (path / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (path / "pictures" / "sampling.png").stat().st_size < 300_000


def test_wins_are_said(full):
    *_, said = full
    assert "Trained on upright objects, of 6 columns the best deformable network wins 6" in said
    assert "loses none" in said
    assert "+5.0 ▲" in said


@pytest.mark.parametrize("seeds", [2, 3])
def test_losses_are_said_as_plainly(tmp_path, seeds):
    random = np.random.default_rng(0)
    runs = whole(lambda c: (0.7 if c.startswith("deform") else 0.8) + 0.001 * random.random(), seeds)
    _, said = write(folder(tmp_path, runs))
    assert "Trained with augmentation, of 6 columns the best deformable network wins none against the best" in said
    assert "control, loses 6 (clean" in said
    assert "▼" in said
    assert "▲ " not in said.replace("▲ and ▼", "")


def test_hand_made_features_do_not_hide_the_networks(tmp_path):
    """SIFT ahead of everybody: deformable layers lose to it, and win among networks."""
    _, said = write(folder(tmp_path, whole(lambda c: {"s": 0.9, "p": 0.7, "d": 0.7}[c[0]] + 0.1 * (c[:2] == "de"))))
    assert "wins none against the best control, loses 6 (clean" in said
    assert "Among networks alone it wins 6 (clean" in said
    assert "+10.0 ▲" in said
    assert "−10.0 ▼" in said


def test_noise_is_called_undecided(tmp_path):
    random = np.random.default_rng(1)
    runs = [
        run(c, "upright", s, 0.8 + float(random.normal()) * 0.05) for s in range(3) for c in ("plain", "deform-v1-1")
    ]
    _, said = write(folder(tmp_path, runs))
    assert (
        "wins none against the best control, loses none, and cannot be told apart on 6 (clean, scale, rotation, bend, "
        in said
    )


def test_one_seed_has_no_interval(tmp_path):
    runs = [run("plain", "upright", 0, 0.7), run("deform-v1-1", "upright", 0, 0.8)]
    _, said = write(folder(tmp_path, runs))
    assert "of 6 columns the best deformable network is ahead of the best control on 6 (" in said
    assert said.count("All runs have one seed, so there are no intervals and nothing is decided.") == 1
    assert said.lower().count("one seed") == 1 and "every seed" not in said
    assert "nan" not in said.lower()


def test_what_is_not_there_is_named(tmp_path):
    """Half a study: no settings, no weights, a torn last line, a run of the other profile."""
    path = folder(tmp_path, [run("plain", "upright", s, 0.7) for s in (0, 1)], settings=False)
    with (path / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(run("plain", "upright", 0, 0.9, "full")) + "\n" + '{"contestant": "sif')
    (path / "models" / "plain-lrn-upright-0.pt").write_bytes(b"torn")
    runs = results.Results.read(path)
    assert [r["profile"] for r in runs.runs] == ["full"]
    (path / "settings.json").write_text('{"profile": "quick"}')
    _, said = write(path)
    assert "deform-v2-3 (upright)" in said
    assert "plain (upright)" not in said
    assert "Line 4 of results.jsonl is half-written or damaged and was left out." in said
    assert "1 run of the full profile lies in the same folder and was left out." in said
    assert "The folder holds no weights of a deformable network" in said
    assert "there is no deformable network and control with a common seed to compare" in said
    assert "Where the layers look" not in said
    assert "Does the grid grow" not in said


def test_torn_weights_are_named(tmp_path):
    path = folder(tmp_path, [run("deform-v1-1", "augmented", 0, 0.7)])
    (path / "models" / "deform-v1-1-augmented-0.pt").write_bytes(b"torn")
    _, said = write(path)
    assert "deform-v1-1-augmented-0.pt cannot be read" in said


def test_a_full_profile_is_not_called_quick(tmp_path):
    _, said = write(folder(tmp_path, [run("plain", "upright", 0, 0.7, "full")]))
    assert "Profile: full" in said
    assert "quick" not in said


def test_markup_in_labels_is_text(tmp_path):
    page, said = write(folder(tmp_path, [run("plain", "upright", 0, 0.7, label="<b>&plain")]))
    assert "<b>&plain" in said
    assert "<b>&plain" not in page


def test_nothing_to_report(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.jsonl is missing; run `pliant study geometry`"):
        report.write(tmp_path)
    (tmp_path / "results.jsonl").write_text('\n{"contestant"')
    with pytest.raises(ValueError, match="holds no finished run yet"):
        report.write(tmp_path)


def test_a_report_that_was_there_survives_a_failure(tmp_path, monkeypatch):
    path = folder(tmp_path, [run("plain", "upright", 0, 0.7)])
    (path / "report.html").write_text("before")
    monkeypatch.setattr("pliant._files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        report.write(path)
    assert (path / "report.html").read_text() == "before"
    assert not list(path.glob("*.part"))


def test_paired_differences():
    """Against the textbook: d = (0.1, 0.2, 0.3), t(0.975, 2) = 4.3027, half = 4.3027 · 0.1 / √3."""
    ours = statistics.Cell({0: 0.6, 1: 0.8, 2: 1.0, 7: 0.0})
    theirs = statistics.Cell({0: 0.5, 1: 0.6, 2: 0.7, 9: 0.0})
    gap = statistics.difference(ours, theirs)
    assert gap.n == 3
    np.testing.assert_allclose([gap.mean, gap.low, gap.high], [0.2, 0.2 - 0.248414, 0.2 + 0.248414], rtol=1e-5)
    assert gap.verdict == 0
    assert statistics.Difference(0.1, 0.05, 0.15, 3).verdict == 1
    assert statistics.Difference(-0.1, -0.15, -0.05, 3).verdict == -1
    assert statistics.difference(ours, statistics.Cell({5: 1.0})) is None
    assert statistics.points(gap) == "+20.0 [−4.8, +44.8]"


def test_columns_are_means_of_strengths_and_kinds(tmp_path):
    one = run("plain", "upright", 0, 0.7)
    one["accuracy"] = {"clean": {"0": 0.9}, "scale": {"0.5": 0.2, "1.2": 0.4, "2": 0.6}, "bend": {"0.1": 0.8}}
    found = results.Results.read(folder(tmp_path, [one]))
    values = [found.score("plain", "upright", column).mean for column in found.columns]
    np.testing.assert_allclose(values, [0.9, 0.4, 0.8, 0.6, 0.4])
    assert found.columns == ["clean", "scale", "bend", "all transformed", "unseen strengths"]
    assert found.strengths("scale") == ["0.5", "1.2", "2"]
