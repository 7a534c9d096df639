"""The tables of docs/speed.md show the figures of benchmarks/results, and the READMEs those of the tables."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"
DEFORMABLE = ("ONNX Runtime", "OpenVINO", "ncnn")
OURS = ("pliant nchw / (1 mm)", "pliant channels_last / (1 mm)")
CONV2D = ("conv2d, not deformable",)
BOTH = ("amd-epyc", "intel-xeon")
EIGHT = tuple(f"S{i}" for i in range(1, 9))


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


def figures(table: str, rows: tuple[str, ...], columns: tuple[str, ...]) -> list[float]:
    """Return the numbers of some rows and columns of a table of the page."""
    text = (DOCS / "speed.md").read_text(encoding="utf-8").partition(f"<!-- table {table} -->\n")[2]
    head, _, *lines = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.partition("\n<!-- end")[0].splitlines()
    )
    return [float(line[head.index(name)]) for line in lines if line[0] in rows for name in columns]


@pytest.mark.parametrize(
    ("parts", "digits"),
    [
        ([("amd-epyc-deform_conv2d-forward", ("S1", "S2", "S3"), OURS)], 2),
        ([("amd-epyc-deform_conv2d-forward", ("S1", "S2", "S3"), DEFORMABLE)], 1),
        ([("amd-epyc-deform_conv2d-forward", ("S1", "S2", "S3"), ("grid_sample in PyTorch",))], 1),
        ([("amd-epyc-lrn-forward", ("A1", "A2", "G1"), ("PyTorch",))], 0),
        ([("intel-xeon-deform_conv2d-forward", EIGHT, ("torchvision",))], None),
        ([("intel-xeon-deform_conv2d-backward", EIGHT, ("torchvision",))], None),
        ([(f"{name}-deform_conv2d-forward", ("T1",), ("ONNX Runtime",)) for name in BOTH], 2),
        ([(f"{name}-deform_conv2d-forward", ("S7",), CONV2D) for name in BOTH], 2),
        ([(f"{name}-deform_conv2d-backward", ("S7",), CONV2D) for name in BOTH], 2),
    ],
)  # fmt: skip
def test_the_readmes_say_what_the_tables_show(
    parts: list[tuple[str, tuple[str, ...], tuple[str, ...]]], digits: int | None
) -> None:
    found = [number for part in parts for number in figures(*part)]
    # Without a number of digits, two figures of each.
    low, high = (f"{v:.2g}" if digits is None else f"{v:.{digits}f}" for v in (min(found), max(found)))
    english, chinese = ((DOCS.parent / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
    assert f"{low} to {high}" in " ".join(english.split())
    assert f"{low} 到 {high}" in chinese


def test_the_readmes_name_the_losses() -> None:
    """Where a deformable convolution or an LRN of others is faster than pliant's, the READMEs say so."""
    english, chinese = ((DOCS.parent / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
    everyone = (*EIGHT, "D1", "D2", "D3")
    for table, rows, columns in (
        ("amd-epyc-deform_conv2d-forward", everyone, DEFORMABLE[:2]),
        ("intel-xeon-deform_conv2d-forward", everyone, (*DEFORMABLE[:2], "torchvision")),
        ("amd-epyc-lrn-forward", ("A1", "A2", "G1"), DEFORMABLE[:2]),
    ):
        lost = [number for number in figures(table, rows, columns) if number < 1]
        assert all(f" {number:.2f} " in page for number in lost for page in (english, chinese)), (table, lost)
