"""The code in README, CONTRIBUTING and docs/ runs, and the commands, files and operators that they name exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

import pliant
from pliant import app, nn, ops
from pliant.ops.table import OPERATORS

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
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


def module(path: Path) -> ModuleType:
    """Return a script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_both_readmes_show_the_same() -> None:
    english, chinese = ROOT / "README.md", ROOT / "README.zh.md"
    assert commands(english) == commands(chinese) == [
        ["pip", "install", ".[train,study]"], ["make", "demo"], ["make", "test"]
    ]  # fmt: skip

    def uncommented(page: Path) -> list[str]:
        return [re.sub(r" *#.*", "", code) for code in blocks(page, "python")]

    assert len(uncommented(english)) == 1
    assert uncommented(english) == uncommented(chinese)
    there, back = LINK.findall(english.read_text()), LINK.findall(chinese.read_text())
    assert (there[0], back[0]) == ("README.zh.md", "README.md")
    assert there[1:] == back[1:]


def test_one_line_installs_everything() -> None:
    """Every hint and every page name a line that works: `pip install pliant` would find nothing."""
    stated = pliant._INSTALL.format(extra="train").partition(" in ")[0]
    assert stated == 'pip install ".[train]"'
    for page in [*PAGES, *ROOT.glob("src/**/*.py")]:
        assert not re.search(r"pip install [\"']?pliant", page.read_text(encoding="utf-8")), page
    extras = set(
        re.findall(r"^(\w+) = \[", PROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0], re.M)
    )
    for page in PAGES:
        named = re.findall(r'pip install [^"\n]*"\.\[([\w,]+)\]"', page.read_text(encoding="utf-8"))
        assert {extra for line in named for extra in line.split(",")} <= extras, page
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert all(f"| `{extra}` |" in index for extra in extras)


def test_the_start_page_leads_everywhere() -> None:
    linked = {(ROOT / "docs" / target).resolve() for target in LINK.findall((ROOT / "docs" / "index.md").read_text())}
    assert {page for page in ROOT.glob("docs/**/*.md") if page.name != "index.md"} <= linked
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert all(page.relative_to(ROOT / "docs").as_posix() in navigation for page in ROOT.glob("docs/**/*.md"))


def test_references_show_public_objects() -> None:
    """`pliant.show.look` names a function and the module that holds it, of which mkdocs would show the module."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert "members: true" not in text, page  # private ones, too
        for target, options in re.findall(r"^::: (\S+)\n((?: +.*\n)*)", text, re.MULTILINE):
            path = ROOT.joinpath("src", *target.split("."))
            assert "show_root_heading: false" in options or not (path.is_dir() or path.with_suffix(".py").is_file())


def test_the_table_of_operators_is_whole() -> None:
    """Every public operator has one record, and its page documents it."""
    assert sorted(o.name for o in OPERATORS) == sorted(ops.__all__)
    for operator in OPERATORS:
        documented = (ROOT / "docs" / operator.page).read_text()
        assert re.search(rf"^::: pliant\.ops\.(\w+\.)*{operator.name}$", documented, re.MULTILINE), operator.name
        assert not operator.layer or operator.layer in nn.__all__


def test_the_pages_have_the_tables_of_today() -> None:
    """`python docs/tables.py` writes them."""
    tables = module(ROOT / "docs" / "tables.py")
    for page in tables.PAGES:
        for name, table in tables.tables(page).items():
            assert f"<!-- {name} -->\n{table}\n<!-- /{name} -->" in (ROOT / page).read_text(), (page, name)


@pytest.mark.parametrize(
    ("page", "code"), [(p, c) for p, _, c in EXAMPLES], ids=[f"{name(p)}-{i}" for p, i, _ in EXAMPLES]
)
def test_examples_run(page: Path, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write a picture
    exec(compile(code, name(page), "exec"), {})


def test_every_example_is_run() -> None:
    """Blocks of Python are marked "python", or "py" where tests/interop/test_documented.py runs them."""
    marks = {mark for page in PAGES for mark, _ in BLOCK.findall(page.read_text())}
    assert marks == {"", "sh", "text", "yaml", "python", "py"}
    assert {page.parent.name for page in PAGES if blocks(page, "py")} == {"interop"}
    # What is not marked is a formula or what a program prints.
    assert not [
        code for page in PAGES for code in blocks(page, "") if re.search(r"^(import|from) \w", code, re.MULTILINE)
    ]


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
