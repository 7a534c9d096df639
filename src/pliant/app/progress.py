"""Progress of a training: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType

from pliant.train.log import Record

EVERY = 10.0  # seconds from one plain line to the next


class Plain:
    """Plain lines: at most one per `EVERY` seconds, and one per evaluation.

    Args:
        about: what is trained, printed at the start.
    """

    def __init__(self, about: str) -> None:
        self.about = about
        self.before = self.steps = 0
        self.started = self.told = 0.0

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def start(self, step: int, steps: int) -> None:
        """Print that training starts after `step` of `steps`."""
        print(self.about + went_on(step, steps), flush=True)
        self.before, self.steps = step, steps
        self.started = self.told = time.monotonic()

    def record(self, record: Record) -> None:
        """Print a line, unless the last one is recent."""
        for reason in record.get("broken", ()):
            print(f"left out: {reason}", flush=True)
        if record["kind"] == "evaluation":
            print(evaluated(record), flush=True)
            return
        now, step = time.monotonic(), record["step"]
        if now - self.told < EVERY and step not in (self.before + 1, self.steps):
            return
        self.told = now
        pace = (now - self.started) / (step - self.before)
        left = f"; about {duration(pace * (self.steps - step))} left" if step < self.steps else ""
        print(f"[{step}/{self.steps}] {trained(record)}{left}", flush=True)


class Bar:
    """A bar with the time left, on a terminal.

    Args:
        about: what is trained, printed at the start.
    """

    def __init__(self, about: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.about = about
        self.bar = Progress(
            MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TextColumn("left"),
            TimeRemainingColumn(compact=True), speed_estimate_period=120,
        )  # fmt: skip

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.stop()

    def start(self, step: int, steps: int) -> None:
        """Print that training starts after `step` of `steps`, and draw the bar."""
        self._say(self.about + went_on(step, steps))
        self.task = self.bar.add_task("", total=steps, completed=step)
        self.bar.start()

    def record(self, record: Record) -> None:
        """Move the bar, or print a line above it."""
        for reason in record.get("broken", ()):
            self._say(f"left out: {reason}")
        if record["kind"] == "evaluation":
            self._say(evaluated(record))
        else:
            self.bar.update(self.task, completed=record["step"], description=trained(record))

    def _say(self, line: str) -> None:
        self.bar.console.print(line, highlight=False, markup=False)


def progress(about: str) -> Plain | Bar:
    """Return a bar on a terminal, plain lines elsewhere."""
    return (Bar if sys.stdout.isatty() else Plain)(about)


def went_on(step: int, steps: int) -> str:
    """Return the end of the first line.

    >>> went_on(0, 10), went_on(4, 10)
    (' 10 steps.', ' Resumes after step 4 of 10.')
    """
    return f" Resumes after step {step} of {steps}." if step else f" {steps} steps."


def trained(record: Record) -> str:
    """Return a step in a line.

    >>> trained({"epoch": 2, "loss": 0.51234, "lr": 0.02, "images_per_second": 31.7})
    'epoch 2: loss 0.512, learning rate 0.02, 32 images/s'
    """
    return (
        f"epoch {record['epoch']}: loss {record['loss']:.3f}, learning rate {record['lr']:.3g}, "
        f"{record['images_per_second']:.0f} images/s"
    )


def evaluated(record: Record) -> str:
    """Return an evaluation in a line.

    >>> evaluated({"epoch": 2, "AP": 0.1, "AP50": 0.25, "AP75": 0.05, "seconds": 3.2})
    'epoch 2: AP 10.0, AP50 25.0, AP75 5.0 (3 s)'
    """
    scores = ", ".join(f"{name} {percent(record[name])}" for name in ("AP", "AP50", "AP75"))
    return f"epoch {record['epoch']}: {scores} ({duration(record['seconds'])})"


def percent(share: float) -> str:
    """Return a fraction in percent, a dash for NaN.

    >>> percent(0.1234), percent(float("nan"))
    ('12.3', '–')
    """
    return "–" if math.isnan(share) else f"{100 * share:.1f}"


def duration(seconds: float) -> str:
    """Return a duration in words.

    >>> duration(59.4), duration(200), duration(8000)
    ('59 s', '3 min', '2 h 13 min')
    """
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
