"""The training loop of detectors: resumes bit for bit, on one process or several."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from pliant._files import replacing, sweep
from pliant.data import Batch, Detection, Target, Transform, batches, matched
from pliant.data.drawing import seed_of
from pliant.models import checkpoint
from pliant.nn.histograms import OffsetHistory, summed
from pliant.train.distributed import Ranks, load_optimizer, shard, whole
from pliant.train.evaluation import evaluate
from pliant.train.log import Log, Record
from pliant.train.recipe import DetectorRecipe

COUNTED = 16  # batches per evaluation and process whose offsets are counted


def fit_detector(
    model: nn.Module,
    train: Detection,
    recipe: DetectorRecipe,
    *,
    transform: Transform | None = None,
    resize: Transform | None = None,
    test: Detection | None = None,
    folder: Path | None = None,
    resume: bool = False,
    ranks: Ranks | None = None,
    tensorboard: bool = False,
    on_start: Callable[[int, int], None] = lambda step, steps: None,
    on_record: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Train a detector.

    Order, augmentation and the model's draws from torch's global generator are functions of the seed, the step and
    the rank: a run that was stopped anywhere resumes with the same losses, bit for bit on a CPU, and no generator state
    has to be stored. The global generator is left as it was found.

    The loss is the sum of the model's losses, and the gradient is the mean over ranks. Two ranks with half of the batch
    each compute the gradient of one rank with the whole batch if every loss is a mean over images and batch
    normalization is frozen.

    Args:
        model: a detector of :mod:`pliant.models`; moved to the device of `ranks`.
        train: a data set of :mod:`pliant.data`.
        recipe: settings of the loop and of the optimiser; its `data` and `model` are only recorded.
        transform: of training images.
        resize: of test images.
        test: data to evaluate on, its categories matched by name to those of `train`; None evaluates nothing.
        folder: receives recipe.json, metrics.jsonl, last.pt, and best.pt with the largest AP, or without `test` with
            the weights after the last step; None writes nothing.
        resume: resume the run in `folder`.
        ranks: the processes that train together.
        tensorboard: also write events for TensorBoard.
        on_start: called on rank 0 before the first step, with the number of steps done (0: a new run) and of all steps.
        on_record: called on rank 0 with every record.

    Returns:
        The records of this call: for every step `loss`, its parts, `lr`, `gradient_norm`, `images_per_second`; for
        every evaluation the average precisions, and ``offsets``, a histogram per deformable layer over the first
        images (see :func:`pliant.nn.histograms.summed`).

    Raises:
        ValueError: the batch cannot be divided among the ranks, or is larger than the data; there is no box to learn
            from; `test` has boxes of other categories than `train`; the folder holds another run, or one of data with
            other categories.
        FloatingPointError: loss or gradient are not finite; the last checkpoint is kept.
        KeyboardInterrupt: on SIGINT or SIGTERM, after the current step and a checkpoint; on a second one, at once.
        OSError: the folder cannot be written.
    """
    run = _Run(model, train, recipe, transform, resize, test, folder, ranks or Ranks(), on_start, on_record)
    return run.run(resume, tensorboard)


