from __future__ import annotations

import json
import math
import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pliant import _files
from pliant.models import checkpoint
from pliant.train import DetectorRecipe, OptimiserRecipe, detector, fit_detector

RECIPE = DetectorRecipe(epochs=3, batch=4, optimiser=OptimiserRecipe(lr=0.05, warmup=3))
MEASURED = ("step", "epoch", "loss", "loss_class", "loss_box", "lr", "gradient_norm")


def made(kind: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(**options)


def numbers(records: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return what must repeat bit for bit: everything but times."""
    steps = [tuple(r[key] for key in MEASURED) for r in records if r["kind"] == "step"]
    evaluations = [(r["step"], r["AP"], r["AP50"]) for r in records if r["kind"] == "evaluation"]
    return [*steps, *evaluations]


def shifted(image: Tensor, target: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
    """Move a picture at random: what a transform draws must be the same again."""
    by = int(torch.randint(-3, 4, (1,), generator=generator))
    return image.roll(by, 2), {**target, "boxes": target["boxes"] + torch.tensor([by, 0, by, 0])}


def test_it_learns(detector: Any, scenes: Any, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    recipe = replace(RECIPE, epochs=12, batch=8, evaluate_every=6)
    records = fit_detector(
        made(detector), scenes(64), recipe, test=scenes(16, seed=1), folder=tmp_path, on_record=seen.append
    )
    steps = [r for r in records if r["kind"] == "step"]
    assert seen == records
    assert [r["step"] for r in steps] == list(range(1, 97))
    assert [r["epoch"] for r in steps] == [1 + i // 8 for i in range(96)]
    assert sum(r["loss"] for r in steps[-8:]) < 0.5 * sum(r["loss"] for r in steps[:8])
    assert [r["step"] for r in records if r["kind"] == "evaluation"] == [48, 96]
    assert steps[0]["loss"] == pytest.approx(steps[0]["loss_class"] + steps[0]["loss_box"])
    assert {p.name for p in tmp_path.iterdir()} == {"recipe.json", "metrics.jsonl", "last.pt", "best.pt"}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == json.loads(json.dumps(records).replace("NaN", "null"))
    assert DetectorRecipe.of(json.loads((tmp_path / "recipe.json").read_text())) == recipe
    best = max((r for r in records if r["kind"] == "evaluation"), key=lambda r: r["AP"])
    assert checkpoint.read(tmp_path / "best.pt")["best"] == {"step": best["step"], "AP": best["AP"]}


def test_evaluations_count_offsets(detector: Any, scenes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the test pictures, or those of the first batches: as the network predicts them in the end."""
    test = scenes(6, seed=1)
    for most, count in ((16, 6), (1, 4)):
        monkeypatch.setattr("pliant.train.detector.COUNTED", most)
        model, folder = made(detector), tmp_path / str(most)
        records = fit_detector(model, scenes(16), replace(RECIPE, epochs=2), test=test, folder=folder)
        (name, found), *rest = records[-1]["offsets"].items()
        assert (records[-1]["kind"], name, rest) == ("evaluation", "backbone.layer2.0", [])
        assert "offsets" not in records[0]
        layer = model.backbone["layer2"][0]
        with torch.no_grad():
            x = model.backbone["layer1"](torch.stack([test[i][0] for i in range(count)]).float() / 255 - 0.5)
            length = layer.predict(x)[0].double().unflatten(1, (9, 2)).norm(dim=2)
        assert found["counts"] == torch.histogram(length, torch.tensor(found["edges"], dtype=torch.float64))[0].tolist()
        assert found["mean"] == pytest.approx(float(length.mean()), rel=1e-6)
        assert found["mean"] > 0
        (line,) = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()][-1:]
        assert line["offsets"] == {name: found}


def test_checkpoint_brings_the_network_back(detector: Any, scenes: Any, tmp_path: Path) -> None:
    net = made(detector)
    fit_detector(net, scenes(8), replace(RECIPE, epochs=1), folder=tmp_path)
    state = checkpoint.read(tmp_path / "last.pt")
    other = detector()
    other.load_state_dict(state["model"])
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    assert state["classes"] == ("red", "green") and state["category_ids"] == (3, 7)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("stop", [2, 4, 5, 11])
def test_resumed_run_is_the_uninterrupted_one(
    detector: Any, scenes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, name: Any
) -> None:
    # Two interrupts one after the other are one, also on a machine that is busy for seconds between them.
    monkeypatch.setattr("pliant.train.detector._Stop.SAME", math.inf)
    # Four steps an epoch: cut off inside of epochs, at the end of one, and before the last step.
    recipe = replace(RECIPE, optimiser=replace(RECIPE.optimiser, name=name, lr=0.01))
    data, test = scenes(18), scenes(6, seed=1)
    whole = fit_detector(made(detector, noise=0.2), data, recipe, transform=shifted, test=test)

    def interrupt(record: dict[str, Any]) -> None:
        if record["kind"] == "step" and record["step"] == stop:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=f"after step {stop} of 12, saved in .*last.pt"):
        fit_detector(
            made(detector, noise=0.2), data, recipe, transform=shifted, test=test, folder=tmp_path, on_record=interrupt
        )
    torch.manual_seed(5)
    rest = fit_detector(detector(noise=0.2), data, recipe, transform=shifted, test=test, folder=tmp_path, resume=True)
    assert rest[0]["step"] == (stop + 1 if stop % 4 else stop)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert numbers(lines) == numbers(whole)


