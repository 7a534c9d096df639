"""The code in README, CONTRIBUTING and docs/ runs, and the commands, files and operators that they name exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pliant import app, ops

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# The targets of [text](target) and ![text](target), without titles and anchors; links to other sites are skipped.
LINK = re.compile(r"\[[^\]]*\]\((?!\w+:)([^)\s#]+)")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return [code for tongue, code in BLOCK.findall(page.read_text()) if tongue == language]


def commands(page: Path) -> list[list[str]]:
    """Return the commands of the shell blocks, without their comments."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def inline(page: Path) -> list[list[str]]:
    """Return the commands of ours that the text names between backquotes."""
    spans = re.findall(r"`((?:make|pliant) [^`\n]+)`", BLOCK.sub("", page.read_text()))
    return [shlex.split(span) for span in spans]


EXAMPLES = [(page, i, code) for page in PAGES for i, code in enumerate(blocks(page, "python"))]


def marked(page: Path, table: str) -> list[list[str]]:
    """Return the cells of the table between ``<!-- table -->`` and ``<!-- /table -->``, without its two head lines."""
    (inside,) = re.findall(rf"^<!-- {table} -->\n(.*?)\n<!-- /{table} -->$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in inside.splitlines()[2:]]


def test_both_readmes_show_the_same() -> None:
    english, chinese = ROOT / "README.md", ROOT / "README.zh.md"
    assert commands(english) == commands(chinese) == [["make", "demo"], ["make", "test"]]

    def uncommented(page: Path) -> list[str]:
        return [re.sub(r" *#.*", "", code) for code in blocks(page, "python")]

    assert len(uncommented(english)) == 1
    assert uncommented(english) == uncommented(chinese)
    assert LINK.findall(english.read_text()) == LINK.findall(chinese.read_text())


@pytest.mark.parametrize("page", ["README.md", "README.zh.md", "docs/index.md"])
def test_the_tables_list_every_operator(page: str) -> None:
    """Each operator has one row in each table, and the first table links it to a page that documents it."""
    linked = [re.fullmatch(r"\[`(\w+)`\]\((\S+)\)", row[0]) for row in marked(ROOT / page, "operators")]
    assert sorted(link[1] if link else "no link" for link in linked) == sorted(ops.__all__)
    for link in filter(None, linked):
        documented = ((ROOT / page).parent / link[2]).read_text()
        assert re.search(rf"^::: pliant\.ops\.(\w+\.)*{link[1]}$", documented, re.MULTILINE), link[1]
    assert sorted(row[0].strip("`") for row in marked(ROOT / page, "support")) == sorted(ops.__all__)


@pytest.mark.parametrize(
    ("page", "code"), [(p, c) for p, _, c in EXAMPLES], ids=[f"{name(p)}-{i}" for p, i, _ in EXAMPLES]
)
def test_examples_run(page: Path, code: str) -> None:
    exec(compile(code, name(page), "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert [target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()] == []


def test_named_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    said = [(page, words) for page in PAGES for words in commands(page) + inline(page)]
    for program, known in (("make", targets), ("pliant", set(app.COMMANDS))):
        # The first word that is neither an option nor NAME=value.
        named = {
            (name(page), next((w for w in words if "=" not in w and w[0] != "-"), ""))
            for page, (first, *words) in said
            if first == program
        }
        assert named
        assert {(page, word) for page, word in named if word not in known} == set()