class _Run:
    """One call of :func:`fit_detector`."""

    def __init__(
        self,
        model: nn.Module,
        train: Detection,
        recipe: DetectorRecipe,
        transform: Transform | None,
        resize: Transform | None,
        test: Detection | None,
        folder: Path | None,
        ranks: Ranks,
        on_start: Callable[[int, int], None],
        on_record: Callable[[Record], None],
    ) -> None:
        self.recipe, self.ranks, self.folder, self.on_start, self.on_record = recipe, ranks, folder, on_start, on_record
        self.train, self.transform, self.resize = train, transform, resize
        self.test = None if test is None else matched(test, train.classes, train.category_ids, "the training data")
        if getattr(train, "objects", 1) == 0:
            first = "".join(f"; {problem}" for problem in getattr(train, "problems", [])[:1])
            raise ValueError(f"the training data has no box that can be used, so there is nothing to learn{first}")
        if recipe.batch % ranks.world:
            raise ValueError(f"a batch of {recipe.batch} cannot be divided equally among {ranks.world} processes")
        self.per_epoch, self.total, self.every = recipe.length(len(train))
        self.step, self.evaluated, self.saved = 0, 0, 0
        self.best: Record | None = None
        self.records: list[Record] = []
        self.model = model.to(ranks.device)

    def run(self, resume: bool, tensorboard: bool) -> list[Record]:
        state = self._open(resume)
        if state is not None:
            try:
                self.model.load_state_dict(state["model"])
            except RuntimeError as error:
                said = " ".join(str(error).split())
                raise ValueError(
                    f"{self.folder}/last.pt does not fit the network of its recipe: {said[:200]}"
                ) from error
            self.step, self.evaluated, self.best = state["step"], state["evaluated"], state["best"]
            self.saved = self.step
        if self.recipe.shard:
            shard(self.model, self.ranks)
        self.optimizer = self.recipe.optimiser.build(self.model)
        if state is not None:
            load_optimizer(self.optimizer, state["optimiser"])
        wrapped = self.ranks.wrap(self.model).train()
        writes = self.folder if self.ranks.rank == 0 else None
        gpus = [self.ranks.device] if self.ranks.device.type == "cuda" else []
        with (
            Log(writes, self.step, self.evaluated, tensorboard=tensorboard) as self.log,
            _Stop() as self.stop,
            torch.random.fork_rng(gpus),
        ):
            if self.ranks.rank == 0:
                self.on_start(self.step, self.total)
            self._evaluate_if_due()
            drawn = self._batches()
            while self.step < self.total:
                began = time.perf_counter()
                self._train(wrapped, *next(drawn), began)
                every = self.recipe.save_every
                if self._at_epoch_end() or (every and self.step % every == 0):
                    self._save()
                if self.stopped or (self.ranks.world == 1 and self.stop.asked):
                    raise self._interrupted()
                self._evaluate_if_due()
        return self.records

    def _open(self, resume: bool) -> dict[str, Any] | None:
        """Prepare the folder; return the checkpoint to resume from, the same on every rank."""
        state, error = None, None
        if self.folder is not None and self.ranks.rank == 0:
            try:
                state = _prepare(self.folder, self.recipe, resume)
                if state is not None:
                    _agree(self.folder / "last.pt", state, self.train)
            except (ValueError, OSError) as e:
                error = e
        # Every rank must learn of an error, or the others would wait for this one.
        error = self.ranks.share(error)
        if error is not None:
            raise error
        return self.ranks.share(state)  # type: ignore[no-any-return]

    def _batches(self) -> Iterator[Batch]:
        """Yield the batches of this rank from the current step on."""
        while True:
            epoch, done = divmod(self.step, self.per_epoch)
            yield from batches(
                self.train, self.recipe.batch, self.recipe.seed, epoch, transform=self.transform,
                workers=self.recipe.workers, rank=self.ranks.rank, world=self.ranks.world, start=done,
                worker_init=_leave_signals_to_parent,
            )  # fmt: skip

    def _train(
        self, wrapped: nn.Module, images: list[Tensor], targets: list[Target], broken: list[str], began: float
    ) -> None:
        """Do one step."""
        device, optimiser = self.ranks.device, self.recipe.optimiser
        images = [image.to(device, non_blocking=True).float() / 255 for image in images]
        targets = [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in t.items()} for t in targets]
        factor = optimiser.rate(self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * factor
        torch.manual_seed(seed_of(self.recipe.seed, "step", self.step, self.ranks.rank))
        self.optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            losses = wrapped(images, targets)
            loss = sum(losses.values())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), optimiser.clip or math.inf)
        # A sharded model has a sharded norm.
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        asked = torch.tensor(float(self.stop.asked), device=device)
        faults = torch.tensor(float(len(broken)), device=device)
        numbers = [loss.detach().float(), *(part.detach().float() for part in losses.values()), asked, faults]
        mean, *parts, stopped, some = self.ranks.mean(torch.stack(numbers)).tolist()
        self.stopped = stopped > 0
        if some:
            broken = list(dict.fromkeys(reason for part in self.ranks.gather(broken) for reason in part))
        named = dict(zip(losses, parts, strict=True))
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise FloatingPointError(self._not_finite(mean, named, float(norm)))
        self.optimizer.step()
        self.step += 1
        seconds = time.perf_counter() - began
        record = {
            "kind": "step", "step": self.step, "epoch": 1 + (self.step - 1) // self.per_epoch, "loss": mean, **named,
            "lr": optimiser.lr * factor, "gradient_norm": float(norm), "images_per_second": self.recipe.batch / seconds,
        }  # fmt: skip
        self._record({**record, "broken": broken} if broken else record)

    def _at_epoch_end(self) -> bool:
        return self.step % self.per_epoch == 0 or self.step == self.total

    def _evaluate_if_due(self) -> None:
        due = self._at_epoch_end() and (self.step == self.total or self.step // self.per_epoch % self.every == 0)
        if self.test is None and self.step == self.total:
            self._save("best.pt")
        if self.test is None or not self.step or not due or self.evaluated == self.step:
            return
        began = time.perf_counter()
        self.stop.at_once = True
        try:
            with OffsetHistory(self.model, every=1, training=False, most=COUNTED) as history:
                scores = evaluate(
                    self.model, self.test, batch=max(1, self.recipe.batch // self.ranks.world), resize=self.resize,
                    workers=self.recipe.workers, max_detections=self.recipe.max_detections, ranks=self.ranks,
                )  # fmt: skip
        except KeyboardInterrupt:
            # The checkpoint of this step is already written.
            raise self._interrupted() from None
        finally:
            self.stop.at_once = False
        seconds = time.perf_counter() - began
        epoch = 1 + (self.step - 1) // self.per_epoch
        record = {"kind": "evaluation", "step": self.step, "epoch": epoch, **scores, "seconds": seconds}
        offsets = summed(one for part in self.ranks.gather(history.records) for one in part)
        self._record({**record, "offsets": offsets} if offsets else record)
        self.evaluated = self.step
        # The first evaluation is the best so far, even if AP is NaN for lack of objects.
        if self.best is None or not self.best["AP"] >= scores["AP"]:
            self.best = {"step": self.step, "AP": scores["AP"]}
            self._save("best.pt")
        self._save()

    def _record(self, record: Record) -> None:
        self.records.append(record)
        if self.ranks.rank == 0:
            self.log.write(record)
            self.on_record(record)

    def _save(self, name: str = "last.pt") -> None:
        """Write a checkpoint; best.pt, for prediction, has no optimiser state."""
        if self.folder is None:
            return
        state = {
            "format": checkpoint.FORMAT,
            "recipe": dataclasses.asdict(self.recipe),
            "classes": tuple(self.train.classes),
            "category_ids": tuple(self.train.category_ids),
            "step": self.step,
            "evaluated": self.evaluated,
            "best": self.best,
            "model": whole(self.model.state_dict()),
        }
        if name == "last.pt":
            state["optimiser"] = whole(self.optimizer.state_dict())
        if self.ranks.rank == 0:
            checkpoint.write(self.folder / name, state)
        self.saved = self.step

    def _interrupted(self) -> KeyboardInterrupt:
        if self.folder is None:
            return KeyboardInterrupt(f"after step {self.step} of {self.total}")
        if self.saved != self.step:
            self._save()
        return KeyboardInterrupt(f"after step {self.step} of {self.total}, saved in {self.folder / 'last.pt'}")

    def _not_finite(self, loss: float, parts: dict[str, float], norm: float) -> str:
        bad = [f"{name} is {value}" for name, value in {"the loss": loss, **parts}.items() if not math.isfinite(value)]
        what = ", ".join(bad) or f"the norm of the gradient is {norm}"
        kept = "no checkpoint was written before"
        if self.folder is not None and self.saved:
            kept = f"{self.folder / 'last.pt'} holds step {self.saved}"
        return f"{what} in step {self.step + 1}; {kept}. Lower the learning rate, warm up longer or clip gradients"


def _prepare(folder: Path, recipe: DetectorRecipe, resume: bool) -> dict[str, Any] | None:
    """Create the folder of a run and write its recipe, or check that both exist; return its checkpoint."""
    last, written = folder / "last.pt", folder / "recipe.json"
    if not resume:
        if last.exists():
            raise ValueError(f"{folder} holds a run; resume it (--resume) or choose another folder (--out)")
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        # Left by a run that ended before its first checkpoint.
        (folder / "metrics.jsonl").unlink(missing_ok=True)
        with replacing(written) as part:
            text = json.dumps(dataclasses.asdict(recipe), indent=2, ensure_ascii=False)
            part.write_text(text + "\n", encoding="utf-8")
        return None
    if not last.exists():
        raise ValueError(f"{folder} holds no checkpoint to resume from; start without --resume")
    sweep(folder)
    state = checkpoint.read(last)
    kinds = {"step": int, "evaluated": int, "best": dict | None, "optimiser": dict}
    if not all(name in state and isinstance(state[name], kind) for name, kind in kinds.items()):
        raise ValueError(f"{last} cannot be resumed from, it lacks what training needs; give the last.pt of a run")
    others = [
        name for name in DetectorRecipe.of(state["recipe"]).differences(recipe) if name not in ("workers", "save_every")
    ]
    if others:
        raise ValueError(f"{folder} holds a run with other settings ({', '.join(others)}); choose another folder")
    return state


def _agree(path: Path, state: dict[str, Any], train: Detection) -> None:
    """Raise unless the labels of a checkpoint are those of the training data: it would learn something else."""
    kept, found = (
        list(zip(ids, names, strict=True))
        for ids, names in ((state["category_ids"], state["classes"]), (train.category_ids, train.classes))
    )
    differ = [pair for pair in (*kept, *found) if (pair in kept) != (pair in found)]
    if kept != found:
        id, name = (differ or found)[0]
        raise ValueError(
            f"{path} was trained on other categories than the training data has now, such as {name!r} with id {id}; "
            "choose another folder"
        )


def _leave_signals_to_parent(worker: int) -> None:
    """Leave Ctrl-C to the loop, which needs its next batch before it stops."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Stop:
    """Turn SIGINT and SIGTERM into a request that the loop reads after its step; a second one interrupts."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    SAME = 2.0  # seconds: a terminal's Ctrl-C reaches a process directly, and again through torchrun

    def __init__(self) -> None:
        self.asked = self.at_once = False
        self.since = 0.0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        # Python handles signals in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.at_once or (self.asked and now - self.since > self.SAME):
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self.since = True, now
