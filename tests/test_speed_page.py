"""The tables of docs/speed.md show the figures of benchmarks/results."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("speed_pictures", DOCS / "speed_pictures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_the_results(pictures: ModuleType) -> None:
    text = (DOCS / "speed.md").read_text(encoding="utf-8")
    assert text.count("<!-- table ") == text.count("<!-- end -->") > 0
    assert pictures.page(text) == text


def test_a_table(pictures: ModuleType) -> None:
    rows = {"mm": 10.0, "pliant nchw": 12.0, "pliant channels_last": 11.0, "grid_sample": 30.0}
    entry = {"case": "S1", "shape": "small", "limit": {"mm": 2.0}, "threads": 1}
    entry["rows"] = [{"contestant": name, "median_ms": ms} for name, ms in rows.items()]
    assert pictures.table([entry, entry | {"threads": 2}]).splitlines() == [
        "|  | shape | pliant nchw / (2 mm) | pliant channels_last / (2 mm) | grid_sample in PyTorch |",
        "|---|---|---|---|---|",
        "| S1 | small | 0.60 | 0.55 | 2.50 |",
        "| S1, 2 threads | small | 0.60 | 0.55 | 2.50 |",
    ]
