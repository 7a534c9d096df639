"""Two processes with half of each batch do what one does with all of it.

For that every loss must be a mean over pictures, as the detectors' are; normalization must be frozen or absent; and
what the network draws at random must be the same for a picture in whatever batch it is: :func:`drawn_by_column` sees to
that for the real detectors.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pliant.models import FasterRCNN, ResNet, checkpoint
from pliant.train import DetectorRecipe, OptimiserRecipe, Ranks, evaluate, fit_detector
from pliant.train.distributed import start

RECIPE = DetectorRecipe(epochs=2, batch=4, optimiser=OptimiserRecipe(lr=0.02, warmup=3, clip=1.0))
PICTURES = 18
STOP = 3
BROKEN = (2, 7, 11)


def made(kind: Any) -> Any:
    torch.manual_seed(0)
    return kind()


def gradients(model: Any, wrapped: Any, data: Any, pictures: range) -> dict[str, torch.Tensor]:
    """Return the gradients of one batch, computed in the precision of the model."""
    items, dtype = [data[i] for i in pictures], next(model.parameters()).dtype
    losses = wrapped([image.to(dtype) / 255 for image, _ in items], [target for _, target in items])
    sum(losses.values()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@contextmanager
def drawn_by_column() -> Iterator[None]:
    """Let torch.rand(N, A) give every picture the same numbers, however many columns there are."""
    numbers, real = torch.rand(1, 10_000, generator=torch.Generator().manual_seed(0)), torch.rand

    def rand(N: int, A: int, **_: Any) -> torch.Tensor:
        return numbers[:, :A].expand(N, A)

    torch.rand = rand
    try:
        yield
    finally:
        torch.rand = real


def faster_rcnn(classes: int) -> FasterRCNN:
    """Return a small detector of the library, whose images have different numbers of sampled anchors and RoIs.

    It computes in double precision: the last bits of a float, which are others in a batch of another size, may decide
    which of two proposals suppresses the other.
    """
    torch.manual_seed(0)
    backbone = ResNet(18, deform=(None, None, None, "v2"), width=16, stem="small", frozen_bn=True)
    net = FasterRCNN(backbone, classes, channels=8, hidden=16, rpn_samples=2000, post_nms=(40, 20), rois=100)
    with torch.no_grad():
        # Zero at the start: nothing would be scored, moved or sampled differently.
        for layer in (net.rpn.predict, net.classifier, net.regressor, net.backbone.layer4[0].conv1.conv_offset):
            layer.weight.normal_(std=0.02)
    return net.double()


def trained(kind: Any, data: Any, test: Any, folder: Path, ranks: Ranks, **settings: Any) -> Any:
    return fit_detector(made(kind), data, replace(RECIPE, **settings), test=test, folder=folder, ranks=ranks)


def process(folder: Path) -> None:
    """Run as one of two processes; rank 0 leaves what it has in `folder`."""
    from conftest import Oracle, TinyDetector, TinyScenes

    data, test = TinyScenes(PICTURES), TinyScenes(7, seed=1)
    with start("cpu") as ranks:
        assert ranks.world == 2
        model = made(TinyDetector)
        half = range(2 * ranks.rank, 2 * ranks.rank + 2)
        grads = gradients(model, ranks.wrap(model), data, half)
        model = faster_rcnn(2)
        with drawn_by_column():
            real = gradients(model, ranks.wrap(model), data, half)
        scores = evaluate(Oracle(), test, batch=2, ranks=ranks)
        records = trained(TinyDetector, data, test, folder / "ddp", ranks)
        sharded = trained(TinyDetector, data, test, folder / "fsdp", ranks, shard=True)

        def interrupt(record: dict[str, Any]) -> None:
            if record["step"] == STOP:
                os.kill(os.getpid(), signal.SIGTERM)

        # Only rank 0 is told to stop, in its record of step 3: both do after step 4.
        stopped, here = "", {"folder": folder / "stop", "ranks": ranks}
        half = replace(RECIPE, shard=True)
        try:
            fit_detector(made(TinyDetector), data, half, **here, on_record=interrupt)
        except KeyboardInterrupt as error:
            stopped = str(error)
        rest = fit_detector(made(TinyDetector), data, half, **here, resume=True)
        damaged = TinyScenes(PICTURES, broken=BROKEN)
        damaged = fit_detector(made(TinyDetector), damaged, replace(RECIPE, epochs=1), ranks=ranks)
        everyone = ranks.gather((scores, records[-1]["AP"], stopped))
        refused = ""
        try:
            trained(TinyDetector, data, test, folder / "ddp", ranks)
        except ValueError as error:
            refused = str(error)
        refusals = ranks.gather(refused)
    if ranks.rank == 0:
        found = {
            "gradients": grads,
            "faster_rcnn": real,
            "ddp": records,
            "fsdp": sharded,
            "rest": rest,
            "broken": [reason for record in damaged for reason in record.get("broken", ())],
            "everyone": everyone,
        }
        found["refusals"] = refusals
        torch.save(found, folder / "found.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run two processes and return the folder of what they left; their whole output is in it."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, **{k: str(v) for k, v in torchrun.items()}, "OMP_NUM_THREADS": "1"}
        environment |= {"TORCH_CPP_LOG_LEVEL": "INFO", "GLOO_SOCKET_IFNAME": "lo"}
        with (folder / f"rank{rank}.log").open("w") as log:
            command = [sys.executable, __file__, str(folder)]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [p.wait(timeout=240) for p in processes]
    except subprocess.TimeoutExpired:
        codes = [124]
    finally:
        for p in processes:
            p.kill()
            p.wait()
    if any(codes):
        logs = "\n".join(f"--- {log}\n{log.read_text()}" for log in sorted(folder.glob("*.log")))
        pytest.fail(f"the two processes ended with {codes}\n{logs}", pytrace=False)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.fixture
def alone(detector: Any, scenes: Any, tmp_path: Path) -> list[dict[str, Any]]:
    return trained(detector, scenes(PICTURES), scenes(7, seed=1), tmp_path / "alone", Ranks())


def test_gradients_are_those_of_one_process(found: dict[str, Any], detector: Any, scenes: Any) -> None:
    model = made(detector)
    expected = gradients(model, model, scenes(PICTURES), range(4))
    assert found["gradients"].keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 1e-4 or "conv_offset" in name
        torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_broken_pictures_of_all_processes_are_named(found: dict[str, Any]) -> None:
    assert set(found["broken"]) == {f"cannot read picture {number}.jpg" for number in BROKEN}


def test_gradients_of_faster_rcnn_are_those_of_one_process(found: dict[str, Any], scenes: Any) -> None:
    model = faster_rcnn(2)
    with drawn_by_column():
        expected = gradients(model, model, scenes(PICTURES), range(4))
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert found["faster_rcnn"].keys() == expected.keys() == learned
    largest = {name: gradient.abs().max().item() for name, gradient in expected.items()}
    # Some level of the pyramid may have no RoI.
    assert sum(value > 0 for value in largest.values()) > 0.8 * len(largest)
    for name, gradient in expected.items():
        torch.testing.assert_close(found["faster_rcnn"][name], gradient, rtol=0, atol=1e-9 * largest[name], msg=name)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_training_is_that_of_one_process(
    found: dict[str, Any], folder: Path, alone: list[dict[str, Any]], tmp_path: Path, kind: str
) -> None:
    assert [(r["kind"], r["step"]) for r in found[kind]] == [(r["kind"], r["step"]) for r in alone]
    for ours, theirs in zip(found[kind], alone, strict=True):
        for name in ("loss", "loss_class", "loss_box", "lr", "gradient_norm") if ours["kind"] == "step" else ("AP",):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), (name, ours["step"])
    ours, theirs = (checkpoint.read(path / "last.pt") for path in (folder / kind, tmp_path / "alone"))
    torch.testing.assert_close(ours["model"], theirs["model"], rtol=1e-4, atol=1e-5)
    for number, state in theirs["optimiser"]["state"].items():
        momentum = ours["optimiser"]["state"][number]["momentum_buffer"]
        torch.testing.assert_close(momentum, state["momentum_buffer"], rtol=1e-3, atol=1e-4)


def test_evaluation_is_shared(found: dict[str, Any]) -> None:
    # What one of the two finds is half of what there is.
    for scores, trained_ap, stopped in found["everyone"]:
        assert scores["AP"] == pytest.approx(1)
        assert trained_ap == found["ddp"][-1]["AP"]
        assert f"after step {STOP + 1} of 8" in stopped
    # Nine taps on maps of 4 × 5; of seven pictures the second process repeats one.
    (offsets,) = found["ddp"][-1]["offsets"].values()
    assert sum(offsets["counts"]) == 8 * 9 * 4 * 5


def test_sharded_run_goes_on(found: dict[str, Any]) -> None:
    whole = [r["loss"] for r in found["fsdp"] if r["kind"] == "step"]
    assert [r["loss"] for r in found["rest"]] == whole[STOP + 1 :]


def test_every_rank_learns_that_the_folder_is_taken(found: dict[str, Any]) -> None:
    assert len(found["refusals"]) == 2
    assert all("holds a run; resume it" in refusal for refusal in found["refusals"])


def test_only_rank_0_writes(folder: Path) -> None:
    names = {"recipe.json", "metrics.jsonl", "last.pt", "best.pt"}
    assert {p.name for p in (folder / "ddp").iterdir()} == names
    assert len((folder / "ddp" / "metrics.jsonl").read_text().splitlines()) == 8 + 2


def test_batches_are_shared_alike(detector: Any, scenes: Any) -> None:
    with pytest.raises(ValueError, match="a batch of 4 cannot be divided equally among 3 processes"):
        fit_detector(made(detector), scenes(PICTURES), RECIPE, ranks=Ranks(world=3))


def test_devices_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="device 'cuda:99' cannot be used here"), start("cuda:99"):
        pass


if __name__ == "__main__":
    torch.set_num_threads(1)
    process(Path(sys.argv[1]))
