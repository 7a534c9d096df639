"""The examples of docs/interop that need more packages than the tests install run where those are installed.

They are code blocks marked "py"; those marked "python" run everywhere (tests/test_readme.py). The blocks of a section
run in one folder, each in a process of its own: a block reads the files that the one before wrote.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "interop"
BLOCK = re.compile(r"^```py\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMPILES = "torch.export, AOTInductor, traces"


def _sections() -> dict[tuple[str, str], list[str]]:
    """Return the code blocks of each section that has any, by page and heading."""
    found = {}
    for page in sorted(FOLDER.glob("*.md")):
        for section in re.split(r"^## ", page.read_text(), flags=re.MULTILINE)[1:]:
            if blocks := BLOCK.findall(section):
                found[page.stem, section.partition("\n")[0]] = blocks
    return found


SECTIONS = _sections()


def test_the_sections_are_found() -> None:
    assert {heading: len(blocks) for (_, heading), blocks in SECTIONS.items()} == {
        "ONNX": 2,
        "OpenVINO": 1,
        COMPILES: 2,
        "An installed torchvision": 1,
        "An installed transformers": 1,
        "The same keypoints": 1,
        "Where its taps go": 1,
        "mmcv": 2,
    }


def _imported(code: str) -> set[str]:
    """Return the packages that a block imports itself or through pliant."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    needs = {"pliant.interop.onnx": {"onnx", "onnxscript"}}
    return {name.partition(".")[0] for name in names}.union(*(needs.get(name, set()) for name in names))


@pytest.mark.parametrize(
    "section",
    [pytest.param(key, marks=pytest.mark.slow) if key[1] == COMPILES else key for key in SECTIONS],
    ids=lambda key: key[1],
)
def test_examples_run(
    section: tuple[str, str], run: Callable[..., tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ran = 0
    for code in SECTIONS[section]:
        if any(importlib.util.find_spec(name) is None for name in _imported(code)):
            continue
        _, said = run(code, folder=tmp_path)
        assert "Traceback" not in said
        ran += 1
    if not ran:
        pytest.skip(f"{section[1]} is not installed")
