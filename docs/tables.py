"""Write the tables of operators into README.md, README.zh.md and docs/index.md, from ``pliant.ops.table``, and the
public names into docs/api.md.

``python docs/tables.py`` replaces what stands between ``<!-- operators -->`` and ``<!-- /operators -->``, and between
``<!-- support -->`` and ``<!-- /support -->``; tests/test_readme.py compares the pages with what this file writes.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable
from pathlib import Path

import torch

from pliant.ops.table import OPERATORS

ROOT = Path(__file__).parents[1]
SHORT = {torch.float64: "f64", torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
# The order in which dtypes are listed: from wide to narrow.
WIDE_FIRST = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

WORDS = {
    "en": {
        "operators": ("operator", "what it does", "layer", "source"),
        "support": ("operator", "CPU", "GPU", "twice differentiable in", "`torch.compile`", "export"),
        "whole": "whole graph",
        "parts": "breaks the graph",
        "none": "none",
    },
    "zh": {
        "operators": ("算子", "作用", "层", "出处"),
        "support": ("算子", "CPU", "GPU", "可求二阶导数的输入", "`torch.compile`", "导出"),
        "whole": "整图",
        "parts": "图在此中断",
        "none": "无",
    },
}
# Each page, the folder of the operators' pages as seen from there, and its language.
PAGES = {
    "README.md": ("docs/", "en"),
    "README.zh.md": ("docs/", "zh"),
    "docs/index.md": ("", "en"),
    "docs/api.md": ("", "en"),
}
# The modules whose public names docs/api.md lists: those that have `__all__`.
MODULES = (
    "ops", "nn", "models", "data", "train", "show", "interop.torchvision", "interop.mmcv",
    "interop.transformers", "interop.deformable_detr", "interop.internimage", "interop.dcnv4", "interop.checkpoints",
    "interop.onnx",
)  # fmt: skip


def tables(page: str) -> dict[str, str]:
    """Return the tables of a page by their names, in Markdown."""
    if page == "docs/api.md":
        return {"api": names()}
    folder, language = PAGES[page]
    words = WORDS[language]
    chinese = language == "zh"

    def source(text: str) -> str:
        return text.replace(" et al.", " 等").replace(", ", "，") if chinese else text

    operators = (
        (
            f"[`{o.name}`]({folder}{o.page})",
            o.meaning_zh if chinese else o.meaning,
            f"`{o.layer}`" if o.layer else "",
            source(o.source),
        )
        for o in OPERATORS
    )
    support = (
        (
            f"`{o.name}`",
            " ".join(SHORT[d] for d in WIDE_FIRST if d in o.dtypes),
            " ".join(SHORT[d] for d in WIDE_FIRST if d in o.gpu_dtypes),
            ", ".join(f"`{name}`" for name in o.gradients) or str(words["none"]),
            str(words["whole" if o.whole else "parts"]),
            ", ".join(o.exports) or str(words["none"]),
        )
        for o in OPERATORS
    )
    return {"operators": _table(words["operators"], operators), "support": _table(words["support"], support)}


def names() -> str:
    """Return the public names of all modules, each with the first sentence of its docstring, in Markdown."""
    parts = []
    for name in MODULES:
        module = importlib.import_module(f"pliant.{name}")
        rows = []
        for each in sorted(module.__all__, key=str.lower):
            said = " ".join((inspect.getdoc(getattr(module, each)) or "").partition("\n\n")[0].split())
            sentence = re.split(r"(?<=[.:;])\s", said.replace("``", "`"))[0].rstrip(":;")
            rows.append((f"`{each}`", re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", sentence).replace("|", "\\|")))
        parts.append(f"## pliant.{name}\n\n{_table(('name', 'what it is or does'), rows)}")
    return "\n\n".join(parts)


def _table(head: Iterable[str], rows: Iterable[tuple[str, ...]]) -> str:
    head = tuple(head)
    lines = [head, *rows]
    written = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([written[0], "|" + "---|" * len(head), *written[1:]])


def write(page: str) -> None:
    """Replace the tables of a page."""
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    for name, table in tables(page).items():
        marked = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- /{name} -->)", re.DOTALL)
        if not marked.search(text):
            raise SystemExit(f"{page} has no place for the table of {name}: <!-- {name} --> and <!-- /{name} -->")
        text = marked.sub(lambda _, table=table: table, text)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for each in PAGES:
        write(each)
