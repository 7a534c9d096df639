"""The measurements of a run, one line of JSON each."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any

from pliant import _INSTALL
from pliant._files import replacing

Record = dict[str, Any]


class Log:
    """The file metrics.jsonl of a run and, on request, its events for TensorBoard.

    Args:
        folder: of the run; None writes nothing.
        step: step after which the run resumes; lines of later steps, written before it was cut off, are dropped.
        evaluated: last step whose evaluation is kept.
        tensorboard: also write `folder`/tensorboard.

    Raises:
        ValueError: TensorBoard is requested and not installed.
    """

    def __init__(self, folder: Path | None, step: int = 0, evaluated: int = 0, *, tensorboard: bool = False) -> None:
        self.file, self.events = None, None
        if folder is None:
            return
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ModuleNotFoundError as error:
                raise ValueError(f"tensorboard is not installed: {_INSTALL.format(extra='tensorboard')}") from error
            self.events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        path = folder / "metrics.jsonl"
        kept = [r for r in read(path) if r["step"] <= (evaluated if r["kind"] == "evaluation" else step)]
        with replacing(path) as part:
            part.write_text("".join(map(line, kept)), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8", buffering=1)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.file is not None:
            self.file.close()
        if self.events is not None:
            self.events.close()

    def write(self, record: Record) -> None:
        """Add one line; every number in it becomes a point of a curve in TensorBoard."""
        if self.file is not None:
            self.file.write(line(record))
        if self.events is not None:
            for name, value in record.items():
                if isinstance(value, float | int) and name != "step":
                    self.events.add_scalar(f"{record['kind']}/{name}", value, record["step"])


def read(path: Path) -> list[Record]:
    """Return the records of a metrics.jsonl, none if the file does not exist. An incomplete last line is left out.

    Raises:
        ValueError: another line is damaged.
    """
    if not path.exists():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    records: list[Record] = []
    for number, text in enumerate(whole.split(b"\n") if whole else [], 1):
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} of {path} is damaged; remove it to go on") from error
        if not isinstance(record, dict) or not {"kind", "step"} <= record.keys() or type(record["step"]) is not int:
            raise ValueError(f"line {number} of {path} is no record of a run; remove it to go on")
        # A line that stands there twice, one after the other, is one record.
        if not records or record != records[-1]:
            records.append(record)
    return records


def line(record: Record) -> str:
    """Return a record as one line of JSON, in which null stands for NaN.

    >>> line({"AP": float("nan"), "per_class": {"shirt": 0.5}})
    '{"AP": null, "per_class": {"shirt": 0.5}}\\n'
    """
    return json.dumps(finite(record), ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Return nested values with None in place of every number that is not finite."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