def test_losses_depend_on_all_that_is_random(detector: Any, scenes: Any) -> None:
    """Else the test above could not fail."""
    one = replace(RECIPE, epochs=1)

    def losses(recipe: DetectorRecipe, noise: float, transform: Any) -> list[float]:
        return [r["loss"] for r in fit_detector(made(detector, noise=noise), scenes(18), recipe, transform=transform)]

    plain = losses(one, 0.0, None)
    assert losses(one, 0.0, None) == plain
    assert losses(one, 0.2, None) != plain
    assert losses(one, 0.0, shifted) != plain
    assert losses(replace(one, seed=1), 0.0, None) != plain


def test_workers_change_nothing(detector: Any, scenes: Any) -> None:
    one = replace(RECIPE, epochs=1)
    runs = [
        fit_detector(made(detector, noise=0.2), scenes(18), replace(one, workers=n), transform=shifted) for n in (0, 2)
    ]
    assert numbers(runs[0]) == numbers(runs[1])


def test_killed_run_goes_on_from_its_checkpoint(detector: Any, scenes: Any, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(record: dict[str, Any]) -> None:
        if record["step"] == 7:
            raise Killed

    recipe = replace(RECIPE, save_every=5)
    whole = fit_detector(made(detector), scenes(16), recipe)
    with pytest.raises(Killed):
        fit_detector(made(detector), scenes(16), recipe, folder=tmp_path, on_record=kill)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "st')
    middle = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(middle.replace('"epoch": 1', '"epoch" 1', 1))
    with pytest.raises(ValueError, match=r"line 1 of .*metrics\.jsonl is damaged; remove it to go on"):
        fit_detector(made(detector), scenes(16), recipe, folder=tmp_path, resume=True)
    (tmp_path / "metrics.jsonl").write_text(middle)
    rest = fit_detector(made(detector), scenes(16), recipe, folder=tmp_path, resume=True)
    assert rest[0]["step"] == 6
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert numbers(lines) == numbers(whole)


def test_interrupted_evaluation_is_made_up_for(
    detector: Any, scenes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    one, test = replace(RECIPE, epochs=1), scenes(6, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr("pliant.train.detector.evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt, match="after step 4 of 4"):
            fit_detector(made(detector), scenes(16), one, test=test, folder=tmp_path)
    rest = fit_detector(made(detector), scenes(16), one, test=test, folder=tmp_path, resume=True)
    assert [(r["kind"], r["step"]) for r in rest] == [("evaluation", 4)]
    assert fit_detector(made(detector), scenes(16), one, test=test, folder=tmp_path, resume=True) == []


def test_second_interrupt_waits_for_nothing(
    detector: Any, scenes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(record: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("pliant.train.detector._Stop.SAME", -1.0)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        fit_detector(made(detector), scenes(16), RECIPE, folder=tmp_path, on_record=interrupt)
    assert not (tmp_path / "last.pt").exists()


def test_generator_and_signals_are_left_as_they_were(detector: Any, scenes: Any) -> None:
    net = made(detector, noise=0.5)
    before, handler = torch.get_rng_state(), signal.getsignal(signal.SIGINT)
    fit_detector(net, scenes(8), replace(RECIPE, epochs=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize(("resumed", "best"), [(0.3, 4), (0.5, 4), (0.7, 8)])
def test_a_resumed_run_keeps_the_best_that_it_had(
    detector: Any, scenes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: float, best: int
) -> None:
    def scoring(AP: float) -> Any:
        return lambda *_, **__: {"AP": AP}

    test, two = scenes(6, seed=1), replace(RECIPE, epochs=2)
    monkeypatch.setattr("pliant.train.detector.evaluate", scoring(0.5))

    def interrupt(record: dict[str, Any]) -> None:
        if record["kind"] == "step" and record["step"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_detector(made(detector), scenes(16), two, test=test, folder=tmp_path, on_record=interrupt)
    monkeypatch.setattr("pliant.train.detector.evaluate", scoring(resumed))
    fit_detector(made(detector), scenes(16), two, test=test, folder=tmp_path, resume=True)
    assert checkpoint.read(tmp_path / "best.pt")["best"] == {"step": best, "AP": max(0.5, resumed)}


def test_a_run_that_ends_inside_an_epoch_is_evaluated(detector: Any, scenes: Any, tmp_path: Path) -> None:
    # Four steps an epoch.
    recipe = replace(RECIPE, steps=6)
    records = fit_detector(made(detector), scenes(16), recipe, test=scenes(6, seed=1), folder=tmp_path)
    assert [r["step"] for r in records if r["kind"] == "evaluation"][-1] == 6
    assert checkpoint.read(tmp_path / "last.pt")["step"] == 6


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weights_decay(name: Any) -> None:
    net = torch.nn.Linear(2, 1, bias=False)
    before = net.weight.detach().clone()
    optimizer = OptimiserRecipe(name, lr=0.1, weight_decay=0.5, momentum=0.9).build(net)
    net.weight.grad = torch.zeros_like(net.weight)
    optimizer.step()
    # Without a gradient both multiply by 1 − lr·decay.
    assert torch.allclose(net.weight.detach(), 0.95 * before, rtol=1e-6)


def test_frozen_and_offset_weights_go_their_own_pace(detector: Any, scenes: Any) -> None:
    net = made(detector)
    net.backbone["layer1"].requires_grad_(False)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    # Adam's first step moves every weight by its learning rate, that of the branch is a tenth.
    optimiser = OptimiserRecipe(name="adamw", lr=1e-2, weight_decay=0, warmup=0, clip=None)
    fit_detector(net, scenes(4), replace(RECIPE, steps=1, optimiser=optimiser))
    moved = {name: (p - before[name]).abs().max().item() for name, p in net.named_parameters()}
    assert moved["backbone.layer1.0.weight"] == 0
    assert moved["backbone.layer2.0.weight"] == pytest.approx(1e-2, rel=1e-3)
    assert moved["backbone.layer2.0.conv_offset.weight"] == pytest.approx(1e-3, rel=1e-2)


def test_gradients_are_clipped(detector: Any, scenes: Any) -> None:
    moved = []
    for clip in (1e-3, None):
        net = made(detector)
        before = net.head.weight.detach().clone()
        optimiser = OptimiserRecipe(lr=1.0, momentum=0, weight_decay=0, warmup=0, clip=clip)
        record = fit_detector(net, scenes(4), replace(RECIPE, steps=1, optimiser=optimiser))[0]
        moved.append((net.head.weight - before).norm().item())
        assert record["gradient_norm"] > 0.1
    assert moved[0] <= 1e-3 < moved[1]


def test_bfloat16_is_used_and_learns(detector: Any, scenes: Any) -> None:
    recipe = replace(RECIPE, epochs=4)
    losses = {
        precision: [
            r["loss"] for r in fit_detector(made(detector), scenes(16), replace(recipe, precision=precision))
        ]
        for precision in ("float32", "bfloat16")
    }  # fmt: skip
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)
    assert losses["bfloat16"][-1] < 0.5 * losses["bfloat16"][0]


def test_rate_warms_up_and_steps_down() -> None:
    recipe = OptimiserRecipe(warmup=10, milestones=(0.5, 0.75), gamma=0.1)
    rates = [recipe.rate(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10:50] == [1.0] * 40
    assert rates[50:] == pytest.approx([0.1] * 25 + [0.01] * 25)
    assert OptimiserRecipe(warmup=0, milestones=()).rate(0, 1) == 1


def test_broken_pictures_are_named_and_replaced(detector: Any, scenes: Any, tmp_path: Path) -> None:
    records = fit_detector(made(detector), scenes(16, broken=(3, 4)), replace(RECIPE, epochs=1), folder=tmp_path)
    assert len(records) == 4
    named = [reason for r in records for reason in r.get("broken", [])]
    assert sorted(named) == ["cannot read picture 3.jpg", "cannot read picture 4.jpg"]
    lines = (tmp_path / "metrics.jsonl").read_text()
    assert lines.count("cannot read picture") == 2
    with pytest.raises(ValueError, match=r"none of the 4 images can be read: cannot read picture \d.jpg"):
        fit_detector(made(detector), scenes(4, broken=(0, 1, 2, 3)), RECIPE)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_loss_that_is_not_finite_stops(detector: Any, scenes: Any, tmp_path: Path, where: str) -> None:
    net = made(detector)

    def spoil(record: dict[str, Any]) -> None:
        if record["step"] == 5 and where == "loss":
            with torch.no_grad():
                net.head.weight[0] = math.nan
        elif record["step"] == 5:
            net.head.weight.register_hook(lambda g: g * math.inf)

    wrong = "the loss is nan, loss_class is nan" if where == "loss" else "the norm of the gradient is (inf|nan)"
    with pytest.raises(FloatingPointError, match=f"{wrong} in step 6; .*last.pt holds step 4. Lower the learning rate"):
        fit_detector(net, scenes(16), RECIPE, folder=tmp_path, on_record=spoil)
    state = checkpoint.read(tmp_path / "last.pt")
    assert state["step"] == 4
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_other_runs_are_refused(detector: Any, scenes: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    one = replace(RECIPE, epochs=1)
    with pytest.raises(ValueError, match="holds no checkpoint to resume from; start without --resume"):
        fit_detector(made(detector), scenes(8), one, folder=run, resume=True)
    fit_detector(made(detector), scenes(8), one, folder=run)
    with pytest.raises(ValueError, match="holds a run; resume it"):
        fit_detector(made(detector), scenes(8), one, folder=run)
    other = replace(one, seed=1, workers=3, data=replace(one.data, flip=0.25))
    with pytest.raises(ValueError, match=r"a run with other settings \(data.flip, seed\); choose another folder"):
        fit_detector(made(detector), scenes(8), other, folder=run, resume=True)


def test_what_a_killed_run_left_is_removed(detector: Any, scenes: Any, tmp_path: Path) -> None:
    killed = subprocess.Popen(["true"])
    killed.wait()
    left = [tmp_path / f"{name}.{pid}.part" for name in ("last.pt", "best.pt") for pid in (killed.pid, os.getpid())]
    alive, other = tmp_path / f"last.pt.{os.getppid()}.part", tmp_path / "mine.part"
    one = replace(RECIPE, epochs=1)
    for resume in (False, True):
        for path in (*left, alive, other):
            path.touch()
        fit_detector(made(detector), scenes(8), one, folder=tmp_path, resume=resume)
        assert [path.exists() for path in (*left, alive, other)] == [False] * 4 + [True] * 2


def test_a_run_whose_files_are_damaged_is_named(detector: Any, scenes: Any, tmp_path: Path) -> None:
    one = replace(RECIPE, epochs=1)
    fit_detector(made(detector), scenes(8), one, folder=tmp_path)

    def resumed() -> list[dict[str, Any]]:
        return fit_detector(made(detector), scenes(8), one, folder=tmp_path, resume=True)

    metrics, last = tmp_path / "metrics.jsonl", tmp_path / "last.pt"
    whole, state = metrics.read_bytes(), checkpoint.read(last)
    for damaged in (
        b"null\n",
        b"[]\n",
        b'{"step": 1}\n',
        b'{"kind": "step", "step": "1"}\n',
        b"\x81\n",
        b"[" * 5000 + b"\n",
    ):
        metrics.write_bytes(whole + damaged)
        with pytest.raises(ValueError, match=rf"line {len(whole.splitlines()) + 1} of .*metrics\.jsonl is"):
            resumed()
    # A line that stands there twice is one record.
    metrics.write_bytes(b"".join(line + b"\n" + line + b"\n" for line in whole.splitlines()))
    assert resumed() == [] and metrics.read_bytes() == whole
    for name in ("step", "evaluated", "best", "optimiser"):
        for wrong in ({**state, name: "3"}, {key: value for key, value in state.items() if key != name}):
            checkpoint.write(last, wrong)
            with pytest.raises(ValueError, match=r"last\.pt cannot be resumed from, it lacks what training needs"):
                resumed()
    model = state["model"]
    first = next(iter(model))
    for weights in ({}, {**model, "more": torch.zeros(1)}, {**model, first: torch.zeros(1)}):
        checkpoint.write(last, {**state, "model": weights})
        with pytest.raises(ValueError, match=r"last\.pt does not fit the network of its recipe: Error"):
            resumed()
    for recipe in ({}, {**state["recipe"], "data": None}, {**state["recipe"], "model": []}):
        checkpoint.write(last, {**state, "recipe": recipe})
        with pytest.raises(ValueError, match=r"the recipe (is damaged|was recorded by another version)"):
            resumed()


def test_batches_must_fit(detector: Any, scenes: Any) -> None:
    with pytest.raises(ValueError, match="a batch of 4 is larger than the data: 3 training images"):
        fit_detector(made(detector), scenes(3), RECIPE)


def test_full_disk_keeps_the_last_checkpoint(
    detector: Any, scenes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(record: dict[str, Any]) -> None:
        if record["step"] == 6:
            monkeypatch.setattr(_files.os, "fsync", full)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fit_detector(made(detector), scenes(16), RECIPE, folder=tmp_path, on_record=fill)
    assert checkpoint.read(tmp_path / "last.pt")["step"] == 4
    assert {p.name for p in tmp_path.iterdir()} == {"recipe.json", "metrics.jsonl", "last.pt"}


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match=r"x\.pt is damaged or not a checkpoint"):
        checkpoint.read(path)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"x\.pt is not a checkpoint of a detector; give the last.pt"):
        checkpoint.read(path)
    state = {"format": 1, "recipe": {}, "classes": ("a",), "category_ids": (3,), "model": {}}
    for name, wrong in (("recipe", None), ("classes", "a"), ("category_ids", 3), ("model", [])):
        for damaged in ({**state, name: wrong}, {key: value for key, value in state.items() if key != name}):
            checkpoint.write(path, damaged)
            with pytest.raises(ValueError, match=rf"x\.pt (is damaged, see its {name}|is not a checkpoint)"):
                checkpoint.read(path)
    checkpoint.write(path, {**state, "classes": ("a", "b")})
    with pytest.raises(ValueError, match=r"x\.pt is damaged, see its classes and category_ids"):
        checkpoint.read(path)
    checkpoint.write(path, {"format": 99, "recipe": {}})
    with pytest.raises(ValueError, match="has format 99, this version of pliant reads format 1"):
        checkpoint.read(path)
    with pytest.raises(FileNotFoundError):
        checkpoint.read(tmp_path / "y.pt")


def test_tensorboard_gets_the_curves(detector: Any, scenes: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    fit_detector(made(detector), scenes(8), replace(RECIPE, epochs=1), folder=tmp_path, tensorboard=True)
    events = next((tmp_path / "tensorboard").iterdir()).read_bytes()
    assert b"step/gradient_norm" in events


def test_missing_tensorboard_is_a_sentence(
    detector: Any, scenes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    monkeypatch.delitem(__import__("sys").modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ValueError, match=r'tensorboard is not installed: pip install "\.\[tensorboard\]" in a clone'):
        fit_detector(made(detector), scenes(8), RECIPE, folder=tmp_path, tensorboard=True)


def test_seeds_share_nothing() -> None:
    seeds = {detector.seed_of(0, "step", step, rank) for step in range(50) for rank in range(4)}
    seeds |= {detector.seed_of(0, "picture", epoch, i) for epoch in range(4) for i in range(50)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
